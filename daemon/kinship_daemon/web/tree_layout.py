"""Where each model of the family tree stands: generations from left to right, the best on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

__all__ = ["Column", "Edge", "Node", "Tree", "arrange"]

WIDTH, HEIGHT = 188, 30
_ROW, _COLUMN, _GAP, _HEAD, _EDGE = 44, 200, 56, 44, 16
_ROWS = 22  # of a column; a larger generation takes several columns
SHADES = 7


@dataclass(frozen=True)
class Node:
    """
    Attributes:
        shade: 0 for the lowest scores up to `SHADES - 1`; None without a score.
        state: `passed`, `refused` (by the gate), `failed`, `proposed`, or empty.
    """

    index: int
    model: Mapping[str, Any]
    x: int
    y: int
    shade: int | None
    state: str


@dataclass(frozen=True)
class Edge:
    """From a parent's right edge to a child's left one; the two by index."""

    parent: int
    child: int
    path: str


@dataclass(frozen=True)
class Column:
    title: str
    x: int
    models: int


@dataclass(frozen=True)
class Tree:
    """Attributes: low, high: scores at the ends of the shades; None without any score."""

    width: int
    height: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    columns: tuple[Column, ...]
    low: float | None
    high: float | None


def arrange(models: Sequence[Mapping[str, Any]]) -> Tree:
    """
    Args:
        models: As the page's facts have them, sorted by generation.
    """
    scores = sorted(m["score"] for m in models if m["score"] is not None)
    # A few very bad ones would leave no shades for all others.
    low, high = (scores[len(scores) // 20], scores[-1]) if scores else (None, None)
    nodes: list[Node] = []
    columns: list[Column] = []
    x, tallest = _EDGE, 1
    for generation, members in groupby(models, key=lambda m: m["generation"]):
        ordered = sorted(members, key=lambda m: (-(m["score"] or -1.0), m["id"]))
        title = "founders" if generation == 0 else f"generation {generation}"
        columns.append(Column(title, x, len(ordered)))
        for place, model in enumerate(ordered):
            across, down = divmod(place, _ROWS)
            shade = _shade(model["score"], low, high)
            at = x + across * _COLUMN, _HEAD + down * _ROW
            nodes.append(Node(len(nodes), model, *at, shade, _state(model)))
            tallest = max(tallest, down + 1)
        x += -(-len(ordered) // _ROWS) * _COLUMN + _GAP
    return Tree(
        width=max(x - _GAP - (_COLUMN - WIDTH) + _EDGE, WIDTH + 2 * _EDGE),
        height=_HEAD + tallest * _ROW,
        nodes=tuple(nodes),
        edges=tuple(_edges(nodes)),
        columns=tuple(columns),
        low=low,
        high=high,
    )


def _shade(score: float | None, low: float | None, high: float | None) -> int | None:
    if score is None or low is None or high is None:
        return None
    share = (score - low) / (high - low) if high > low else 1.0
    return min(max(int(share * SHADES), 0), SHADES - 1)


def _state(model: Mapping[str, Any]) -> str:
    if model["status"] in {"quarantined", "refused"}:
        return "failed"
    return "proposed" if model["status"] == "proposed" else model["gate"] or ""


def _edges(nodes: Sequence[Node]) -> list[Edge]:
    places = {node.model["id"]: node for node in nodes}
    found = []
    for child in nodes:
        for name in child.model["parents"]:
            if (parent := places.get(name)) is not None:
                a, b = parent.x + WIDTH, parent.y + HEIGHT // 2
                c, d = child.x, child.y + HEIGHT // 2
                bend = max(24, (c - a) // 2)
                path = f"M{a} {b}C{a + bend} {b} {c - bend} {d} {c} {d}"
                found.append(Edge(parent.index, child.index, path))
    return found
