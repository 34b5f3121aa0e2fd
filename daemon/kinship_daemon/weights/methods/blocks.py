"""
Elementwise work on large tensors: in blocks that stay in a core's cache, on threads of our own.

Torch's own threads meet after every operation, which on a busy machine takes longer than the
operation.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Blocks", "block_size", "blocks_of", "buffers_of", "in_blocks"]

Result = TypeVar("Result")
Blocks = Sequence[slice]

# Elements per block: 0.5 MB each. A GPU has no such cache and wants long launches.
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 24}


def in_blocks(
    work: Callable[[Blocks], Result], flat: Tensor, size: int | None = None
) -> list[Result]:
    """
    Share the blocks of a flat tensor among as many threads as torch would use; one on a GPU.

    `size` is that of a block, where it is not the usual one.
    """
    blocks = blocks_of(flat.numel(), size or block_size(flat))
    threads = torch.get_num_threads()
    count = min(threads, len(blocks)) if flat.device.type == "cpu" else 1
    if count <= 1:
        return [work(blocks)]
    parts = [blocks[index::count] for index in range(count)]
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)  # threads that start later would inherit theirs


def blocks_of(length: int, size: int) -> list[slice]:
    """`length` elements in runs of `size`, the last perhaps shorter."""
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def block_size(flat: Tensor) -> int:
    """Elements of a usual block on the tensor's device."""
    return _BLOCK.get(flat.device.type, _BLOCK["cpu"])


def buffers_of(flat: Tensor, rows: int, size: int | None = None) -> Tensor:
    """Float32 buffers for one block each, (rows, size): made once, filled again and again."""
    length = min(size or block_size(flat), flat.numel())
    return torch.empty(rows, length, dtype=torch.float32, device=flat.device)
