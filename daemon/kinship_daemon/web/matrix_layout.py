"""A kinship matrix as a few paths, one for each shade, so that 200 models stay a small page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

__all__ = ["SHADES", "shade", "shaded"]

SHADES = 21  # odd, so that the middle one is 0; from -1 to 1

_Values = Sequence[Sequence[float | None]]


def shade(value: float) -> int:
    """0 for -1, `SHADES - 1` for 1; what lies outside is taken as the end."""
    return round((min(max(value, -1.0), 1.0) + 1) / 2 * (SHADES - 1))


def shaded(matrix: _Values) -> dict[int | None, str]:
    """
    Cells of one unit by shade, as a path each; under None those that are unknown.

    Neighbours in a row that have one shade are one rectangle. The diagonal is left out.
    """
    paths: dict[int | None, list[str]] = {}
    for row, values in enumerate(matrix):
        shades = [
            "own" if row == column else None if value is None else shade(value)
            for column, value in enumerate(values)
        ]
        column = 0
        for found, run in groupby(shades):
            length = len(list(run))
            if found != "own":
                cells = paths.setdefault(found, [])  # type: ignore[arg-type]  # own is left out
                cells.append(f"M{column} {row}h{length}v1h-{length}z")
            column += length
    return {key: "".join(paths[key]) for key in sorted(paths, key=lambda k: (k is None, k or 0))}
