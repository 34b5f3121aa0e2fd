"""A model of which only the headers have been read, wherever its files lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath, PurePosixPath
from typing import Any

from kinship_daemon.errors import ModelError
from kinship_daemon.model_files import INDEX, SINGLE, most_bytes
from kinship_daemon.ranges import Ranges
from kinship_daemon.weights.checkpoint import (
    gathered,
    parse_json,
    shards,
    weight_map,
    why_no_weights,
)
from kinship_daemon.weights.fit import (
    HEAD,
    Model,
    alike_named,
    alike_tied,
    compare,
    input_embeddings,
    other_head,
    says_tied,
)
from kinship_daemon.weights.header import TensorInfo, header_length, parse_header
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["Remote", "check_fits", "open_remote"]

# Read at once, in the hope that the header ends there: so long are those of 130 tensors.
_FIRST_BYTES = 16_384
# A tensor's share of a header beside its name: more than most take.
_ENTRY_BYTES = 90
# Of all files together, 100,000 tensors' worth: more would be read for nothing.
_MOST_HEADER_BYTES = 20_000_000
# Of a head that is said to be tied: how many blocks are compared, and their bytes.
_BLOCKS = 8
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Remote:
    """
    A model's headers, and where to read ranges of its tensors.

    Attributes:
        name: For messages.
        tensors: Without what `Checkpoint` leaves out, sorted.
        ranges: Pieces of its files.
        settings: Its config.json; None if it has none.
    """

    name: str
    tensors: Mapping[str, TensorInfo]
    ranges: Ranges
    settings: Mapping[str, Any] | None = None

    @property
    def path(self) -> PurePath:
        """The name, for messages that speak of its files."""
        return PurePosixPath(self.name)

    @property
    def nbytes(self) -> int:
        """Of its weights, read or not."""
        return sum(info.nbytes for info in self.tensors.values())

    def config(self) -> Mapping[str, Any] | None:
        return self.settings

    def holding(self, tensors: Mapping[str, TensorInfo]) -> Remote:
        return replace(self, tensors=tensors)


def open_remote(name: str, ranges: Ranges, files: Mapping[str, int]) -> Remote:
    """
    Read and check a model's headers, its index if it has shards, and its config.json.

    Args:
        files: Bytes of every file that the model has.

    Raises:
        ModelError: No safetensors (pickle files are named), or a corrupt or absurd file.
        Transient: They cannot be had now.
    """
    path = PurePosixPath(name)
    index: Mapping[str, Any] | None = None
    if SINGLE not in files:
        if INDEX not in files:
            raise ModelError(why_no_weights(path, files))
        index = weight_map(path, _json(path, INDEX, ranges, files))
    settings = None
    if "config.json" in files:
        settings = _json(path, "config.json", ranges, files)
    named = [SINGLE] if index is None else shards(path, index, files.__contains__)
    headers, left, expected = {}, _MOST_HEADER_BYTES, _expected(index or {})
    for file in named:
        first = expected.get(file, _FIRST_BYTES)
        headers[file], length = _header(path / file, ranges, files[file], first, left)
        left -= length
    tied = says_tied(Remote(name, {}, ranges, settings))
    if tied:
        every = {info.name: info for header in headers.values() for info in header.values()}
        _refuse_other_head(Remote(name, every, ranges, settings))
    return Remote(name, gathered(path, headers, index, tied=tied), ranges, settings)


def check_fits(base: Model, remote: Remote) -> Remote:
    """
    Check that a model can descend from `base`, without the second copy of tied embeddings.

    Embeddings may have more or fewer rows than the base's, as long as they agree on how many.

    Raises:
        ModelError: It cannot; the first three differences are named.
    """
    whole = alike_named(base, remote)
    own = alike_tied(base, whole)
    if own is not whole:
        _refuse_other_head(whole)
    named = [name for name in base.tensors if is_vocabulary(name)]
    rows = {own.tensors[name].shape[:1] for name in named if name in own.tensors}
    compare(base, own, resizable=named if len(rows) == 1 else ())
    return own


def _refuse_other_head(remote: Remote) -> None:
    """
    See at a few places that a second copy of tied embeddings is one.

    Training moves nearly every number, so one that differs does so here too; all of it is
    compared where the model is fetched.
    """
    embeddings = input_embeddings(remote.tensors)
    if embeddings is None or HEAD not in remote.tensors:
        return
    both = remote.tensors[embeddings], remote.tensors[HEAD]
    if len({(info.dtype, info.shape) for info in both}) > 1:
        raise other_head(remote.path, embeddings)
    step = max(_BLOCK, both[0].nbytes // _BLOCKS)
    starts = range(0, both[0].nbytes, step)
    blocks = [
        remote.ranges.read(
            info.file,
            [
                (info.offset + start, info.offset + min(start + _BLOCK, info.nbytes))
                for start in starts
            ],
        )
        for info in both
    ]
    if blocks[0] != blocks[1]:
        raise other_head(remote.path, embeddings)


def _json(path: PurePath, file: str, ranges: Ranges, files: Mapping[str, int]) -> dict[str, Any]:
    if files[file] > (most := most_bytes(file)):
        raise ModelError(f"{path / file}: over {most} bytes, which no such file needs")
    return parse_json(path / file, ranges.read(file, [(0, files[file])])[0])


def _header(
    path: PurePath, ranges: Ranges, size: int, expected: int, most: int
) -> tuple[dict[str, TensorInfo], int]:
    """One file's header, of `most` bytes, in one read if it is as long as expected, else in two."""
    first = min(size, expected)
    begin = ranges.read(path.name, [(0, first)])[0]
    length = header_length(path, begin[:8], size, most=most)
    if (end := 8 + length) > first:
        begin += ranges.read(path.name, [(first, end)])[0]
    return parse_header(path, begin[8:end], size), length


def _expected(index: Mapping[str, Any]) -> Mapping[str, int]:
    """How long an index lets us expect each shard's header to be."""
    expected = dict.fromkeys(index.values(), 8)
    for name, shard in index.items():
        expected[shard] += len(name) + _ENTRY_BYTES
    return expected
