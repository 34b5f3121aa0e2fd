"""
Our span merges against mergekit's own, as written to disk, on every architecture.

mergekit is asked to compute in float32 and to write bfloat16, as we do. What still differs is the
order of sums: it takes norms, products and sums of whole tensors in float32, where our factors come
from float64 inner products and only the last sum, over full weights, is made in float32. So a value
next to a rounding boundary may fall to either side: one bf16 step, in few elements. Where the terms
of that sum cancel, what is left are the float32 roundings of the terms, theirs and ours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import architectures
import ledgers
import mergekit_oracle
import reference
import tiny
from kinship_daemon.weights import materialise
from kinship_daemon.weights.assembly import assemble
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.recipe import Recipe, combine, leaf

LEAVES = ("x", "y", "z")
# Attention gets another value than the rest, and that a gradient over the layers.
BY_PART = [{"filter": "self_attn", "value": [0.1, 0.9]}, {"value": 0.4}]
# Our recipe's method, number of parents and parameters; whether mergekit is given the base_model.
RECIPES: dict[str, tuple[str, int, dict[str, Any], bool]] = {
    "linear": ("linear", 3, {"weight": [0.5, 0.3, 0.9]}, False),
    "linear by part": (
        "linear",
        2,
        {"weight": [BY_PART, [0.2, 0.6]], "normalize": False},
        False,
    ),
    "slerp": ("slerp", 2, {"t": 0.3}, False),
    "slerp by part": ("slerp", 2, {"t": BY_PART}, False),
    "task_arithmetic": ("task_arithmetic", 3, {"weight": [0.6, -0.3, 1.0], "lambda": 0.7}, True),
    "task_arithmetic normalized": (
        "task_arithmetic",
        2,
        {"weight": [BY_PART, 0.8], "normalize": True},
        True,
    ),
    "nuslerp": ("nuslerp", 2, {"weight": [1.0, 3.0]}, False),
    "nuslerp of deltas": ("nuslerp", 2, {"weight": [BY_PART, 0.5], "of_deltas": True}, True),
    "multislerp": ("multislerp", 3, {"weight": [0.5, 0.3, 0.9]}, False),
    "multislerp of deltas": (
        "multislerp",
        3,
        {"weight": [0.5, BY_PART, 0.9], "normalize_weights": False, "of_deltas": True},
        True,
    ),
    "karcher": ("karcher", 3, {}, False),
    "karcher in two steps": ("karcher", 3, {"max_iter": 2, "tol": 1e-6}, False),
    "model_stock": ("model_stock", 3, {}, True),
}


@dataclass(frozen=True, eq=False)
class Family:
    """A base and three fine-tunes, x with the base's own embeddings, in folders of `scratch`."""

    scratch: Path
    ledger: Ledger


@pytest.fixture(scope="module", params=architectures.ARCHITECTURES)
def family(request, tmp_path_factory) -> Family:
    return make_family(request.param, tmp_path_factory.mktemp(request.param), torch.bfloat16)


@pytest.fixture(scope="module")
def float32_family(tmp_path_factory) -> Family:
    return make_family("Qwen2ForCausalLM", tmp_path_factory.mktemp("float32"), torch.float32)


def make_family(architecture: str, scratch: Path, dtype: torch.dtype) -> Family:
    base = architectures.base(architecture, scratch / "base", dtype=dtype)
    trained = [name for name in tiny.tensors(base) if "embed" not in name]
    tiny.finetune(base, scratch / "x", seed=1, tensors=trained)
    tiny.finetune(base, scratch / "y", seed=2, scale=0.05)
    tiny.finetune(base, scratch / "z", seed=3, scale=0.2)
    return Family(scratch, ledgers.of(base, {name: scratch / name for name in LEAVES}))


def ours(family: Family, out: Path, name: str) -> reference.Weights:
    method, parents, parameters, _ = RECIPES[name]
    ledger, base = family.ledger, family.scratch / "base"
    recipe = Recipe(method, LEAVES[:parents], parameters)
    child = combine(ledger, recipe, [leaf(ledger, row) for row in recipe.parents])
    folders = {row: family.scratch / row for row in LEAVES}
    materialise.write(assemble(ledger, child, base, folders, "child", donor=base), out)
    return tiny.tensors(out)


def theirs(family: Family, out: Path, name: str, dtype: str) -> reference.Weights:
    return tiny.tensors(mergekit_oracle.merge(in_yaml(family.scratch, dtype, *RECIPES[name]), out))


def in_yaml(
    scratch: Path,
    out_dtype: str,
    method: str,
    parents: int,
    parameters: dict[str, Any],
    based: bool,
) -> str:
    """The recipe in mergekit's words: slerp's first parent is its base_model."""
    shared = {key: value for key, value in parameters.items() if key != "of_deltas"}
    weights = shared.pop("weight", None)
    models = [{"model": str(scratch / row)} for row in LEAVES[:parents]]
    for index, model in enumerate(models if weights else []):
        model["parameters"] = {"weight": weights[index]}
    recipe = {
        "merge_method": method,
        "models": models,
        "parameters": shared,
        "dtype": "float32",
        "out_dtype": out_dtype,
    }
    if based or method == "slerp":
        recipe["base_model"] = str(scratch / "base") if based else models[0]["model"]
    return yaml.safe_dump(recipe)


def bf16_steps(one: torch.Tensor, other: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
    """
    How many bf16 numbers lie from one to the other; 0 where a float32 sum cannot tell.

    Args:
        term: The size of the sum's largest term, for each value.
    """
    assert one.dtype == other.dtype == torch.bfloat16

    def place(values: torch.Tensor) -> torch.Tensor:
        bits = values.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)  # so numbered, neighbours differ by 1

    rounding = (one.double() - other.double()).abs() <= 2 * term * 2.0**-24
    return torch.where(rounding, 0, (place(one) - place(other)).abs()).reshape(-1)


def terms(family: Family) -> reference.Weights:
    """Per value, the largest that goes into its sum."""
    models = [tiny.tensors(family.scratch / row) for row in ("base", *LEAVES)]
    return {key: torch.stack([m[key].double().abs() for m in models]).amax(0) for key in models[0]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_merge_is_mergekits_to_a_step_of_bf16(family, tmp_path, name):
    mine = ours(family, tmp_path / "ours", name)
    other = theirs(family, tmp_path / "theirs", name, "bfloat16")
    assert mine.keys() == other.keys()
    term = terms(family)
    steps = torch.cat([bf16_steps(mine[key], other[key], term[key]) for key in sorted(mine)])
    assert float((steps <= 1).double().mean()) >= 0.999
    assert int(steps.max()) <= 2
    assert float((steps == 0).double().mean()) >= 0.99


@pytest.mark.parametrize("name", RECIPES)
def test_in_float32_a_merge_is_mergekits_to_its_last_bits(float32_family, tmp_path, name):
    mine = ours(float32_family, tmp_path / "ours", name)
    other = theirs(float32_family, tmp_path / "theirs", name, "float32")
    assert mine.keys() == other.keys()
    for key in sorted(mine):
        assert mine[key].dtype == other[key].dtype == torch.float32
        # Of sums of up to four terms, each below 8: a few float32 roundings.
        assert torch.allclose(mine[key], other[key], rtol=0, atol=2.0**-20), key


# What a tensor's name contains in one architecture and not in the others.
OWN = {
    "Qwen2ForCausalLM": "q_proj.bias",
    "Qwen3ForCausalLM": "q_norm",
    "Gemma2ForCausalLM": "pre_feedforward_layernorm",
}


def test_every_architecture_has_its_own_tensors_and_its_child_runs(family, tmp_path):
    names = ours(family, tmp_path / "child", "karcher").keys()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "child", dtype="auto")
    architecture = type(model).__name__
    assert {a for a, part in OWN.items() if any(part in name for name in names)} == (
        {architecture} & OWN.keys()
    )
    assert model.config.tie_word_embeddings == ("lm_head.weight" not in names)
    logits = model(torch.arange(20)[None]).logits
    assert bool(logits.isfinite().all())
    base = AutoModelForCausalLM.from_pretrained(family.scratch / "base", dtype="auto")
    assert not torch.equal(base(torch.arange(20)[None]).logits, logits)
