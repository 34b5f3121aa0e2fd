"""Ranges of a file: near ones asked for together, and cut out of what came."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

__all__ = ["ByteRange", "cut", "joined_ranges"]

ByteRange = tuple[int, int]  # [start, end) in bytes

_GAP = 2048  # bytes read for nothing that cost less than one more request
_BLOCK = 8 << 20  # ranges are not joined beyond this


def joined_ranges(ranges: Sequence[ByteRange]) -> list[ByteRange]:
    """What to ask for, sorted: near ones as one, empty ones not at all."""
    joined: list[ByteRange] = []
    for start, end in sorted({each for each in ranges if each[0] < each[1]}):
        if joined and _near(joined[-1], (start, end)):
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _near(before: ByteRange, each: ByteRange) -> bool:
    inside = each[1] <= before[1]
    return inside or (each[0] - before[1] <= _GAP and each[1] - before[0] <= _BLOCK)


def cut(
    wanted: Sequence[ByteRange],
    starts: Sequence[int],
    got: Mapping[ByteRange, bytes],
    each: ByteRange,
) -> bytes:
    """
    One each's bytes.

    Args:
        wanted: The joined ranges.
        starts: Where they begin.
        got: Their bytes.
    """
    start, end = each
    if start == end:
        return b""
    # Joined ranges may still overlap where one would have become too long: the last that begins
    # before this one's start need not hold it all.
    at = bisect_right(starts, start) - 1
    while wanted[at][1] < end:
        at -= 1
    whole = wanted[at]
    return got[whole][start - whole[0] : end - whole[0]]
