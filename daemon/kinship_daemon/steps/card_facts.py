"""What a merge's model card says, gathered from the lineage."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from itertools import combinations
from typing import get_args

from kinship_daemon.context import Context
from kinship_daemon.evaluate.settings import harness_versions
from kinship_daemon.evaluate.verdict import few_documents, life_words, verdict_words
from kinship_daemon.hub.card import CardFacts
from kinship_daemon.hub.licence import most_restrictive
from kinship_daemon.steps.assemblies import coefficients, kinship_matrix, leaf_models
from kinship_daemon.steps.leaves import is_leaf
from kinship_daemon.steps.scores import parents_of, scores
from kinship_daemon.weights.checkpoint import DTYPES
from kinship_daemon.weights.mergekit import collapsed_yaml, several_yaml, to_yaml
from kinship_daemon.weights.recipe import Recipe
from kinship_storage.records import Model, Score, Split

__all__ = ["card_facts", "factors_table"]


def card_facts(context: Context, model: Model, repo: str) -> CardFacts:
    """
    Everything the card says about a merge that passed the gate.

    Under the same settings and versions the same merge has the same card.
    """
    family = context.lineage.ancestors(model)
    leaves = [each for each in family if each.recipe is None]
    parents = parents_of(context, model)
    assert model.recipe is not None
    recipe = Recipe.from_json(model.recipe)
    base = context.base.name
    licences = {each.id: each.license for each in (context.base, *leaves)}
    terms = most_restrictive(licences, context.config.publish.allow_licenses)
    sources = (context.base, *leaves)
    return CardFacts(
        model=model,
        repo=repo,
        base=base,
        licence=terms.licence or "unknown",
        base_models=tuple(dict.fromkeys(_on_hub(context, model))),
        scores={each.id: _scores(context, each) for each in (model, *parents)},
        verdict=_verdict(context, model),
        family=tuple(family),
        called={each.id: _called(context, each) for each in family},
        metric=context.config.kinship.metric,
        kinships=_kinships(context, [*leaves, *parents]),
        sources=tuple((each, tuple(context.lineage.files(each.id))) for each in sources),
        made=to_yaml(recipe, _names(context, model), base, _dtype(context)),
        collapsed=_from_leaves(context, model),
        factors=() if is_leaf(model) else _factors(context, model),
        version=version("kinship-daemon"),
        settings=_settings(context),
        hub_url=context.hub.name if "://" in context.hub.name else None,
    )


def _verdict(context: Context, model: Model) -> str | None:
    """The gate's words, with the other model called as the card calls it, and what they mean."""
    gate = context.lineage.gate(model.id, context.settings.fingerprint("validation"))
    if gate is None:
        return None
    if gate.p is None or gate.alpha is None:
        return gate.reason  # of the gate before schema 4
    words = verdict_words(
        gate.passed,
        gate.gain,
        (gate.low, gate.high),
        gate.n,
        against=_called(context, context.lineage.require(gate.against)),
        p=gate.p,
        alpha=gate.alpha,
        min_gain=gate.settings["min_gain"],
    )
    few = few_documents(scores(context, model, "validation", samples=False))
    return ". ".join(part for part in (words, life_words(gate), few) if part)


def factors_table(context: Context, model: Model) -> str | None:
    """
    Every tensor's factors as CSV; None of a merge that is no combination of leaves.

    A line per tensor: its name, the factor of the base, and of every leaf's delta.
    """
    if is_leaf(model):
        return None
    made_of = coefficients(context, model)
    leaves = leaf_models(context, made_of)
    lines = [",".join(["tensor", context.base.id, *(leaf.id for leaf in leaves.values())])]
    for name, base, deltas in zip(
        context.ledger.names, made_of.base.tolist(), made_of.deltas.tolist(), strict=True
    ):
        lines.append(",".join([name, f"{base:.9g}", *(f"{factor:.9g}" for factor in deltas)]))
    return "\n".join(lines) + "\n"


# What tensors are for, by parts of their names; the first that is found says it.
_GROUPS = (
    ("norms", ("norm", "ln_", "layernorm")),
    ("embeddings", ("embed", "wte", "wpe")),
    ("head", ("lm_head",)),
    ("attention", ("attn", "attention")),
    ("feed-forward", ("mlp", "feed_forward", "experts", "ffn")),
)


def _factors(context: Context, model: Model) -> tuple[tuple[str, str, float], ...]:
    """Mean factor of each leaf's delta over the tensors of a group."""
    made_of = coefficients(context, model)
    leaves = leaf_models(context, made_of)
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(context.ledger.names):
        groups.setdefault(_group(name), []).append(place)
    return tuple(
        (group, leaf.id, float(made_of.deltas[places, column].mean()))
        for group, places in sorted(groups.items())
        for column, leaf in enumerate(leaves.values())
    )


def _group(tensor: str) -> str:
    found = (group for group, marks in _GROUPS if any(mark in tensor.lower() for mark in marks))
    return next(found, "others")


def _scores(context: Context, model: Model) -> tuple[Score, ...]:
    return tuple(
        row for split in get_args(Split) for row in scores(context, model, split, samples=False)
    )


def _called(context: Context, model: Model) -> str:
    """A model as others can find it: by repo, published or not yet by its name in the lineage."""
    publication = context.lineage.publication(model.id)
    return publication.repo if publication else model.name


def _from_leaves(context: Context, model: Model) -> str:
    """
    The merge as it can be made again from fine-tunes alone.

    One document where algebra collapses it; otherwise one for each merge that it rests on, too.
    """
    parts: dict[str, str] = {}
    last = _document(context, model, _dtype(context), parts)
    return several_yaml(parts, last) if parts else last


def _document(context: Context, model: Model, dtype: str, parts: dict[str, str]) -> str:
    """The YAML of one merge; those of the merges that it names are added to `parts` before it."""
    base = context.base.name
    assert model.recipe is not None
    if is_leaf(model):
        parents = [context.lineage.require(name) for name in model.parents]
        called = {each.id: _part(context, each, parts) for each in parents}
        return to_yaml(Recipe.from_json(model.recipe), called, base, dtype)
    combination = coefficients(context, model)
    leaves = leaf_models(context, combination)
    names = {weights: _part(context, leaf, parts) for weights, leaf in leaves.items()}
    return collapsed_yaml(context.ledger, combination, names, base, dtype)


def _part(context: Context, model: Model, parts: dict[str, str]) -> str:
    """What to call a model in the YAML: a fine-tune by its repo, a merge by its own document."""
    if model.recipe is None:
        adapter = any(
            file.path == "adapter_config.json" for file in context.lineage.files(model.id)
        )
        return f"{context.base.name}+{model.name}" if adapter else model.name
    if model.id not in parts:
        # A leaf is rounded when it is written; what only passes through is not.
        parts[model.id] = _document(
            context, model, _dtype(context) if is_leaf(model) else "float32", parts
        )
    return model.id


def _names(context: Context, model: Model) -> dict[str, str]:
    return {parent.id: _called(context, parent) for parent in parents_of(context, model)}


def _on_hub(context: Context, model: Model) -> list[str]:
    """The nearest ancestors that stand on the hub."""
    found = []
    for name in model.parents:
        parent, publication = context.lineage.require(name), context.lineage.publication(name)
        if publication is not None:
            found.append(publication.repo)
        elif parent.recipe is None:
            found.append(parent.name)
        else:
            found += _on_hub(context, parent)
    return found


def _kinships(context: Context, models: list[Model]) -> tuple[tuple[str, str, float | None], ...]:
    known = {model.id: model for model in models}
    names = sorted(known)
    values = kinship_matrix(context, [known[n] for n in names], context.config.kinship.metric)
    places = combinations(range(len(names)), 2)
    return tuple((names[i], names[j], values[i][j]) for i, j in places)


def _dtype(context: Context) -> str:
    """The dtype that most of the base's tensors have, as mergekit and torch call it."""
    counts = Counter(info.dtype for info in context.base_checkpoint.tensors.values())
    return str(DTYPES[counts.most_common(1)[0][0]]).removeprefix("torch.")


def _settings(context: Context) -> dict[str, str]:
    settings = context.settings
    return {
        "harness": harness_versions(),
        "seed": str(settings.seed),
        "few-shot examples": ", ".join(
            f"{spec.task} {'default' if spec.num_fewshot is None else spec.num_fewshot}"
            for spec in settings.selection
        ),
        "documents per task": "all" if settings.limit is None else f"at most {settings.limit}",
        "batch size": str(settings.batch_size),
        "dtype": settings.dtype,
        "device": settings.resolved_device(),
        "chat template": "applied" if settings.apply_chat_template else "not applied",
    }
