"""Cuts a tensor into blocks, and draws some of them, stratum by stratum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kinship_daemon.weights.header import TensorInfo
from kinship_daemon.weights.sample import chance
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["Stratum", "drawn"]

# Blocks drawn of a stratum: neighbours are alike, and what sets strata apart is no error.
_STRATUM = 8


@dataclass(frozen=True)
class Stratum:
    """
    Some neighbouring blocks of one tensor, and those drawn of them.

    Attributes:
        tensor: Its name.
        total: How many there are.
        blocks: [start, end) of those drawn, in elements of the tensor, ascending; of almost equal
            length. In a vocabulary tensor each lies within one row.
    """

    tensor: str
    total: int
    blocks: tuple[tuple[int, int], ...]

    @property
    def drawn(self) -> int:
        return len(self.blocks)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Elements of each drawn block."""
        return tuple(end - start for start, end in self.blocks)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def elements(self) -> int:
        return sum(self.lengths)


def drawn(info: TensorInfo, share: float, length: float, seed: str) -> Iterator[Stratum]:
    """
    The strata of one tensor.

    Args:
        share: Elements that are drawn, about; of two blocks or more, at least two blocks are.
        length: Elements of a block, about.
        seed: Of the draw, with the tensor's name.
    """
    in_rows = is_vocabulary(info.name) and bool(info.shape)
    rows = info.shape[0] if in_rows else 1
    row = info.elements // rows
    per_row = max(1, min(row, -int(-row // length)))
    total = rows * per_row
    many = min(total, max(1, int(share * total / info.elements)))
    if total > 1:
        many = max(many, min(total, 2))  # of one alone no spread can be told
    strata = max(1, many // _STRATUM)
    stream = chance.key(f"{seed} {info.name}")
    for number in range(strata):
        first, last = (total * at // strata for at in (number, number + 1))
        count = many * (number + 1) // strata - many * number // strata
        order = np.argsort(chance.mixed(stream, first, last), kind="stable")[:count]
        blocks = tuple(_block(int(at) + first, row, per_row) for at in np.sort(order))
        yield Stratum(info.name, last - first, blocks)


def _block(block: int, row: int, per_row: int) -> tuple[int, int]:
    """Where a block lies: row by row, each cut into as many blocks."""
    number, at = divmod(block, per_row)
    return number * row + row * at // per_row, number * row + row * (at + 1) // per_row
