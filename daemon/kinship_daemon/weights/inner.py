"""
Inner products of one tensor's deltas over all models: fp32 differences and products, float64 sums.

Differences in fp32 are exact for bf16 weights of like size; products are summed in fp32 over short
runs and in float64 above them, which keeps a kinship of real models to 1e-7. Everything is
computed in tiles of one fixed shape, so that the bits of an inner product depend on its two rows
alone: not on which other rows there are, on their order, or on the number of threads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Kernel", "doubtful_products", "exact_fp32", "remeasure"]

# Elements summed in fp32 before float64 takes over.
_RUN = 512
# Elements per block: one row is 0.5 MB, so that a dozen stay in the cache of a core.
# A GPU has no such cache and wants long launches.
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 22}
# Rows per side of a tile: one kernel shape for every inner product.
_TILE = 4
# Below this mean square the products of single elements leave fp32's range.
_FAINT = 1e-30


class Kernel:
    """Streams one tensor of all models through a buffer that stays in the cache."""

    def __init__(self, rows: int, first: int, device: str, progress: Callable[[int], None]) -> None:
        self.rows = rows
        self.first = first
        self.device = torch.device(device)
        self.progress = progress
        self.block = _BLOCK.get(self.device.type, _BLOCK["cpu"])
        tiles = -(-rows // _TILE)
        # (runs, rows, elements of a run): each tile of it is a batch of small matrices.
        self.buffer = torch.zeros(
            self.block // _RUN, tiles * _TILE, _RUN, dtype=torch.float32, device=self.device
        )
        self.tiles = [
            (slice(i * _TILE, (i + 1) * _TILE), slice(j * _TILE, (j + 1) * _TILE))
            for i in range(first // _TILE, tiles)
            for j in range(i + 1)
        ]

    def products(self, tensors: Sequence[Tensor]) -> Tensor:
        """
        Inner products of one tensor's rows.

        Args:
            tensors: Flat, of the base and the leaves, in row order.

        Returns:
            (rows, rows) float64, symmetric, right in every row and column at or after `first`.
        """
        size = self.buffer.shape[1]
        sums = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        for begin in range(0, tensors[0].numel(), self.block):
            blocks = [tensor[begin : begin + self.block] for tensor in tensors]
            runs = self._load(blocks)
            for left, right in self.tiles:
                product = torch.bmm(runs[:, left], runs[:, right].transpose(1, 2))
                sums[left, right] += product.sum(0, dtype=torch.float64)
            self.progress(sum(block.numel() * block.element_size() for block in blocks))
        sums = sums[: self.rows, : self.rows].cpu()
        # The tiles on the diagonal are full, those above it were never computed.
        return sums.tril() + sums.tril(-1).T

    def _load(self, blocks: Sequence[Tensor]) -> Tensor:
        """Fill {ones, b, d_1 .. d_n}; returns the runs in use, the last padded with zeros."""
        length = blocks[0].numel()
        runs = self.buffer[: -(-length // _RUN)]
        _fill(runs[:, 0], torch.ones((), device=self.device).expand(length))
        for row, block in enumerate(blocks, start=1):
            _fill(runs[:, row], block)
            if row > 1:
                runs[:, row].sub_(runs[:, 1])
        return runs


def _fill(row: Tensor, flat: Tensor) -> None:
    """Copy a flat block into (runs, _RUN), casting to fp32 and padding with zeros."""
    whole, rest = divmod(flat.numel(), _RUN)
    row[:whole].copy_(flat[: whole * _RUN].view(whole, _RUN))
    if rest:
        row[whole, :rest].copy_(flat[whole * _RUN :])
        row[whole, rest:] = 0


def doubtful_products(measured: Tensor, tensors: Sequence[Tensor], first: int) -> Tensor:
    """
    Which inner products fp32 could not hold, (rows, rows) bool.

    Those that are not finite (NaN or infinite weights, or squares that overflow) and those so
    faint that products of single elements underflow. The zeros of an unchanged tensor are exact,
    and written into `measured` where another row's overflow spoilt them.
    """
    doubtful = ~measured.isfinite() | (measured.abs() < tensors[0].numel() * _FAINT)
    doubtful[:first, :first] = False
    # New rows first: an unchanged one of them explains its whole column.
    for row in reversed(range(2, len(measured))):
        suspect = bool(doubtful[row, row]) or (row < first and bool(doubtful[row].any()))
        if suspect and _unchanged(tensors[0], tensors[row - 1]):
            doubtful[row] = doubtful[:, row] = False
            measured[row] = measured[:, row] = 0
    return doubtful


def _unchanged(base: Tensor, leaf: Tensor) -> bool:
    # NaN equals nothing, and a base with infinities was refused when the ledger was started.
    return base.dtype == leaf.dtype and torch.equal(base, leaf)


def remeasure(measured: Tensor, tensors: Sequence[Tensor], doubtful: Tensor) -> None:
    """Replace the doubtful inner products, in place, by float64 ones."""
    for row in range(len(measured)):
        if not bool(doubtful[row].any()):
            continue
        products = torch.zeros(len(measured), dtype=torch.float64)
        for block in _float64_rows(tensors):
            products += (block * block[row]).sum(1)
        measured[row] = torch.where(doubtful[row], products, measured[row])


def _float64_rows(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Blocks of {ones, b, d_1 .. d_n} in float64, (rows, elements)."""
    for begin in range(0, tensors[0].numel(), _BLOCK["cpu"]):
        base, *leaves = (t[begin : begin + _BLOCK["cpu"]].double() for t in tensors)
        yield torch.stack([torch.ones_like(base), base, *(leaf - base for leaf in leaves)])


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Elsewhere in the process TF32 or bf16 products may have been allowed; not for the ledger."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
