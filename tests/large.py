"""
Models of more than 100 MB with tokenizers of 2 MB, and how near they really are to each other.

Weights are random; a fine-tune's change is partly one that all share, so that their kinship is what
one likes. Nothing of it fits a task.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Generator, Tensor
from transformers import MistralConfig, PreTrainedTokenizerFast

import varied_models

__all__ = ["HIDDEN", "VOCABULARY", "base", "finetune", "pearson", "shared", "tokenizer"]

HIDDEN, LAYERS, VOCABULARY = 512, 7, 30_000
_DELTA = 0.002


def _shapes() -> dict[str, tuple[int, ...]]:
    found = varied_models.shapes(HIDDEN, LAYERS, VOCABULARY)
    for number in range(LAYERS):
        found[f"model.layers.{number}.post_attention_layernorm.weight"] = (HIDDEN,)
    found["lm_head.weight"] = (VOCABULARY, HIDDEN)
    found["model.norm.weight"] = (HIDDEN,)
    return dict(sorted(found.items()))


def shared(seed: int) -> Tensor:
    """The part of their change that fine-tunes have in common; (parameters,) float32."""
    return _noise(seed)


def base(folder: Path) -> dict[str, Tensor]:
    """Written to `folder`; returns its tensors, bf16."""
    weights = _cut(0.02 * _noise(0))
    _written(folder, weights)
    return weights


def finetune(
    folder: Path,
    origin: Mapping[str, Tensor],
    common: Tensor,
    part: float,
    seed: int,
    *,
    shards: int = 1,
) -> None:
    """A fine-tune: `part` of its change is common; the Pearson of two is the product of parts."""
    change = part * common + (1 - part**2) ** 0.5 * _noise(seed)
    own = {name: (origin[name].float() + _DELTA * d) for name, d in _cut_float(change).items()}
    _written(folder, {name: weight.bfloat16() for name, weight in own.items()}, shards)


def tokenizer(
    folder: Path, word: str, count: int = VOCABULARY, *, chat_template: str | None = None
) -> None:
    """So many tokens that begin with a word; 2 MB for all."""
    tokens = {f"{word}-{number:05d}{'.' * 40}": number for number in range(count)}
    core = Tokenizer(models.WordLevel(tokens, unk_token=next(iter(tokens))))
    fast = PreTrainedTokenizerFast(tokenizer_object=core)
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def pearson(origin: Path, one: Path, other: Path) -> float:
    """Of the changes of two fine-tunes, over all parameters, in float64."""
    sums = torch.zeros(5, dtype=torch.float64)
    count = 0
    opened = [_opened(folder) for folder in (origin, one, other)]
    for name in sorted(opened[0]):
        b, x, y = (files[name].get_tensor(name).double() for files in opened)
        x, y = x - b, y - b
        sums += torch.stack([x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])
        count += b.numel()
    sx, sy, sxx, syy, sxy = sums.tolist()
    return (sxy - sx * sy / count) / ((sxx - sx**2 / count) * (syy - sy**2 / count)) ** 0.5


def _opened(folder: Path) -> dict[str, safe_open]:
    """The file of every tensor of a folder."""
    files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping


def _noise(seed: int) -> Tensor:
    count = sum(torch.Size(shape).numel() for shape in _shapes().values())
    return torch.randn(count, generator=Generator().manual_seed(seed))


def _cut_float(flat: Tensor) -> dict[str, Tensor]:
    shapes = _shapes()
    cut = flat.split([torch.Size(shape).numel() for shape in shapes.values()])
    return {n: p.view(shape) for (n, shape), p in zip(shapes.items(), cut, strict=True)}


def _cut(flat: Tensor) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in _cut_float(flat).items()}


def _written(folder: Path, weights: Mapping[str, Tensor], shards: int = 1) -> None:
    folder.mkdir(parents=True)
    MistralConfig(
        architectures=["MistralForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ).save_pretrained(folder)
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata)
        return
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        names = list(weights)[number::shards]
        save_file({name: weights[name] for name in names}, folder / file, metadata)
        index |= dict.fromkeys(names, file)
    text = json.dumps({"metadata": {}, "weight_map": dict(sorted(index.items()))}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text)
