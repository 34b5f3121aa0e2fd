"""What a page's template needs beyond its facts: where everything stands in its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kinship_daemon.web.charts import Axis, axis, line
from kinship_daemon.web.matrix_layout import SHADES, shade, shaded
from kinship_daemon.web.tree_layout import arrange

__all__ = ["drawn"]

_Facts = Mapping[str, Any]

# Places inside a chart's frame of 640 x 260.
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 624, 14, 222
_DOTS = 25  # of a line; more would be a line themselves
_WIDE, _HIGH, _EDGE = 640, 400, 30  # the map's frame, and what stays free around it
_VALUES = 24  # models up to which cells are large enough for numbers


def drawn(page: str, facts: _Facts) -> dict[str, Any]:
    """Of the page of that name; empty where it has no picture."""
    draw = _PAGES.get(page)
    return {} if draw is None else draw(facts)


def _tree(facts: _Facts) -> dict[str, Any]:
    return {"tree": arrange(facts["models"])}


def _evolution(facts: _Facts) -> dict[str, Any]:
    rows = facts["generations"]
    numbers = [row["generation"] for row in rows]
    x = axis(numbers, _LEFT, _RIGHT, ticks=10, whole=True)
    score = axis([row[key] for row in rows for key in ("best", "top_score")], _BOTTOM, _TOP)
    kin = axis([*(row["top_kinship"] for row in rows), facts["saturated"], 0.0], _BOTTOM, _TOP)
    points = [
        (merge["kinship"].get(facts["metric"]), merge["gain"], merge) for merge in facts["merges"]
    ]
    known = [point for point in points if point[0] is not None]
    across = axis([point[0] for point in known], _LEFT, _RIGHT)
    gain = axis([*(point[1] for point in known), 0.0], _BOTTOM, _TOP)
    return {
        "scores": {
            "x": x,
            "y": score,
            "best": _course(rows, "best", x, score),
            "top": _course(rows, "top_score", x, score),
        },
        "kinships": {"x": x, "y": kin, "top": _course(rows, "top_kinship", x, kin)},
        "gains": {
            "x": across,
            "y": gain,
            "dots": [{"x": across(a), "y": gain(b), "merge": merge} for a, b, merge in known],
        },
    }


def _course(rows: Sequence[_Facts], key: str, x: Axis, y: Axis) -> dict[str, Any]:
    points = [(row["generation"], row.get(key)) for row in rows]
    dots = [{"x": x(a), "y": y(b), "value": b, "at": a} for a, b in points if b is not None]
    return {"path": line(points, x, y), "dots": dots if len(dots) <= _DOTS else dots[-1:]}


def _model(facts: _Facts) -> dict[str, Any]:
    """A forest plot for each split, in per cent of its width: the model above its parents."""
    plots = []
    for split in ("validation", "selection"):
        rows = [row for row in facts["scores"] if row["split"] == split]
        if not rows:
            continue
        x = axis([v for row in rows for v in (row["low"], row["high"], row["score"])], 3, 97)
        lines = [
            {
                "row": row,
                "low": x(row["score"] if row["low"] is None else row["low"]),
                "high": x(row["score"] if row["high"] is None else row["high"]),
                "at": x(row["score"]),
            }
            for row in rows
        ]
        plots.append({"split": split, "x": x, "lines": lines})
    return {"plots": plots}


def _kinship(facts: _Facts) -> dict[str, Any]:
    matrix = facts["matrix"]
    cells = [
        {"x": j + 0.5, "y": i + 0.5, "value": value, "shade": shade(value)}
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
        if value is not None and i != j and len(matrix) <= _VALUES
    ]
    places = _plane(facts["map"])
    return {"paths": shaded(matrix), "cells": cells, "shades": range(SHADES), "places": places}


def _plane(points: Sequence[_Facts]) -> list[dict[str, Any]]:
    """The map's points, one unit as long up as across; those who are admitted on top."""
    if not points:
        return []
    edges = [(min(p[at] for p in points), max(p[at] for p in points)) for at in ("x", "y")]
    room = max(high - low for low, high in edges) or 1.0
    scale = min((_WIDE - 2 * _EDGE) / room, (_HIGH - 2 * _EDGE) / (edges[1][1] - edges[1][0] or 1))
    (left, right), (low, high) = edges
    return [
        {
            "x": round(_WIDE / 2 + (p["x"] - (left + right) / 2) * scale, 1),
            "y": round(_HIGH / 2 - (p["y"] - (low + high) / 2) * scale, 1),
            "point": p,
        }
        for p in sorted(points, key=lambda p: p["status"] == "admitted")
    ]


def _candidates(facts: _Facts) -> dict[str, Any]:
    """Those who wait by novelty and popularity, which are what the order is made of."""
    points = facts["map"]
    x = axis([*(point["novelty"] for point in points), 0.0, 1.0], _LEFT, _RIGHT)
    y = axis([*(point["popularity"] for point in points), 0.0], _BOTTOM, _TOP)
    dots = [{"x": x(p["novelty"]), "y": y(p["popularity"]), "point": p} for p in points]
    return {"map": {"x": x, "y": y, "dots": dots[::-1]}}  # the next to be fetched on top


_PAGES: Mapping[str, Callable[[_Facts], dict[str, Any]]] = {
    "tree": _tree,
    "candidates": _candidates,
    "evolution": _evolution,
    "model": _model,
    "kinship": _kinship,
}
