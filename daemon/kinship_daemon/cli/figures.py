"""Kinships as people and machines read them: rounded, undefined, by short names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kinship_daemon.hub.names import user_path
from kinship_daemon.layout import columns, compared
from kinship_daemon.weights.kinship import mean_pairwise

__all__ = ["cell", "fit", "matrix_and_mean", "plain", "short", "triangle"]


def matrix_and_mean(kinships: torch.Tensor) -> dict[str, Any]:
    """A matrix and the mean over its pairs; NaN is no JSON: null."""
    mean = mean_pairwise(kinships)
    return {"matrix": plain(kinships), "mean": None if math.isnan(mean) else mean}


def plain(values: torch.Tensor) -> list[Any]:
    """Nested lists, with None for what is undefined."""
    if values.ndim > 1:
        return [plain(row) for row in values]
    return [None if math.isnan(x) else x for x in values.tolist()]


def short(names: Sequence[str]) -> list[str]:
    """Folders by their last part, unless two would be called the same."""
    last = [_last(name) for name in names]
    return [cut if last.count(cut) == 1 else name for cut, name in zip(last, names, strict=True)]


def cell(value: float | None) -> str:
    return "undefined" if value is None else f"{value:9.4f}"


def fit(labels: Sequence[str], rows: Sequence[Sequence[float | None]]) -> list[list[str]]:
    """
    Cells of a table, the label first, that fits the terminal.

    Labels become shorter, down to 12 characters; then the last columns go.
    """
    most = max(map(len, rows))
    cells = [[*map(cell, row), *[""] * (most - len(row))] for row in rows]
    table = [[label, *row] for label, row in zip(labels, cells, strict=True)]
    return compared([[""] * (most + 1), *table], columns())[1:]


def triangle(names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> Iterator[str]:
    """Lines of a symmetric matrix: each pair once."""
    table = fit(names, [row[: i + 1] for i, row in enumerate(matrix)])
    width = max(len(name) for name, *_ in table)
    for name, *cells in table:
        yield f"{name:<{width}}  {'  '.join(cells)}".rstrip()
    if (shown := len(table[0]) - 1) < len(names):
        yield f"{shown} of {len(names)} columns fit; --format json or csv gives all"


def _last(name: str) -> str:
    folder = user_path(name)
    return folder.resolve().name or name if folder.is_dir() else name
