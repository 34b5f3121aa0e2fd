"""Whether a model can descend from a base: told from their headers and configs alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeVar

from kinship_daemon.errors import ModelError
from kinship_daemon.weights.header import FLOATS, TensorInfo
from kinship_daemon.weights.model_config import other_calculation, other_sizes

__all__ = [
    "HEAD",
    "Model",
    "alike_named",
    "alike_tied",
    "compare",
    "first_three",
    "input_embeddings",
    "other_head",
    "refuse_other_calculation",
    "refuse_quantised",
    "says_tied",
    "their_names",
]

HEAD = "lm_head.weight"
# Beside the packed weights of GPTQ, AWQ, bitsandbytes and compressed tensors.
_QUANTISED = (".qweight", ".qzeros", ".absmax", ".weight_scale", ".weight_scale_inv", ".SCB")
# Of the input, which a head may be tied to.
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings)\.weight$")


class Model(Protocol):
    """A model of which the headers are known, in a folder or on a hub."""

    @property
    def path(self) -> PurePath:
        """Where it lies, for messages."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def config(self) -> Mapping[str, Any] | None:
        """
        Its config.json; None if it has none.

        Raises:
            ModelError: It cannot be read.
        """

    def holding(self, tensors: Mapping[str, TensorInfo]) -> Self:
        """The same model, of other tensors or under other names."""


_Model = TypeVar("_Model", bound=Model)


def compare(base: Model, other: Model, *, resizable: Container[str] = ()) -> None:
    """
    Check that `other` can descend from `base`: same architecture, tensor names and shapes.

    Args:
        resizable: Tensors that may have more or fewer rows than the base's.

    Raises:
        ModelError: It cannot; the first three differences are named.
    """
    ours, theirs = _architecture(base), _architecture(other)
    if ours != theirs:
        raise ModelError(f"{other.path}: its architecture is {theirs!r}, the base's is {ours!r}")
    for model in (base, other):
        refuse_quantised(model)
    if sizes := other_sizes(base.config() or {}, other.config() or {}):
        raise ModelError(f"{other.path}: its config.json has other sizes: {first_three(sizes)}")
    _refuse_half_tied(base, other)
    differences = []
    for name in sorted({*base.tensors, *other.tensors}):
        our, their = base.tensors.get(name), other.tensors.get(name)
        difference = _difference(name, our, their, resizable=name in resizable)
        if difference:
            differences.append(difference)
    if differences:
        raise ModelError(
            f"{other.path}: its weights do not fit the base's: {first_three(differences)}"
        )


def refuse_other_calculation(base: Model, other: Model) -> None:
    """
    See that a model's config calculates as its base's does, of the same architecture.

    Raises:
        ModelError: It does not. What is built of its weights would calculate as the base, and give
            other answers than were trained.
    """
    if _architecture(base) != _architecture(other):
        return  # which is told by `compare`
    if otherwise := other_calculation(base.config() or {}, other.config() or {}):
        raise ModelError(
            f"{other.path}: its config.json calculates otherwise: {first_three(otherwise)} "
            "(allow_other_calculation admits it, with the base's values)",
            cause="settings",
            setting="triage.allow_other_calculation",
        )


def first_three(differences: Sequence[str]) -> str:
    """Enough to see what is wrong, and how many more there are."""
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(differences[:3]) + more


def their_names(theirs: Collection[str], own: Collection[str]) -> dict[str, str]:
    """
    What each tensor of `own` is called in `theirs`.

    transformers reads checkpoints with its `base_model_prefix` before the names and without:
    GPT-2's own file has `h.0.ln_1.weight`, its fine-tunes have `transformer.h.0.ln_1.weight`.
    A name that fits in neither way, or for which `own` has two tensors, stays.
    """
    before, after = _first_part(theirs), _first_part(own)

    def called(name: str) -> str:
        tried = (name, before + name, name.removeprefix(after))
        return next((each for each in tried if each in theirs), name)

    found = {name: called(name) for name in own}
    times = Counter(found.values())
    return {name: other if times[other] == 1 else name for name, other in found.items()}


def alike_named(base: Model, other: _Model) -> _Model:
    """`other` with its tensors under the base's names (`their_names`)."""
    called = their_names(base.tensors, other.tensors)
    if all(name == own for own, name in called.items()):
        return other
    found = {called[name]: info for name, info in other.tensors.items()}
    return other.holding(MappingProxyType(dict(sorted(found.items()))))


def _first_part(names: Collection[str]) -> str:
    """What most names begin with, its point included; empty where there are none."""
    parts = Counter(first + point for first, point, _ in (name.partition(".") for name in names))
    return parts.most_common(1)[0][0] if parts else ""


def alike_tied(base: Model, other: _Model) -> _Model:
    """
    `other` without the second copy of tied embeddings that only its base gives away.

    A config that says nothing of tying means its architecture's default. Where the base's is
    silent too and the base has no lm_head of its own, that default is to tie.
    """
    silent = says_tied(base) is None and says_tied(other) is None
    if not silent or HEAD in base.tensors or HEAD not in other.tensors:
        return other
    kept = {name: info for name, info in other.tensors.items() if name != HEAD}
    return other.holding(MappingProxyType(kept))


def input_embeddings(names: Iterable[str]) -> str | None:
    """The tensor that a head may be tied to, if it is among these."""
    return next((name for name in names if _EMBEDDINGS.search(name)), None)


def other_head(path: PurePath, embeddings: str) -> ModelError:
    """What is wrong with a model whose head is said to be tied and is not."""
    return ModelError(
        f"{path}: its {HEAD} differs from {embeddings}, which its config.json says "
        "are tied; save it with tie_word_embeddings false or without the head"
    )


def says_tied(model: Model) -> bool | None:
    """What config.json says of tied embeddings; None where it says nothing."""
    said = (model.config() or {}).get("tie_word_embeddings")
    return None if said is None else bool(said)


def _architecture(model: Model) -> str:
    config = model.config()
    if config is None:
        raise ModelError(f"{model.path}: has no config.json")
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return ", ".join(str(name) for name in named)
    raise ModelError(f"{model.path / 'config.json'}: names no architectures")


def refuse_quantised(model: Model) -> None:
    """
    See that a model has its weights in full.

    Raises:
        ModelError: They are packed by a quantiser; one tensor is named.
    """
    for name, info in model.tensors.items():
        if info.dtype not in FLOATS or name.endswith(_QUANTISED):
            raise ModelError(
                f"{model.path}: its weights are quantised ({name} is {info.dtype}); "
                "only full weights (F32, F16, BF16) can be compared and merged"
            )


def _refuse_half_tied(base: Model, other: Model) -> None:
    if says_tied(base) and says_tied(other) is False and HEAD not in other.tensors:
        raise ModelError(
            f"{other.path}: its config.json says that its embeddings are not tied, as the base's "
            f"are, but it has no {HEAD}"
        )
    for tied, untied, words in (
        (base, other, "has an lm_head.weight of its own, the base's embeddings are tied"),
        (other, base, "has no lm_head.weight (tied embeddings), the base has one of its own"),
    ):
        half = HEAD in untied.tensors and HEAD not in tied.tensors
        if half and says_tied(tied) is not False:
            raise ModelError(f"{other.path}: {words}; these cannot be merged")


def _difference(
    name: str, ours: TensorInfo | None, theirs: TensorInfo | None, *, resizable: bool
) -> str | None:
    if theirs is None:
        return f"{name} is missing"
    if ours is None:
        return f"{name} is not in the base"
    skipped = 1 if resizable else 0
    if ours.shape[skipped:] != theirs.shape[skipped:] or len(ours.shape) != len(theirs.shape):
        return f"{name} is {_dimensions(theirs)}, the base's is {_dimensions(ours)}"
    return None


def _dimensions(info: TensorInfo) -> str:
    return "x".join(str(n) for n in info.shape) or "a scalar"
