"""
LoRA adapters as PEFT saves them: what each changes of its base, tensor by tensor.

The delta of an adapted matrix is `scale * B @ A` with scale alpha/r (LoRA, arXiv 2106.09685) or
alpha/sqrt(r) (rank-stabilised, arXiv 2312.03732). It is kept as two thin factors.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinship_daemon.errors import ModelError
from kinship_daemon.foreign.limits import Malformed
from kinship_daemon.foreign.patterns import Patterns
from kinship_daemon.foreign.shown import shown
from kinship_daemon.model_files import ADAPTER, ADAPTER_CONFIG, INDEX, SINGLE
from kinship_daemon.weights.checkpoint import (
    FLOATS,
    Checkpoint,
    first_three,
    read_json,
    why_empty,
)
from kinship_daemon.weights.fit import (
    HEAD,
    input_embeddings,
    refuse_quantised,
    says_tied,
    their_names,
)
from kinship_daemon.weights.header import TensorInfo, read_header
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["Adapter", "Content", "LowRank", "is_adapter", "named_base", "refuse_other_base"]

_PREFIX = "base_model.model."
# As of a hub; an absolute path or ./folder is where its author kept the base, which says nothing.
_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# The name of the adapter ("default") may stand before or instead of "weight".
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])"
    r"(\.(?!(weight|bias)$)(?P<adapter>[^.]+))?(\.weight)?"
)
# What makes the result anything but W + scale * B @ A.
_OTHER_FORMS = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA on bare parameters",
    "lora_bias": "LoRA with biases of its own",
}
# Others (pissa, olora, corda, loftq, ...) begin by changing the base's weights.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, eq=False)
class LowRank:
    """
    The delta `up @ down` of one matrix.

    Attributes:
        up: (rows, r) float32, with the adapter's scale in it.
        down: (r, columns) float32.
    """

    up: Tensor
    down: Tensor


# The weights w in the base's shape and a dtype of their own; or the delta alone; or None where the
# model has the base's own tensor.
Content = Tensor | LowRank | None


@dataclass(frozen=True)
class _Factors:
    """Names of A and B in the file; `across` where the base keeps their product transposed."""

    a: str
    b: str
    scale: float
    across: bool


@dataclass(frozen=True, eq=False)
class Adapter:
    """
    An adapter whose names and shapes fit its base.

    Attributes:
        base: What it was trained on.
        checkpoint: Its own tensors, under PEFT's names.
        factors: Low-rank deltas, by the base's tensor name.
        full: Names in the file of tensors that replace the base's, by the base's name.
    """

    base: Checkpoint
    checkpoint: Checkpoint
    factors: Mapping[str, _Factors]
    full: Mapping[str, str]

    @classmethod
    def open(cls, base: Checkpoint, path: Path) -> "Adapter":
        """
        Read settings and header, and check both against the base.

        Raises:
            ModelError: It is no plain LoRA, is empty, or does not fit; three differences are named.
        """
        refuse_quantised(base)
        settings = read_json(path / ADAPTER_CONFIG)
        if not (path / ADAPTER).is_file():
            raise ModelError(f"{path}: has no {ADAPTER}; adapters in pickle files are never read")
        checkpoint = Checkpoint(path, read_header(path / ADAPTER))
        _refuse_other_forms(path, settings, checkpoint)
        _refuse_empty(checkpoint)
        adapter = cls(base, checkpoint, *_sorted(base, path, settings, checkpoint))
        if differences := adapter._misfits():
            raise ModelError(f"{path}: does not fit its base: {first_three(differences)}")
        if not adapter.full and not any(adapter._changes(name) for name in adapter.factors):
            raise ModelError(
                f"{path}: changes nothing of its base: every lora_B is zero, as before training"
            )
        return adapter

    @property
    def names(self) -> list[str]:
        """The base's tensors that it changes, sorted."""
        return sorted({*self.factors, *self.full})

    def whole(self, name: str) -> TensorInfo | None:
        """The tensor that it has in place of the base's, if it has one."""
        return self.checkpoint.tensors[self.full[name]] if name in self.full else None

    def content(self, name: str, *, dense: bool = False) -> Content:
        """
        One tensor; its rows are the adapter's own where it has grown the vocabulary.

        `dense` asks for the weights also where they are the base's and a low-rank delta.
        """
        delta = self._low_rank(self.factors[name]) if name in self.factors else None
        if name not in self.full:
            return delta
        own = self.checkpoint.tensor(self.full[name])
        if delta is None:
            return own
        # PEFT saves the embeddings below a LoRA on them, as a rule untouched.
        base = self.base.tensor(name)
        if not dense and own.dtype == base.dtype and torch.equal(own, base):
            return delta
        return torch.addmm(own.float(), delta.up, delta.down)

    def _changes(self, name: str) -> bool:
        return bool(self.checkpoint.tensor(self.factors[name].b).any())

    def _low_rank(self, factors: _Factors) -> LowRank:
        a = self.checkpoint.tensor(factors.a).float()
        b = self.checkpoint.tensor(factors.b).float() * factors.scale
        return LowRank(a.T.contiguous(), b.T.contiguous()) if factors.across else LowRank(b, a)

    def _misfits(self) -> list[str]:
        found = []
        for name in self.names:
            if name not in self.base.tensors:
                found.append(f"the base has no {name}")
                continue
            shape = self.base.tensors[name].shape
            files = [*filter(None, [self.whole(name), *self._sides(name)])]
            if odd := [info.dtype for info in files if info.dtype not in FLOATS]:
                found.append(f"{name} is {odd[0]} (quantised or no weights)")
            if own := self.whole(name):
                skipped = 1 if is_vocabulary(name) else 0
                if own.shape[skipped:] != shape[skipped:] or len(own.shape) != len(shape):
                    found.append(f"{name} is {list(own.shape)}, the base's is {list(shape)}")
                shape = own.shape
            if name in self.factors and (product := self._product(name)) != shape:
                found.append(f"{name} is {list(shape)}, its A and B make {list(product)}")
        return found

    def _product(self, name: str) -> tuple[int, ...]:
        """Shape of the delta; empty where A and B do not fit together."""
        a, b = (info.shape for info in self._sides(name))
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            return ()
        return (a[1], b[0]) if self.factors[name].across else (b[0], a[1])

    def _sides(self, name: str) -> tuple[TensorInfo, ...]:
        """A and B as the file has them; nothing where the tensor is not adapted."""
        factors = self.factors.get(name)
        sides = () if factors is None else (factors.a, factors.b)
        return tuple(self.checkpoint.tensors[side] for side in sides)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    whole = (folder / SINGLE).exists() or (folder / INDEX).exists()
    return not whole and (folder / ADAPTER_CONFIG).is_file()


def named_base(folder: Path) -> str | None:
    """The model of the hub that an adapter says it was trained on; None where it names none."""
    said = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    return said if isinstance(said, str) and _REPO_ID.fullmatch(said) else None


def refuse_other_base(folder: Path, base_id: str) -> None:
    """
    See that an adapter does not say itself that it was trained on another model of the hub.

    Args:
        base_id: Of the base on the hub: org/name, or the name alone as of the oldest models.

    Raises:
        ModelError: It does. Its shapes may fit all the same, and its delta would be a false one.
    """
    said = named_base(folder)
    if said is None:
        return
    own = said if "/" in base_id else said.rpartition("/")[2]
    if own.lower() != base_id.lower():
        raise ModelError(
            f"{folder}: its {ADAPTER_CONFIG} says that it was trained on {shown(said)}, "
            f"not on {base_id}"
        )


def _refuse_other_forms(path: Path, settings: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{path}: a {shown(kind)} adapter; only plain LoRA can be merged")
    forms = [form for key, form in _OTHER_FORMS.items() if settings.get(key)]
    if any("lora_magnitude_vector" in name for name in checkpoint.tensors):
        forms = ["DoRA"]
    if forms:
        raise ModelError(f"{path}: uses {forms[0]}; only plain LoRA can be merged")
    beginning = settings.get("init_lora_weights")
    if not (beginning is None or isinstance(beginning, str | bool)) or beginning not in _BEGINNINGS:
        raise ModelError(
            f"{path}: began as '{shown(beginning)}', which changes the base's weights; "
            "convert it to plain LoRA first"
        )


def _refuse_empty(checkpoint: Checkpoint) -> None:
    if not checkpoint.tensors:
        raise ModelError(
            f"{checkpoint.path}: its {ADAPTER} holds no tensors; it was not saved whole"
        )
    if empty := next((info for info in checkpoint.tensors.values() if not info.elements), None):
        raise ModelError(f"{checkpoint.path}: {why_empty(empty)}")


def _sorted(
    base: Checkpoint, path: Path, settings: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[dict[str, _Factors], dict[str, str]]:
    """The file's tensors as factors and as full tensors, by the base's names."""
    sides: dict[tuple[str, bool], dict[str, str]] = {}
    full: dict[str, str] = {}
    for name in checkpoint.tensors:
        found = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if found is None:
            # PEFT may save what a trained module replaces, too.
            if ".original_module." not in name:
                full[_plain(name)] = name
            continue
        pair = sides.setdefault((found["module"], found["kind"] is not None), {})
        if found["side"] in pair:
            raise ModelError(f"{path}: holds two adapters for {found['module']}; keep one")
        pair[found["side"]] = name
    if _is_tied(base):
        _refuse_untied(checkpoint, settings, [module for module, _ in sides], full)
        if input_embeddings(full):
            full.pop(HEAD, None)  # their second copy
    adapted = [f"{module}.weight" for module, _ in sides]
    called = their_names(base.tensors, [*adapted, *full])
    factors = {}
    ranks = _Setting(path, settings, "rank_pattern", "r")
    alphas = _Setting(path, settings, "alpha_pattern", "lora_alpha")
    for (module, embedding), pair in sorted(sides.items()):
        if len(pair) != 2:
            lacks = "B" if "A" in pair else "A"
            raise ModelError(f"{path}: has no lora_{lacks} for {module}")
        across = embedding or bool(settings.get("fan_in_fan_out"))
        rank = checkpoint.tensors[pair["A"]].shape[:1]
        r, alpha = ranks.of(module), alphas.of(module)
        if rank != (r,):
            raise ModelError(
                f"{path}: {module} has rank {[*rank]}, but {ADAPTER_CONFIG} says {r:g}"
            )
        scale = alpha / (math.sqrt(r) if settings.get("use_rslora") else r)
        factors[called[f"{module}.weight"]] = _Factors(pair["A"], pair["B"], scale, across)
    return factors, {called[name]: own for name, own in full.items()}


def _plain(name: str) -> str:
    """The base's name of a tensor that PEFT saved whole."""
    inner = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
    return re.sub(r"\.modules_to_save(\.default)?\.", ".", inner)


def _is_tied(base: Checkpoint) -> bool:
    return HEAD not in base.tensors and says_tied(base) is not False


def _refuse_untied(
    checkpoint: Checkpoint, settings: Mapping[str, Any], adapted: list[str], full: dict[str, str]
) -> None:
    """
    See that an adapter leaves tied embeddings tied.

    PEFT changes the input embeddings and leaves the head as it was, or the other way round; only
    `merge_and_unload`, which is not what was trained, changes both. What it saves whole beside an
    adapter, the head among it, is as a rule untrained.

    Raises:
        ModelError: It unties them.
    """
    path = checkpoint.path
    saved = settings.get("modules_to_save")
    trained = saved if isinstance(saved, list) else []
    embeddings = input_embeddings(full)
    names = {name.removesuffix(".weight") for name in (embeddings, HEAD) if name in full}
    apart = [n for n in names if any(f".{n}".endswith(f".{each}") for each in trained)]
    tied = settings.get("ensure_weight_tying") is True
    adapts = [name for name in adapted if is_vocabulary(f"{name}.weight")]
    if adapts or (apart and not tied):
        raise ModelError(
            f"{path}: trains {min(adapts or apart)} apart from what the base ties it to, so that "
            "the result is no longer tied as its base; these cannot be merged"
        )
    if embeddings is None or HEAD not in full:
        return
    one, other = (checkpoint.tensor(full[name]) for name in (embeddings, HEAD))
    if one.dtype != other.dtype or not torch.equal(one, other):
        raise ModelError(
            f"{path}: its {HEAD} differs from {embeddings}, which its base ties; "
            "these cannot be merged"
        )


class _Setting:
    """A number that some modules have of their own: rank or alpha."""

    def __init__(self, path: Path, settings: Mapping[str, Any], pattern: str, key: str) -> None:
        self._path, self._key = path, key
        own = settings.get(pattern) or {}
        try:
            self._values = dict(own)
            self._patterns = Patterns(self._values)
        except Malformed as error:
            raise ModelError(f"{path}: {ADAPTER_CONFIG} has no usable {key}: {error}") from None
        except (TypeError, ValueError):
            raise ModelError(
                f"{path}: {ADAPTER_CONFIG} has no usable {key}: {pattern} maps nothing"
            ) from None
        self._common: Any = settings.get(key)

    def of(self, module: str) -> float:
        """The value of the first pattern that matches the end of its name, else the common one."""
        path, key = self._path, self._key
        try:
            matching = self._patterns.first(module)
            value = float(self._common if matching is None else self._values[matching])
        except Malformed as error:
            raise ModelError(f"{path}: {ADAPTER_CONFIG}: {error}") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(
                f"{path}: {ADAPTER_CONFIG} has no usable {key} for {module}"
            ) from error
        if not (math.isfinite(value) and (value > 0 or key != "r")):
            raise ModelError(f"{path}: {ADAPTER_CONFIG} has the {key} {value:g} for {module}")
        return value
