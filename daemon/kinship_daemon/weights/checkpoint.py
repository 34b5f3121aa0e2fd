"""A model's named tensors, memory mapped from one safetensors file or from shards with an index."""

import hashlib
import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kinship_daemon.errors import ModelError
from kinship_daemon.weights.header import DTYPES, TensorInfo, read_header

__all__ = [
    "DTYPES",
    "Checkpoint",
    "TensorInfo",
    "alike_tied",
    "compare",
    "first_three",
    "follows_from_config",
    "read_json",
    "weights_identity",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_MAX_JSON_BYTES = 100_000_000
_LONGEST_NAME = 200
# Buffers that old transformers saved and every one we support computes from config.json.
_COMPUTED = re.compile(r"(^|\.)(\w*inv_freq|cos_cached|sin_cached|masked_bias|position_ids)$")
# The causal mask of GPT-2 and its kin; a bias that is learnt is a vector of floats.
_MASK = re.compile(r"\.(attn|attention)\.bias$")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Checkpoint:
    """
    The weights in one folder. Opening reads headers only; tensors are mapped when asked for.

    Left out: buffers that follow from config.json (rotary tables, causal masks, positions), and the
    second copy of tied embeddings, which some trainers save and which the model never reads.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    _open_files: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """
        Check a folder's weight files.

        Raises:
            ModelError: No safetensors (pickle files are named), or a truncated or corrupt file.
        """
        found: dict[str, TensorInfo] = {}
        for file in _weight_files(path):
            for name, info in read_header(path / file).items():
                if name in found:
                    raise ModelError(f"{path}: tensor {name} is in {found[name].file} and {file}")
                found[name] = info
        _check_index(path, found)
        tied = _says_tied(path)
        kept = {
            name: found[name]
            for name in sorted(found)
            if not _is_computed(found[name]) and not (tied and name == _HEAD)
        }
        if not kept:
            raise ModelError(f"{path}: its weight files hold no tensors")
        return cls(path, MappingProxyType(kept))

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted({info.file for info in self.tensors.values()}))

    @property
    def parameters(self) -> int:
        return sum(info.elements for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype and shape, on the CPU, mapped from its file: not a copy."""
        file = self.tensors[name].file
        try:
            if file not in self._open_files:
                self._open_files[file] = safe_open(self.path / file, framework="pt")
            tensor: torch.Tensor = self._open_files[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self.path / file}: cannot be read: {error}") from error
        return tensor


def compare(base: Checkpoint, other: Checkpoint, *, resizable: Container[str] = ()) -> None:
    """
    Check that `other` can descend from `base`: same architecture, tensor names and shapes.

    Args:
        resizable: Tensors that may have more or fewer rows than the base's.

    Raises:
        ModelError: It cannot; the first three differences are named.
    """
    ours, theirs = _architecture(base.path), _architecture(other.path)
    if ours != theirs:
        raise ModelError(f"{other.path}: its architecture is {theirs!r}, the base's is {ours!r}")
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


def first_three(differences: Sequence[str]) -> str:
    """Enough to see what is wrong, and how many more there are."""
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(differences[:3]) + more


def alike_tied(base: Checkpoint, other: Checkpoint) -> Checkpoint:
    """
    `other` without the second copy of tied embeddings that only its base gives away.

    A config that says nothing of tying means its architecture's default. Where the base's is
    silent too and the base has no lm_head of its own, that default is to tie.
    """
    silent = _says_tied(base.path) is None and _says_tied(other.path) is None
    if not silent or _HEAD in base.tensors or _HEAD not in other.tensors:
        return other
    kept = {name: info for name, info in other.tensors.items() if name != _HEAD}
    return replace(other, tensors=MappingProxyType(kept))


def follows_from_config(name: str, *, is_float: bool, dimensions: int) -> bool:
    """Whether a tensor is a buffer that every model computes anew from its config.json."""
    if _COMPUTED.search(name):
        return True
    return _MASK.search(name) is not None and (not is_float or dimensions == 4)


def weights_identity(sha256: Mapping[str, str]) -> str:
    """Name the weights by the sorted hashes of the weight files, whatever the files' names."""
    text = "\n".join(sorted(sha256.values()))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """
    A model's JSON file as an object.

    Raises:
        ModelError: It is missing, larger than any such file, or no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(f"{path}: over {_MAX_JSON_BYTES} bytes, which no such file needs")
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\u" in text:
            # Half a surrogate pair is valid JSON, and can be neither printed nor stored.
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return value


def _weight_files(path: Path) -> list[str]:
    if (path / SINGLE).exists():
        return [SINGLE]
    if not (path / INDEX).exists():
        raise ModelError(_why_no_weights(path))
    files = sorted({str(file) for file in _weight_map(path).values()})
    for file in files:
        plain = not {"/", "\\", "\0"}.intersection(file) and not file.startswith(".")
        if not plain or not file.endswith(".safetensors") or len(file) > _LONGEST_NAME:
            raise ModelError(f"{path / INDEX}: names {file[:80]!r}, no file of this folder")
        if not (path / file).is_file():
            raise ModelError(f"{path}: its shard {file} is missing; fetch it again")
    return files


def _weight_map(path: Path) -> dict[str, Any]:
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path / INDEX}: has no weight_map")
    return weight_map


def _check_index(path: Path, found: Mapping[str, TensorInfo]) -> None:
    if (path / SINGLE).exists():
        return
    for name, file in sorted(_weight_map(path).items()):
        if name not in found or found[name].file != file:
            raise ModelError(f"{path / INDEX}: says that {file} holds {name}, but it does not")


def _why_no_weights(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: no such folder"
    names = sorted(entry.name for entry in path.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES) and name != "training_args.bin"]
    if any(name.endswith(".safetensors") for name in names):
        if "adapter_model.safetensors" in names:
            return f"{path}: holds only an adapter, which is no model without its base"
        return f"{path}: has safetensors files, but neither {SINGLE} nor {INDEX}"
    if pickles:
        shown = ", ".join(pickles[:3]) + (", ..." if len(pickles) > 3 else "")
        return f"{path}: only pickle weights ({shown}), which are never read; needs safetensors"
    return f"{path}: has no weights ({SINGLE}, or {INDEX} with its shards)"


def _architecture(path: Path) -> str:
    config = read_json(path / "config.json")
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return ", ".join(str(name) for name in named)
    raise ModelError(f"{path / 'config.json'}: names no architectures")


def _says_tied(path: Path) -> bool | None:
    """What config.json says; None where it says nothing."""
    if not (path / "config.json").exists():
        return None
    said = read_json(path / "config.json").get("tie_word_embeddings")
    return None if said is None else bool(said)


def _is_computed(info: TensorInfo) -> bool:
    is_float = info.dtype in FLOATS
    return follows_from_config(info.name, is_float=is_float, dimensions=len(info.shape))


def _refuse_half_tied(base: Checkpoint, other: Checkpoint) -> None:
    for tied, untied, words in (
        (base, other, "has an lm_head.weight of its own, the base's embeddings are tied"),
        (other, base, "has no lm_head.weight (tied embeddings), the base has one of its own"),
    ):
        half = _HEAD in untied.tensors and _HEAD not in tied.tensors
        if half and _says_tied(tied.path) is not False:
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
    if theirs.dtype not in FLOATS or ours.dtype not in FLOATS:
        return f"{name} is {theirs.dtype} (quantised or no weights), the base's is {ours.dtype}"
    return None


def _dimensions(info: TensorInfo) -> str:
    return "x".join(str(n) for n in info.shape) or "a scalar"
