"""Plans and writes the weight files of a model, block by block and hashed on the way."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kinship_daemon.errors import ModelError
from kinship_daemon.weights.assembly import Sources
from kinship_daemon.weights.checkpoint import SINGLE
from kinship_daemon.weights.header import encode_header

__all__ = ["Shard", "plan", "write_shard"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shard:
    """One weight file to be written; tensors with dtype and shape, in the order of the file."""

    file: str
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

    @property
    def nbytes(self) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.tensors.values())


def plan(sources: Sources, dtype: torch.dtype | None, shard_bytes: int) -> list[Shard]:
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
    shard: Shard, sources: Sources, folder: Path, progress: Callable[[int], None] | None
) -> str:
    """
    Write one file and return its SHA-256.

    Raises:
        ModelError: A value does not fit the dtype.
    """
    digest = hashlib.sha256()
    with (folder / shard.file).open("wb") as file:
        header = encode_header(shard.tensors)
        digest.update(header)
        file.write(header)
        for name, (dtype, _) in shard.tensors.items():
            for block in sources.blocks(name, dtype, _CPU):
                if not bool(block.isfinite().all()):
                    raise ModelError(f"tensor {name} of the merge does not fit {dtype}")
                content = block.view(torch.uint8).numpy().data
                digest.update(content)
                file.write(content)
                if progress:
                    progress(len(content))
    return digest.hexdigest()
