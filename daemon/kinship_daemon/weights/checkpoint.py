"""A model's named tensors, memory mapped from one safetensors file or from shards with an index."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open

from kinship_daemon.errors import ModelError, unreadable
from kinship_daemon.foreign import json_text
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.shown import shown
from kinship_daemon.model_files import ADAPTER, INDEX, MOST_SHARDS, SINGLE, most_bytes
from kinship_daemon.weights.fit import (
    HEAD,
    alike_tied,
    compare,
    first_three,
    input_embeddings,
    other_head,
    says_tied,
)
from kinship_daemon.weights.header import DTYPES, FLOATS, TensorInfo, read_header

__all__ = [
    "DTYPES",
    "FLOATS",
    "Checkpoint",
    "TensorInfo",
    "alike_tied",
    "compare",
    "first_three",
    "follows_from_config",
    "gathered",
    "is_own_file",
    "parse_json",
    "read_json",
    "refuse_link_out",
    "refuse_other_head",
    "shards",
    "weight_map",
    "weights_identity",
    "why_empty",
    "why_no_weights",
]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# The longest are indices: two items for each of some 100,000 tensors.
_JSON = Limits(nbytes=most_bytes(INDEX), items=500_000)
_LONGEST_NAME = 200
# Buffers that old transformers saved and every one we support computes from config.json.
_COMPUTED = re.compile(r"(^|\.)(\w*inv_freq|cos_cached|sin_cached|masked_bias|position_ids)$")
# The causal mask of GPT-2 and its kin; a bias that is learnt is a vector of floats.
_MASK = re.compile(r"\.(attn|attention)\.bias$")


@dataclass(frozen=True)
class Checkpoint:
    """
    The weights in one folder. Opening reads headers only; tensors are mapped when asked for.

    Left out: buffers that follow from config.json (rotary tables, causal masks, positions), and the
    second copy of tied embeddings, which some trainers save and which the model never reads.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """
        Check a folder's weight files.

        Raises:
            ModelError: No safetensors (pickle files are named), a truncated or corrupt file, or
                a head that differs from the embeddings it is said to be tied to.
        """
        index = None if (path / SINGLE).exists() else _index(path)
        files = [SINGLE] if index is None else shards(path, index, lambda f: (path / f).is_file())
        headers = {file: read_header(path / file) for file in files}
        tied = says_tied(cls(path, {}))
        if tied:
            refuse_other_head(
                cls(path, {name: each[name] for each in headers.values() for name in each})
            )
        return cls(path, gathered(path, headers, index, tied=tied))

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted({info.file for info in self.tensors.values()}))

    @property
    def parameters(self) -> int:
        return sum(info.elements for info in self.tensors.values())

    @property
    def main_dtype(self) -> str:
        """The dtype that most of its tensors have, as mergekit and torch call it."""
        counts = Counter(info.dtype for info in self.tensors.values())
        return str(DTYPES[counts.most_common(1)[0][0]]).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str) -> torch.Tensor:
        """
        The tensor in its own dtype and shape, on the CPU, mapped from its file: not a copy.

        Each has a mapping of its own, which goes with it. One for the whole file would keep all
        that was read of it in memory.
        """
        info = self.tensors[name]
        path, end = self.path / info.file, info.offset + info.nbytes
        try:
            mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=end)
        except RuntimeError as error:
            raise unreadable(path, _os_error(error)) from error
        own = torch.asarray(mapped[info.offset : end], dtype=torch.uint8)
        return own.view(DTYPES[info.dtype]).reshape(info.shape)

    def config(self) -> Mapping[str, Any] | None:
        """What config.json says now; None where there is none."""
        path = self.path / "config.json"
        return read_json(path) if path.exists() else None

    def holding(self, tensors: Mapping[str, TensorInfo]) -> "Checkpoint":
        return replace(self, tensors=tensors)


def gathered(
    path: PurePath,
    headers: Mapping[str, Mapping[str, TensorInfo]],
    weight_map: Mapping[str, Any] | None,
    *,
    tied: bool | None,
) -> Mapping[str, TensorInfo]:
    """
    The tensors of all files of a model, sorted by name, but for what is left out (`Checkpoint`).

    Args:
        path: The model, for messages.
        headers: Of its weight files, by file.
        weight_map: Of its index, which they must bear out; None where it has none.
        tied: What its config says of its embeddings.

    Raises:
        ModelError: A tensor is in two files, or not where the index says; one has no
            elements; or there is none.
    """
    found: dict[str, TensorInfo] = {}
    for file, header in headers.items():
        for name, info in header.items():
            if name in found:
                raise ModelError(f"{path}: tensor {name} is in {found[name].file} and {file}")
            found[name] = info
    for name, file in sorted((weight_map or {}).items()):
        if name not in found or found[name].file != file:
            raise ModelError(
                f"{path / INDEX}: says that {shown(file)} holds {shown(name)}, but it does not"
            )
    kept = {
        name: found[name]
        for name in sorted(found)
        if not _is_computed(found[name]) and not (tied and name == HEAD)
    }
    if not kept:
        raise ModelError(f"{path}: its weight files hold no tensors")
    if empty := next((info for info in kept.values() if not info.elements), None):
        raise ModelError(f"{path}: {why_empty(empty)}")
    return MappingProxyType(kept)


def why_empty(info: TensorInfo) -> str:
    """What is wrong with a tensor without elements, as training in shards may leave it."""
    return f"its tensor {info.name} {list(info.shape)} has no elements; it was not saved whole"


def shards(
    path: PurePath, weight_map: Mapping[str, Any], exists: Callable[[str], bool]
) -> list[str]:
    """
    The files that an index names, sorted.

    Raises:
        ModelError: One leads out of the model's folder, is no safetensors file, or is not there; or
            they are more than any model has.
    """
    files = sorted({file if isinstance(file, str) else shown(file) for file in weight_map.values()})
    if len(files) > MOST_SHARDS:
        raise ModelError(
            f"{path / INDEX}: names {len(files)} files; the most allowed is {MOST_SHARDS}"
        )
    for file in files:
        plain = not {"/", "\\", "\0"}.intersection(file) and not file.startswith(".")
        if not plain or not file.endswith(".safetensors") or len(file) > _LONGEST_NAME:
            raise ModelError(f"{path / INDEX}: names '{shown(file, 80)}', no file of this folder")
        if not exists(file):
            raise ModelError(f"{path}: its shard {file} is missing; fetch it again")
    return files


def follows_from_config(name: str, *, is_float: bool, dimensions: int) -> bool:
    """Whether a tensor is a buffer that every model computes anew from its config.json."""
    if _COMPUTED.search(name):
        return True
    return _MASK.search(name) is not None and (not is_float or dimensions == 4)


def refuse_other_head(checkpoint: Checkpoint) -> None:
    """
    See that a second copy of tied embeddings is one: transformers loads another as it is, untied.

    Raises:
        ModelError: The head differs from the embeddings.
    """
    embeddings = input_embeddings(checkpoint.tensors)
    if embeddings is None or HEAD not in checkpoint.tensors:
        return
    files = (checkpoint.tensors[embeddings].file, checkpoint.tensors[HEAD].file)
    stats = [(checkpoint.path / file).stat() for file in files]
    stamp = tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in stats)
    if not _equal(checkpoint.path, files, (embeddings, HEAD), stamp):
        raise other_head(checkpoint.path, embeddings)


@lru_cache(maxsize=256)  # both are large, and a model is opened many times
def _equal(path: Path, files: tuple[str, str], names: tuple[str, str], _stamp: object) -> bool:
    opened: list[Any] = [safe_open(path / file, framework="pt") for file in files]
    one, other = (file.get_tensor(name) for file, name in zip(opened, names, strict=True))
    equal: bool = one.dtype == other.dtype and torch.equal(one, other)
    return equal


def weights_identity(sha256: Mapping[str, str]) -> str:
    """Name the weights by the sorted hashes of the weight files, whatever the files' names."""
    text = "\n".join(sorted(sha256.values()))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """
    A model's JSON file as an object.

    Raises:
        ModelError: It is missing, a link that leads elsewhere, larger than any such file, or no
            JSON object.
    """
    refuse_link_out(path.parent, path.name)
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path}: is no file")  # of a pipe nothing would ever come
        if path.stat().st_size > (most := most_bytes(path.name)):
            raise ModelError(f"{path}: over {most} bytes, which no such file needs")
        return parse_json(path, path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: has no {path.name}") from None
    except OSError as error:
        raise unreadable(path, error) from error


def parse_json(path: PurePath, content: bytes) -> dict[str, Any]:
    """
    The same from the file's bytes.

    Raises:
        ModelError: They are no JSON object.
    """
    try:
        value = json_text.parse_json(content, _JSON)
    except Malformed as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return value


def is_own_file(folder: Path, name: str) -> bool:
    """
    Whether a file of a model is there, and no link that leads elsewhere.

    It may be a link into the blobs of a cache that is laid out as the Hub's
    (models--org--name/snapshots/commit), or to the file of the same name of another model of the
    same hub (hub/org/name): whoever keeps a hub in a folder shares files so.
    """
    return (folder / name).is_file() and not _leads_out(folder, name)


def refuse_link_out(folder: Path, name: str) -> None:
    """
    See that a file of a model, if it is there, is its own (`is_own_file`).

    Raises:
        ModelError: It is a link that leads elsewhere.
    """
    if _leads_out(folder, name):
        path = folder / name
        raise ModelError(f"{path}: is a link out of the model's folder, which is not followed")


def weight_map(path: PurePath, index: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Tensors' files by an index of shards.

    Raises:
        ModelError: It has none.
    """
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{path / INDEX}: has no weight_map")
    return found


def why_no_weights(path: PurePath, files: Iterable[str]) -> str:
    """What is wrong with a model of these files, neither SINGLE nor INDEX among them."""
    names = sorted(files)
    pickles = [name for name in names if name.endswith(_PICKLES) and name != "training_args.bin"]
    if any(name.endswith(".safetensors") for name in names):
        if ADAPTER in names:
            return f"{path}: holds only an adapter, which is no model without its base"
        return f"{path}: has safetensors files, but neither {SINGLE} nor {INDEX}"
    if pickles:
        listed = ", ".join(map(shown, pickles[:3])) + (", ..." if len(pickles) > 3 else "")
        return f"{path}: only pickle weights ({listed}), which are never read; needs safetensors"
    return f"{path}: has no weights ({SINGLE}, or {INDEX} with its shards)"


def _os_error(error: RuntimeError) -> OSError:
    """What kept torch from mapping a file; it says the number in parentheses at the end."""
    found = re.search(r"\((\d+)\)$", str(error), re.MULTILINE)
    if found is None:
        return OSError("it is shorter than it was")
    return OSError(int(found[1]), os.strerror(int(found[1])))


def _index(path: Path) -> Mapping[str, Any]:
    if (path / INDEX).exists():
        return weight_map(path, read_json(path / INDEX))
    if not path.is_dir():
        raise ModelError(f"{path}: no such folder")
    raise ModelError(why_no_weights(path, (entry.name for entry in path.iterdir())))


def _is_computed(info: TensorInfo) -> bool:
    is_float = info.dtype in FLOATS
    return follows_from_config(info.name, is_float=is_float, dimensions=len(info.shape))


def _leads_out(folder: Path, name: str) -> bool:
    # Path.resolve raises where a link leads to itself.
    whole, real = (Path(os.path.realpath(each)) for each in (folder, folder / name))
    if real.is_relative_to(whole):
        return False
    hub = whole.parent.parent
    if not real.is_relative_to(hub):
        return True
    inside = real.relative_to(hub)
    is_blob = whole.parent.name == "snapshots" and inside.parts[0] == "blobs"
    return not is_blob and Path(*inside.parts[2:]) != Path(name)
