"""Outlines of thousands of compact vectors: who is most like a newcomer, reading none again."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.sample.sketch import folded

__all__ = ["Outlines"]

# Runs of groups that are added up: 4 x 128 numbers, 2 KB a model. Their cosine is that of the
# vectors give or take 0.04, enough to find the few dozen among whom a merge's parents are.
_RUNS = 4


class Outlines:
    """Kept in memory from one newcomer to the next, by model."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._rows = torch.zeros(0)  # (room, _RUNS * cells); the first ones are in use

    def unknown(self, models: Collection[str]) -> list[str]:
        """Those of these models that have no outline yet, in their order."""
        return [model for model in models if model not in self._places]

    def add(self, vectors: Mapping[str, bytes]) -> None:
        """
        Raises:
            KinshipError: A vector is damaged, or of another plan.
        """
        if not vectors:
            return
        rows, begin = _outlined(list(vectors.values())), len(self._places)
        end = begin + len(rows)
        if end > len(self._rows):
            more = rows.new_zeros(max(end, 2 * begin), rows.shape[1])
            if begin:
                more[:begin] = self._rows[:begin]
            self._rows = more
        self._rows[begin:end] = rows
        self._places |= zip(vectors, range(begin, end), strict=True)

    def most_alike(self, newcomer: bytes, models: Collection[str], most: int) -> list[str]:
        """
        Of models with an outline, those of the largest cosine with a vector, of either sign.

        Raises:
            KinshipError: The vector is damaged.
        """
        names = sorted(models)
        if len(names) <= most:
            return names
        places = torch.tensor([self._places[name] for name in names])
        likeness = (self._rows @ _outlined([newcomer])[0])[places].abs()
        return sorted(names[at] for at in likeness.argsort(descending=True, stable=True)[:most])


def _outlined(vectors: list[bytes]) -> Tensor:
    """Of unit length, (vectors, _RUNS * cells) float32; zeros stay zeros."""
    cells = folded(vectors)[0]
    rows = cells.view(len(cells), _RUNS, -1, cells.shape[2]).sum(2).flatten(1)
    lengths: Tensor = rows.norm(dim=1)
    return rows / lengths.clamp_min(1e-30)[:, None]
