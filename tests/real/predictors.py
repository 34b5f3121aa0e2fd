"""What can be known of a pair before it is merged, to be held against what the merge gains."""

from collections.abc import Sequence
from itertools import combinations

import torch
from tests.real.skills import SKILLS, documents
from torch import Tensor
from transformers import AutoTokenizer

from kinship_daemon.landscapes.real import RealModels
from kinship_daemon.weights.activations import ends
from kinship_daemon.weights.assembly import leaf_assembly
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import LowRank, descend
from kinship_daemon.weights.kinship import by_layer, lengths, matrix
from kinship_daemon.weights.live_model import live_model
from kinship_daemon.weights.recipe import leaf

__all__ = ["Pairs", "pair_facts"]

# By pair of names.
Pairs = dict[tuple[str, str], dict[str, float]]


def pair_facts(models: RealModels) -> Pairs:
    """What weights and probes tell; scores are not looked at."""
    names = sorted(models.names)
    rows = [leaf(models.ledger, models.names[name]) for name in names]
    pcc = matrix(models.ledger, rows, "pcc")
    distance = matrix(models.ledger, rows, "euclidean")
    layers = [
        kin for layer, kin in by_layer(models.ledger, rows, "pcc").items() if layer is not None
    ]
    per_layer = torch.stack(layers)
    length = lengths(models.ledger, rows, "pcc")
    ranks, overlap = _spectra(models, names)
    hidden, answers, kernel = _functional(models, names)
    return {
        (names[i], names[j]): {
            "kinship": float(pcc[i, j]),
            "highest kinship of a layer": float(per_layer[:, i, j].max()),
            "lowest kinship of a layer": float(per_layer[:, i, j].min()),
            "distance": float(distance[i, j]),
            "norm ratio": float(min(length[i], length[j]) / max(length[i], length[j])),
            "effective rank": float((ranks[i] + ranks[j]) / 2),
            "overlap of inputs": float(overlap[i, j]),
            "functional kinship, hidden": float(hidden[i, j]),
            "functional kinship, answers": float(answers[i, j]),
            "data kernel": float(kernel[i, j]),
        }
        for i, j in combinations(range(len(names)), 2)
    }


def _spectra(models: RealModels, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """
    Of the deltas' matrices, weighted by their squared lengths: effective ranks (models,), and how
    much the same inputs matter to two, (models, models).

    The rank is that of participation, tr(G)^2 / tr(G^2) with G = d^T d; the overlap is the cosine
    of two G.
    """
    base = Checkpoint.open(models.base)
    leaves = [descend(base, models.folders[models.names[name]]) for name in names]
    weight = torch.zeros(len(names), dtype=torch.float64)
    rank, dots = weight.clone(), torch.zeros(len(names), len(names), dtype=torch.float64)
    for name, info in base.tensors.items():
        if len(info.shape) != 2 or "embed" in name:
            continue
        before = base.tensor(name).float()
        grams = []
        for each in leaves:
            own = each.content(name)
            if isinstance(own, LowRank):
                delta = own.up @ own.down
            else:
                delta = torch.zeros_like(before) if own is None else own.float() - before
            grams.append((delta.T @ delta).flatten())
        flat = torch.stack(grams)
        products = (flat @ flat.T).double()
        traces = flat[:, :: info.shape[1] + 1].double().sum(1)
        rank += traces * traces.square() / products.diagonal()
        weight += traces
        dots += products
    size = dots.diagonal().sqrt()
    return rank / weight, dots / size[:, None] / size


@torch.inference_mode()
def _functional(models: RealModels, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """
    Similarity of what models do with unlabelled probes, (models, models) each.

    Of the last hidden state at the end of each probe, less the base's; of the log-probabilities of
    all words that are answers to any, less the base's; and of the distances between probes
    (arXiv 2305.05126). Pearson's r throughout.
    """
    words = AutoTokenizer.from_pretrained(models.base)
    probes = [each for skill in SKILLS for each in documents(skill, "probe")]
    texts = [torch.tensor(words(each.prompt)["input_ids"]) for each in probes]
    choices = sorted({words(" " + c)["input_ids"][0] for each in probes for c in each.choices})
    assemblies = [leaf_assembly(models.base, models.ledger.base)]
    for name in names:
        row = models.names[name]
        assemblies.append(leaf_assembly(models.folders[row], row, models.base))
    hidden, answers, distances = [], [], []
    for assembly in assemblies:
        model = live_model(assembly, dtype=torch.bfloat16, device="cpu")
        states, logits = ends(model, texts)
        hidden.append(states.flatten())
        answers.append(logits.log_softmax(1)[:, choices].flatten())
        distances.append(torch.pdist(states))
    changed = [torch.stack(rows[1:]) - rows[0] for rows in (hidden, answers)]
    return (
        torch.corrcoef(changed[0]),
        torch.corrcoef(changed[1]),
        torch.corrcoef(torch.stack(distances[1:])),
    )
