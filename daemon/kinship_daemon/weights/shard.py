"""Plans and writes the weight files of a model, block by block and hashed on the way."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from kinship_daemon.durable import hash_file, sync
from kinship_daemon.errors import ModelError
from kinship_daemon.model_files import SINGLE
from kinship_daemon.weights.assembly import Opened
from kinship_daemon.weights.header import encode_header

__all__ = ["Made", "Shard", "plan", "write_shard"]

# Told of every tensor that was made: its name, and it in its shape and dtype.
Made = Callable[[str, Tensor], None]

_CPU = torch.device("cpu")
# Bytes after which the disk is set to work, so that it does not have all to do in the end.
_SYNC = 1 << 28


@dataclass(frozen=True)
class Shard:
    """One weight file to be written; tensors with dtype and shape, in the order of the file."""

    file: str
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

    @property
    def nbytes(self) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.tensors.values())


def plan(sources: Opened, dtype: torch.dtype | None, shard_bytes: int) -> list[Shard]:
    """Fill shards in name order; a tensor larger than `shard_bytes` gets one of its own."""
    groups: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = [{}]
    room = shard_bytes
    for info in sources.tensors:
        chosen = dtype or sources.own_dtype(info.name)
        nbytes = info.elements * chosen.itemsize
        if nbytes > room and groups[-1]:
            groups.append({})
            room = shard_bytes
        groups[-1][info.name] = (chosen, info.shape)
        room -= nbytes
    count = len(groups)
    if count == 1:
        return [Shard(SINGLE, groups[0])]
    return [
        Shard(f"model-{number:05d}-of-{count:05d}.safetensors", group)
        for number, group in enumerate(groups, start=1)
    ]


def write_shard(
    shard: Shard,
    sources: Opened,
    folder: Path,
    *,
    progress: Callable[[int], None] | None = None,
    made: Made | None = None,
) -> str:
    """
    Write one file and return its SHA-256; one that is there already is taken as it is.

    It appears under its name when it is whole and on disk.

    Raises:
        ModelError: A value does not fit the dtype.
    """
    target = folder / shard.file
    if target.exists():
        return _found(shard, target, progress, made)
    part = folder / f".{shard.file}.part"
    with _Writer(part, progress) as writer:
        writer.write(memoryview(encode_header(shard.tensors)), progressed=False)
        for name, (dtype, shape) in shard.tensors.items():
            blocks = []
            for block in _finite(name, dtype, sources):
                writer.write(block.view(torch.uint8).numpy().data)
                if made:
                    blocks.append(block)
            if made:
                made(name, torch.cat(blocks or [torch.empty(0, dtype=dtype)]).view(shape))
    sync(part)
    part.rename(target)
    sync(folder)
    return writer.sha256


def _finite(name: str, dtype: torch.dtype, sources: Opened) -> Iterator[Tensor]:
    for block in sources.blocks(name, dtype, _CPU):
        # The sum is not finite where one element is not, and costs a third of looking at each.
        if not bool(block.sum(dtype=torch.float32).isfinite()) and not bool(block.isfinite().all()):
            if bool(block.isnan().any()):
                raise ModelError(f"tensor {name} of the merge holds NaN; a model of it is broken")
            raise ModelError(f"tensor {name} of the merge does not fit {dtype}")
        yield block


def _found(
    shard: Shard, target: Path, progress: Callable[[int], None] | None, made: Made | None
) -> str:
    """A shard that an interrupted call had finished."""
    if made:
        with safe_open(target, framework="pt") as file:
            for name in shard.tensors:
                made(name, file.get_tensor(name))
    if progress:
        progress(shard.nbytes)
    return hash_file(target)


class _Writer:
    """Writes and hashes one file in a thread of its own, while the next block is made."""

    def __init__(self, path: Path, progress: Callable[[int], None] | None) -> None:
        self._path = path
        self._progress = progress
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._syncing = ThreadPoolExecutor(1)
        self._synced: Future[None] | None = None
        self._unsynced = 0

    def __enter__(self) -> "_Writer":
        self._file = self._path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._wait()
                if self._synced is not None:
                    self._synced.result()  # a disk error is told once, to whoever asks first
        finally:
            self._thread.shutdown()
            self._syncing.shutdown()
            self._file.close()

    def write(self, content: memoryview, *, progressed: bool = True) -> None:
        """One block is written while at most one more waits: memory stays flat."""
        self._wait()
        self._pending = self._thread.submit(self._write, content)
        if progressed and self._progress:
            self._progress(len(content))

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _write(self, content: memoryview) -> None:
        self._digest.update(content)
        self._file.write(content)
        self._unsynced += len(content)
        if self._unsynced >= _SYNC and (self._synced is None or self._synced.done()):
            self._synced = self._syncing.submit(os.fdatasync, self._file.fileno())
            self._unsynced = 0

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
