"""
Reads and checks the header of a safetensors file before any of its bytes are used.

The format: 8 bytes of header length (little endian), a JSON object of
`name -> {dtype, shape, data_offsets}` and an optional `__metadata__`, then the data, which the
offsets must cover exactly once. Source: https://github.com/huggingface/safetensors, README.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from kinship_daemon.errors import ModelError, unreadable
from kinship_daemon.foreign.json_text import parse_json
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.shown import shown

__all__ = [
    "DTYPES",
    "FLOATS",
    "MAX_HEADER_BYTES",
    "TensorInfo",
    "encode_header",
    "header_length",
    "parse_header",
    "read_header",
]

# The safetensors library would read four times as many.
MAX_HEADER_BYTES = 25_000_000
# How such a file begins: "version https://git-lfs.github.com/spec/v1".
_LFS_POINTER = b"version "
# The largest open mixture-of-experts models have some 60,000.
_MAX_TENSORS = 80_000
_LONGEST_NAME = 200
_MOST_DIMENSIONS = 16
_LIMITS = Limits(nbytes=MAX_HEADER_BYTES, depth=4, items=1_000_000, string=MAX_HEADER_BYTES)

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What weights are kept in.
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """
    One named tensor as its header describes it.

    Attributes:
        file: A name inside the model's folder.
        offset: Where in the file its data begin, in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPES[self.dtype].itemsize


def read_header(path: Path) -> dict[str, TensorInfo]:
    """
    Every tensor of one safetensors file, in sorted name order.

    Raises:
        ModelError: The file is missing, truncated or corrupt, or its header is absurd.
    """
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path}: is no file")  # of a pipe nothing would ever come
        with path.open("rb") as file:
            size = path.stat().st_size
            text = file.read(header_length(path, file.read(8), size))
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_header(path, text, size)


def header_length(path: PurePath, prefix: bytes, size: int, *, most: int = MAX_HEADER_BYTES) -> int:
    """
    The bytes of JSON that follow the first 8.

    Args:
        path: The file, for messages.
        prefix: Its first 8 bytes.
        size: Its bytes.

    Raises:
        ModelError: It is a Git LFS pointer, the file ends before, or the length is absurd (more
            than `most`).
    """
    if prefix == _LFS_POINTER:
        raise ModelError(
            f"{path}: only a Git LFS pointer, not the weights; "
            "run `git lfs pull` there, or download the model again"
        )
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or (length > size - 8 and length <= most):
        raise ModelError(f"{path}: truncated: {size} bytes end inside its header; fetch it again")
    if length > most:
        raise ModelError(
            f"{path}: not a safetensors file: its header claims {length} bytes, "
            f"the most allowed is {most}"
        )
    return length


def parse_header(path: PurePath, text: bytes, size: int) -> dict[str, TensorInfo]:
    """
    Every tensor of a header's JSON, in sorted name order.

    Args:
        path: The file, for messages and for the tensors' `file`.
        text: What follows the first 8 bytes, `header_length` of them.
        size: Bytes of the whole file.

    Raises:
        ModelError: It is corrupt or absurd, or the file is not as long as it says.
    """
    entries = _parse(path, text)
    begin = 8 + len(text)
    return _check_layout(path, entries, begin, size - begin)


def encode_header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The bytes before the data of a file that holds `tensors` in the given order, without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Readers map the data in place: it must begin on an 8-byte boundary.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parse(path: PurePath, text: bytes) -> dict[str, Any]:
    if text.count(b":") > 5 * _MAX_TENSORS:  # four for each, and __metadata__
        raise ModelError(f"{path}: its header lists over {_MAX_TENSORS} tensors, the most allowed")
    try:
        header = parse_json(text, _LIMITS, strict=True)
    except Malformed as error:
        raise ModelError(f"{path}: its header is not valid JSON: {error}") from error
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise ModelError(f"{path}: its header is not a JSON object")
    # The safetensors library opens no file with any other.
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelError(f"{path}: corrupt header: its __metadata__ does not map names to texts")
    for name in header:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            words = f"'{shown(name, 80)}' is no name of a tensor"
            raise ModelError(f"{path}: corrupt header: {words}")
    if len(header) > _MAX_TENSORS:
        raise ModelError(f"{path}: its header lists over {_MAX_TENSORS} tensors, the most allowed")
    return header


def _check_layout(
    path: PurePath, entries: dict[str, Any], begin: int, data_bytes: int
) -> dict[str, TensorInfo]:
    """Offsets must cover the data exactly: no gap, no overlap, nothing outside the file."""
    ranges: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(entries):
        info, start, end = _entry(path, name, entries[name], begin)
        tensors[name] = info
        ranges.append((start, end, name))
    position = 0
    for start, end, name in sorted(ranges):
        if start != position:
            what = "overlaps another tensor" if start < position else "leaves a gap before it"
            raise ModelError(f"{path}: corrupt header: tensor {name} {what}")
        position = end
    if position > data_bytes:
        raise ModelError(
            f"{path}: truncated: its tensors need {position} bytes of data, "
            f"it has {data_bytes}; fetch it again"
        )
    if position < data_bytes:
        raise ModelError(f"{path}: corrupt: {data_bytes - position} bytes after its last tensor")
    return tensors


def _entry(path: PurePath, name: str, entry: object, begin: int) -> tuple[TensorInfo, int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]}:
            pass
        case _:
            raise ModelError(f"{path}: corrupt header: tensor {name} has no dtype, shape, offsets")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ModelError(f"{path}: corrupt header: tensor {name} has a size that is no size")
    if len(shape) > _MOST_DIMENSIONS:
        raise ModelError(f"{path}: corrupt header: tensor {name} has {len(shape)} dimensions")
    if dtype not in DTYPES:
        raise ModelError(f"{path}: tensor {name} has the unknown dtype {shown(dtype, 20)}")
    info = TensorInfo(name, dtype, tuple(shape), path.name, begin + start)
    if info.nbytes != end - start:
        raise ModelError(
            f"{path}: corrupt header: tensor {name} of shape {list(shape)[:8]} and dtype {dtype} "
            f"needs {info.nbytes} bytes, its offsets give {end - start}"
        )
    return info, start, end
