"""Blocks of tensors, read through `Ranges`: neighbours in one request, many requests at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinship_daemon.weights.header import DTYPES
from kinship_daemon.weights.remote import Remote

__all__ = ["Blocks", "Progress", "read_blocks"]

# Called with the bytes just read.
Progress = Callable[[int], None]
# [start, end) in elements of a tensor.
Blocks = Sequence[tuple[int, int]]

# Blocks nearer than this come in one request: it costs more than so many bytes.
_GAP_BYTES = 1024
_LONGEST_RUN_BYTES = 1 << 22
# Requests between two calls of `progress`.
_TOGETHER = 128


class _Block(NamedTuple):  # there are tens of thousands of them
    """Bytes start..end of a file, and where in the tensor's blocks they go."""

    start: int
    end: int
    tensor: str
    at: int


@dataclass
class _Run:
    """Blocks that are read in one request."""

    start: int
    end: int
    blocks: list[_Block]


def read_blocks(
    source: Remote, places: Mapping[str, Blocks], progress: Progress | None = None
) -> dict[str, Tensor]:
    """
    Blocks of some tensors.

    Args:
        places: By tensor.

    Returns:
        By tensor, its blocks one after the other, (elements,) in the model's own dtype.

    Raises:
        ModelError, Transient: As the ranges do.
    """
    content: dict[str, NDArray[np.uint8]] = {}
    files: dict[str, list[_Block]] = {}
    for name, blocks in places.items():
        info = source.tensors[name]
        each, at = DTYPES[info.dtype].itemsize, 0
        held = files.setdefault(info.file, [])
        for start, end in _joined(blocks):
            first, last = info.offset + start * each, info.offset + end * each
            held.append(_Block(first, last, name, at))
            at += last - first
        content[name] = np.empty(at, dtype=np.uint8)
    for file in sorted(files):
        runs = list(_runs(sorted(files[file])))
        for begin in range(0, len(runs), _TOGETHER):
            _read_runs(source, file, runs[begin : begin + _TOGETHER], content, progress)
    return {
        name: torch.from_numpy(own).view(DTYPES[source.tensors[name].dtype])
        for name, own in content.items()
    }


def _joined(blocks: Blocks) -> Iterator[tuple[int, int]]:
    """The same elements in the same order, in as few blocks: of a small model all are read."""
    begin = end = 0
    for start, stop in blocks:
        if start != end:
            if begin != end:
                yield begin, end
            begin = start
        end = stop
    if begin != end:
        yield begin, end


def _runs(blocks: Sequence[_Block]) -> Iterator[_Run]:
    """Blocks in ascending order, near ones together."""
    run: _Run | None = None
    for block in blocks:
        if run is not None and block.start - run.end <= _GAP_BYTES:
            end = max(run.end, block.end)
            if end - run.start <= _LONGEST_RUN_BYTES:
                run.end = end
                run.blocks.append(block)
                continue
        if run is not None:
            yield run
        run = _Run(block.start, block.end, [block])
    if run is not None:
        yield run


def _read_runs(
    source: Remote,
    file: str,
    runs: Sequence[_Run],
    content: Mapping[str, NDArray[np.uint8]],
    progress: Progress | None,
) -> None:
    found = source.ranges.read(file, [(run.start, run.end) for run in runs])
    for run, bytes_read in zip(runs, found, strict=True):
        data = np.frombuffer(bytes_read, dtype=np.uint8)
        for start, end, tensor, at in run.blocks:
            content[tensor][at : at + end - start] = data[start - run.start : end - run.start]
    if progress is not None:
        progress(sum(map(len, found)))
