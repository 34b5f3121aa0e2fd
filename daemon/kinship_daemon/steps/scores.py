"""Scores under today's settings, and what is gained over the better parent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kinship_daemon.context import Context
from kinship_storage.records import Model, Score, Split

__all__ = ["gain", "known_means", "mean_score", "parents_of", "scores"]


def scores(
    context: Context, model: Model, split: Split, *, samples: bool = True
) -> tuple[Score, ...]:
    """A model's scores under today's settings, by task; empty if it has none."""
    if model.weights is None:
        return ()
    settings = context.settings.fingerprint(split)
    return tuple(context.lineage.scores(model.weights, split, settings, samples=samples))


def known_means(context: Context, split: Split) -> dict[str, float]:
    """Mean score by weights of everyone that has one under today's settings."""
    return context.lineage.mean_scores(split, context.settings.fingerprint(split))


def mean_score(rows: Sequence[Score]) -> float:
    """Mean over tasks; NaN if there are none."""
    return sum(row.score for row in rows) / len(rows) if rows else math.nan


def parents_of(context: Context, child: Model) -> list[Model]:
    return [context.lineage.require(name) for name in child.parents]


def gain(context: Context, child: Model) -> tuple[float, float]:
    """Selection score, and by how much it is above the better parent's; NaN where unknown."""
    value = mean_score(scores(context, child, "selection", samples=False))
    theirs = [
        mean_score(scores(context, parent, "selection", samples=False))
        for parent in parents_of(context, child)
    ]
    return value, value - max(theirs, default=math.nan)
