"""
Thinning out a delta, in place: by magnitude, by chance, or by both.

Magnitudes are compared as the integers that their bits are. A threshold is guessed from a sample,
and where the guess is off found by counting those bits, half of them at a time; sorting would take
many times as long.
"""

import struct
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from kinship_daemon.weights.methods.blocks import (
    Blocks,
    block_size,
    blocks_of,
    buffers_of,
    in_blocks,
)

__all__ = ["keep_by_rank", "keep_largest", "keep_random"]

# A float32's magnitude, read as an int32, and half of its 31 bits (the upper half has 15).
_MAGNITUDE = (1 << 31) - 1
_HALF = 16
_LOWER = (1 << _HALF) - 1
_INFINITY = 0x7F800000  # above every finite magnitude
# Elements counted at a time on a CPU: many, beside the bins that they are counted into.
_COUNTED = 1 << 19
# Elements that a threshold is guessed from.
_SAMPLED = 1 << 18
# Elements drawn, and ranked, at a time: in whole rows.
_DRAWN = 1 << 17

# The magnitude's bits, and where in the tensor its equals cease to be above the cut.
_Cut = tuple[int, int]


def keep_largest(delta: Tensor, count: int, *, skip: int = 0) -> None:
    """
    Zero all but the `count` elements of largest magnitude, after passing over the `skip` largest.

    Exactly so many: of equal magnitudes the first in order count as the larger. `delta` is
    contiguous float32, of finite numbers.
    """
    flat = delta.view(-1)
    outer = _nth_largest(flat, skip + count)
    inner = _nth_largest(flat, skip)

    def work(blocks: Blocks) -> None:
        buffer = buffers_of(flat, 1)[0]
        for block in blocks:
            part = flat[block]
            _shrink(part, block.start, outer)
            if skip:
                passed = buffer[: len(part)].copy_(part)
                _shrink(passed, block.start, inner)
                part.sub_(passed)

    in_blocks(work, flat)


def keep_random(delta: Tensor, density: float, generator: torch.Generator) -> None:
    """Keep each element with probability `density`, zero the others; contiguous float32."""
    flat = delta.view(-1)
    for block in blocks_of(flat.numel(), _DRAWN):
        part = flat[block]
        drawn = torch.empty(len(part)).uniform_(generator=generator)
        part.mul_(torch.lt(drawn, density, out=drawn).to(part.device))


def keep_by_rank(delta: Tensor, density: float, epsilon: float, generator: torch.Generator) -> None:
    """
    Keep each element at random, the larger ones of a row more often; zero the others.

    The probability rises with the rank of the magnitude in its row (the last dimension), evenly
    from density - epsilon to density + epsilon. Of equal magnitudes the later ranks higher. An
    element alone in its row stays with probability `density`. `delta` is contiguous float32.
    """
    if delta.numel() == 0:
        return
    columns = delta.shape[-1] if delta.dim() else 1
    rows = delta.view(-1, columns)
    spread = epsilon if columns > 1 else 0.0
    chances = torch.linspace(density - spread, density + spread, columns)
    places = torch.arange(columns, device=delta.device)
    for block in blocks_of(len(rows), max(1, _DRAWN // columns)):
        part = rows[block]
        # The place below the magnitude: no two keys are equal, so that every sort agrees.
        keys = part.view(torch.int32).bitwise_and(_MAGNITUDE).long().bitwise_left_shift_(32)
        order = keys.bitwise_or_(places).sort(dim=1).values.bitwise_and_((1 << 32) - 1)
        drawn = torch.empty(part.shape).uniform_(generator=generator)
        kept = torch.lt(drawn, chances, out=drawn).to(part.device)
        part.mul_(torch.empty_like(part).scatter_(1, order, kept))


def _nth_largest(flat: Tensor, count: int) -> _Cut:
    """The cut that has exactly `count` elements above it."""
    if count <= 0:
        return _INFINITY, 0
    if count >= flat.numel():
        return 0, flat.numel()
    bits = _guess(flat, count)
    beside = _beside(flat, bits)
    larger, equal = (sum(counts) for counts in beside)
    if not larger < count <= larger + equal:
        bits = _counted(flat, count)
        beside = _beside(flat, bits)
    return bits, _end_of_equals(flat, bits, count, beside)


def _guess(flat: Tensor, count: int) -> int:
    """
    The bits of about the count-th largest magnitude, from a sample.

    The very bits more often than not: differences of bf16 weights are multiples of a few steps,
    and their quantiles values that many share.
    """
    # An odd step, so as to pass through all columns.
    sample = flat[:: flat.numel() // _SAMPLED | 1].abs()
    rank = min(max(1, round(count * len(sample) / flat.numel())), len(sample))
    return int(sample.kthvalue(len(sample) - rank + 1).values.view(torch.int32))


def _beside(flat: Tensor, bits: int) -> tuple[list[int], list[int]]:
    """Block by block, how many magnitudes are larger than this one, and how many equal it."""
    magnitude = _float(bits)

    def work(blocks: Blocks) -> list[tuple[int, int, int]]:
        buffers = buffers_of(flat, 2)
        found = []
        for block in blocks:
            values, spare = buffers[:, : block.stop - block.start]
            torch.abs(flat[block], out=values)
            larger = int(torch.gt(values, magnitude, out=spare).sum())
            found.append((block.start, larger, int(torch.eq(values, magnitude, out=spare).sum())))
        return found

    counted = sorted(chain.from_iterable(in_blocks(work, flat)))
    return [larger for _, larger, _ in counted], [equal for *_, equal in counted]


def _counted(flat: Tensor, count: int) -> int:
    """The bits of the count-th largest magnitude, whatever the magnitudes."""
    upper, rest = _bin_of(_upper_halves(flat), count)
    lower, _ = _bin_of(_lower_halves(flat, upper), rest)
    return upper << _HALF | lower


def _bin_of(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin of the rank-th largest, from 1, and its rank within the bin."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, rank))
    found = len(counts) - 1 - place
    return found, rank - int(from_top[place] - counts[found])


def _upper_halves(flat: Tensor) -> Tensor:
    """How often each upper half of a magnitude's bits occurs, (2^15,) int64 on the CPU."""
    size = _counted_at_once(flat)

    def work(blocks: Blocks) -> Tensor:
        buffer = buffers_of(flat, 1, size)[0].view(torch.int32)
        counts = torch.zeros(1 << (31 - _HALF), dtype=torch.int64, device=flat.device)
        for block in blocks:
            bits = flat[block].view(torch.int32)
            keys = torch.bitwise_and(bits, _MAGNITUDE, out=buffer[: len(bits)])
            keys.bitwise_right_shift_(_HALF)
            counts += torch.bincount(keys, minlength=len(counts))
        return counts

    return torch.stack(in_blocks(work, flat, size)).sum(0).cpu()


def _lower_halves(flat: Tensor, upper: int) -> Tensor:
    """How often each lower half occurs with this upper half, (2^16,) int64 on the CPU."""
    size = _counted_at_once(flat)

    def work(blocks: Blocks) -> Tensor:
        buffer = buffers_of(flat, 1, size)[0].view(torch.int32)
        # The first and the last bin take what has a smaller or larger upper half.
        counts = torch.zeros(_LOWER + 3, dtype=torch.int64, device=flat.device)
        for block in blocks:
            bits = flat[block].view(torch.int32)
            keys = torch.bitwise_and(bits, _MAGNITUDE, out=buffer[: len(bits)])
            keys.sub_((upper << _HALF) - 1).clamp_(0, _LOWER + 2)
            counts += torch.bincount(keys, minlength=len(counts))
        return counts

    return torch.stack(in_blocks(work, flat, size)).sum(0)[1:-1].cpu()


def _counted_at_once(flat: Tensor) -> int:
    return max(_COUNTED, block_size(flat))


def _end_of_equals(
    flat: Tensor, bits: int, count: int, beside: tuple[Sequence[int], Sequence[int]]
) -> int:
    """The place just behind the last that is above the cut of the elements of this magnitude."""
    larger, equals = beside
    up_to = list(accumulate(equals))
    wanted = count - sum(larger)
    block = bisect_left(up_to, wanted)
    start, before = block * block_size(flat), up_to[block] - equals[block]
    equal = flat[start : start + block_size(flat)].abs() == _float(bits)
    return start + int(equal.nonzero()[wanted - before - 1]) + 1


def _shrink(part: Tensor, start: int, cut: _Cut) -> None:
    """Zero what is not above the cut, in a part of the tensor that begins at `start`."""
    bits, end = cut
    inside = min(max(end - start, 0), len(part))
    # hardshrink keeps what exceeds a magnitude: the one just below the cut's, or the cut's.
    for half, limit in ((part[:inside], bits - 1), (part[inside:], bits)):
        torch.ops.aten.hardshrink.out(half, _float(limit), out=half)


def _float(bits: int) -> float:
    """The float32 of these bits; below the bits of 0, a number that every magnitude exceeds."""
    if bits < 0:
        return -1.0
    number: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return number
