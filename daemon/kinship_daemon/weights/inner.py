"""
Inner products of one tensor's deltas over all models: fp32 differences and products, float64 sums.

Differences in fp32 are exact for bf16 weights of like size; products are summed in fp32 over short
runs and in float64 above them, which keeps a kinship of real models to 1e-7. Everything is
computed in tiles of one fixed shape, so that the bits of an inner product depend on its two rows
alone: not on which other rows there are, on their order, or on the number of threads.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch
from torch import Tensor

__all__ = ["Kernel", "Pending", "doubtful_products", "remeasure"]

# Elements summed in fp32 before float64 takes over.
_RUN = 512
# Elements per block: one row is 0.5 MB, so that a dozen stay in the cache.
# A GPU has no such cache and wants long launches.
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 22}
# Blocks that a thread works through before it takes up the next stretch.
_STRETCH = 16
# Leaves per side of a tile: one kernel shape for every inner product.
_TILE = 4
# The rows above a tile's leaves: ones and b.
_FRAME = 2
# Between rows, so that the same place in each does not fall into the same lines of the cache.
_GAP = 64
# Below this mean square the products of single elements leave fp32's range.
_FAINT = 1e-30


class Kernel:
    """
    Streams tensors of all models through buffers that stay in the cache, one for every core.

    Each core works alone on its own stretches: threads that share one operation wait for each
    other, which on a busy machine costs tens of times more than the work itself.
    """

    def __init__(self, device: str, progress: Callable[[int], None]) -> None:
        """`progress` is called with the bytes just read."""
        self._device = torch.device(device)
        self._progress = progress
        self._block = _BLOCK.get(self._device.type, _BLOCK["cpu"])
        self._threads = torch.get_num_threads()
        workers = self._threads if self._device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        self._own = threading.local()
        self._precision = torch.get_float32_matmul_precision()

    def __enter__(self) -> Self:
        # Elsewhere in the process TF32 or bf16 products may have been allowed; not for the ledger.
        torch.set_float32_matmul_precision("highest")
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_float32_matmul_precision(self._precision)
        torch.set_num_threads(self._threads)

    def begin(self, tensors: Sequence[Tensor], known: int, *, frame: bool = False) -> "Pending":
        """
        Start on the inner products of one tensor's rows {ones, b, d_1 .. d_n}.

        Args:
            tensors: Flat, on the CPU, of the base and the leaves, in row order.
            known: How many leaves are measured against each other already; those products are
                left out.
            frame: Whether those of ones and b with each other are wanted, too.
        """
        length = tensors[0].numel()
        step = self._block * _STRETCH if self._device.type == "cpu" else max(length, 1)
        parts = [
            self._pool.submit(
                self._stretch, tensors, known, frame, begin, min(begin + step, length)
            )
            for begin in range(0, length, step)
        ]
        return Pending(tensors, parts)

    def _stretch(
        self, tensors: Sequence[Tensor], known: int, frame: bool, begin: int, end: int
    ) -> Tensor:
        """The sums over elements begin..end, (rows, rows) float64, lower triangle of tiles."""
        count = len(tensors) - 1
        desk = self._desk(max(1, -(-count // _TILE)), end - begin)
        desk.clear(count)
        sums = _Sums(desk.tiles, known // _TILE if count else desk.tiles, frame, self._device)
        for blocks in self._blocks(tensors, begin, end):
            sums.add(desk.fill(blocks))
        self._progress(sum((end - begin) * tensor.element_size() for tensor in tensors))
        return sums.gathered()[: _FRAME + count, : _FRAME + count].cpu()

    def _desk(self, tiles: int, length: int) -> "_Desk":
        """The calling thread's own, no longer than blocks of so many elements need."""
        block = min(self._block, -(-length // _RUN) * _RUN)
        own: dict[str, _Desk] = self._own.__dict__
        desk = own.pop("desk", None)
        if desk is None or (desk.tiles, desk.block) != (tiles, block):
            # In the same memory, so that it stays flat.
            desk = _Desk(tiles, block, self._device, None if desk is None else desk.memory)
        own["desk"] = desk
        return desk

    def _blocks(self, tensors: Sequence[Tensor], begin: int, end: int) -> Iterator[list[Tensor]]:
        starts = range(begin, end, self._block)
        if self._device.type == "cpu":
            for at in starts:
                yield [tensor[at : min(at + self._block, end)] for tensor in tensors]
        else:
            yield from _copied_ahead(tensors, starts, end, self._device)


class Pending:
    """One tensor's inner products on their way."""

    def __init__(self, tensors: Sequence[Tensor], parts: Sequence[Future[Tensor]]) -> None:
        self.tensors = tensors
        self._parts = parts

    def result(self) -> Tensor:
        """(rows, rows) float64, symmetric; 0 where it was known."""
        rows = len(self.tensors) + 1
        sums = torch.zeros(rows, rows, dtype=torch.float64)
        for part in self._parts:  # in the order of the elements, whichever was ready first
            sums += part.result()
        sums = sums.tril() + sums.tril(-1).T
        sums[0, 0] = self.tensors[0].numel()
        return sums


class _Runs:
    """
    What a desk holds of one block.

    Attributes:
        bases: Row b of each tile, (elements,).
        leaves: The rows of the leaves, (elements,) each.
        rows: Per tile, (runs, ones b and leaves, _RUN), padded with zeros.
    """

    def __init__(self, buffer: Tensor, length: int) -> None:
        runs = -(-length // _RUN)
        padded = buffer[:, :, : runs * _RUN]
        if length < runs * _RUN:
            padded[:, 1:, length:] = 0
        self.bases = [tile[1, :length] for tile in padded]
        self.leaves = [row[:length] for tile in padded for row in tile[_FRAME:]]
        self.rows = [tile.view(len(tile), runs, _RUN).transpose(0, 1) for tile in padded]


class _Desk:
    """One core's buffer: for each tile of leaves the rows ones, b and theirs, in float32."""

    def __init__(self, tiles: int, block: int, device: torch.device, memory: Tensor | None) -> None:
        """`memory` is used again where it is large enough."""
        shape = (tiles, _FRAME + _TILE, block + _GAP)
        if memory is None or memory.numel() < math.prod(shape):
            memory = torch.empty(math.prod(shape), dtype=torch.float32, device=device)
        self.tiles, self.block, self.memory = tiles, block, memory
        self._buffer = memory[: math.prod(shape)].view(shape)[:, :, :block]
        self._buffer[:, 0] = 1
        self._whole = _Runs(self._buffer, block)

    def clear(self, count: int) -> None:
        """Zero the places of the last tile that so many leaves leave empty."""
        self._buffer[-1, _FRAME + count - (self.tiles - 1) * _TILE :] = 0

    def fill(self, blocks: Sequence[Tensor]) -> _Runs:
        """Lay out b and the deltas of one block."""
        length = blocks[0].numel()
        runs = self._whole if length == self.block else _Runs(self._buffer, length)
        base = runs.bases[0].copy_(blocks[0])
        for other in runs.bases[1:]:
            other.copy_(base)
        # Rounded to fp32 first, a float64 base would drown small deltas.
        exact = blocks[0] if blocks[0].dtype == torch.float64 else base
        for row, block in zip(runs.leaves, blocks[1:], strict=False):
            torch.sub(block, exact, out=row)
        return runs


class _Sums:
    """Inner products of one stretch, tile by tile; those of tiles before `first` are left out."""

    def __init__(self, tiles: int, first: int, frame: bool, device: torch.device) -> None:
        def zeros(rows: int, columns: int) -> Tensor:
            return torch.zeros(rows, columns, dtype=torch.float64, device=device)

        self._tiles = tiles
        self._device = device
        self._frame = zeros(_FRAME, _FRAME) if frame else None
        self._own = {a: zeros(_FRAME + _TILE, _TILE) for a in range(first, tiles)}
        self._across = {(a, c): zeros(_TILE, _TILE) for a in range(first, tiles) for c in range(a)}

    def add(self, runs: _Runs) -> None:
        leaves = [rows[:, _FRAME:] for rows in runs.rows]
        if self._frame is not None:
            frame = runs.rows[0][:, :_FRAME]
            self._frame += _products(frame, frame)
        for a, own in self._own.items():
            own.add_(_products(runs.rows[a], leaves[a]))
        for (a, c), across in self._across.items():
            across.add_(_products(leaves[a], leaves[c]))

    def gathered(self) -> Tensor:
        """(rows, rows) of {ones, b, leaves}."""
        size = _FRAME + self._tiles * _TILE
        sums = torch.zeros(size, size, dtype=torch.float64, device=self._device)
        if self._frame is not None:
            sums[:_FRAME, :_FRAME] = self._frame
        places = [slice(_FRAME + a * _TILE, _FRAME + (a + 1) * _TILE) for a in range(self._tiles)]
        for a, own in self._own.items():
            sums[places[a], :_FRAME] = own[:_FRAME].T
            sums[places[a], places[a]] = own[_FRAME:]
        for (a, c), across in self._across.items():
            sums[places[a], places[c]] = across
        return sums


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(rows, columns) float64 of (runs, rows, _RUN) and (runs, columns, _RUN)."""
    return torch.bmm(left, right.transpose(1, 2)).sum(0, dtype=torch.float64)


def _copied_ahead(
    tensors: Sequence[Tensor], starts: Sequence[int], end: int, device: torch.device
) -> Iterator[list[Tensor]]:
    """Blocks on the GPU: while one is worked on, the next is on its way through pinned memory."""
    block = _BLOCK["cuda"]
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    work = torch.cuda.current_stream(device)
    ahead: list[tuple[list[Tensor], torch.cuda.Event]] = []
    for at in starts:
        with torch.cuda.stream(copies):
            parts = [tensor[at : min(at + block, end)].pin_memory() for tensor in tensors]
            blocks = [part.to(device, non_blocking=True) for part in parts]
            ahead.append((blocks, copies.record_event()))
        if len(ahead) > 1:
            yield _arrived(ahead.pop(0), work)
            # The host would otherwise run ahead and fill the GPU with blocks that wait.
            work.synchronize()
    for waiting in ahead:
        yield _arrived(waiting, work)


def _arrived(
    waiting: tuple[list[Tensor], torch.cuda.Event], work: torch.cuda.Stream
) -> list[Tensor]:
    blocks, event = waiting
    work.wait_event(event)
    for block in blocks:
        block.record_stream(work)
    return blocks


def doubtful_products(
    measured: Tensor, tensors: Sequence[Tensor], first: int, known: Tensor | None = None
) -> Tensor:
    """
    Which inner products fp32 could not hold, (rows, rows) bool.

    Those that are not finite (NaN or infinite weights, or squares that overflow) and those beside
    a row so faint that products of single elements underflow; beside others these are nothing. The
    zeros of an unchanged tensor are exact, and written into `measured` where another row's overflow
    spoilt them.

    Args:
        first: The first new row.
        known: Squares of the rows before it, (first,), which were measured earlier.
    """
    least = tensors[0].numel() * _FAINT
    squares = measured.diagonal().clone()
    if known is not None:
        squares[: len(known)] = known
    faint = squares < least
    small = (measured.abs() < least) & (faint[:, None] | faint)
    doubtful = ~measured.isfinite() | small
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


def remeasure(measured: Tensor, tensors: Sequence[Tensor], doubtful: Tensor, first: int) -> None:
    """Replace the doubtful products of the rows from `first` on, in place, by float64 ones."""
    rows = [row for row in range(first, len(measured)) if bool(doubtful[row].any())]
    products = torch.zeros(len(rows), len(measured), dtype=torch.float64)
    for block in _float64_rows(tensors):
        for place, row in enumerate(rows):
            products[place] += (block * block[row]).sum(1)
    measured[rows] = torch.where(doubtful[rows], products, measured[rows])


def _float64_rows(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Blocks of {ones, b, d_1 .. d_n} in float64, (rows, elements)."""
    for begin in range(0, tensors[0].numel(), _BLOCK["cpu"]):
        base, *leaves = (t[begin : begin + _BLOCK["cpu"]].double() for t in tensors)
        yield torch.stack([torch.ones_like(base), base, *(leaf - base for leaf in leaves)])
