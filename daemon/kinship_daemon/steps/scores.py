"""Scores under today's settings, and what is gained over the better parent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kinship_daemon.context import Context
from kinship_daemon.steps.rungs import is_stopped, partials
from kinship_storage.records import Model, Score, Split

__all__ = ["gain", "known_means", "mean_error", "mean_score", "parents_of", "scores"]


def scores(
    context: Context, model: Model, split: Split, *, samples: bool = True
) -> tuple[Score, ...]:
    """A model's scores under today's settings, by task; empty if it has none."""
    if model.weights is None:
        return ()
    settings = context.settings.fingerprint(split)
    return tuple(context.lineage.scores(model.weights, split, settings, samples=samples))


def known_means(context: Context, split: Split) -> dict[str, float]:
    """
    Mean score by weights of everyone that has one under today's settings.

    That of who was stopped is foretold; who has more documents to answer has none.
    """
    means = context.lineage.mean_scores(split, context.settings.fingerprint(split))
    if split == "selection":
        for weights, partial in partials(context).items():
            if not is_stopped(context, partial):
                means.pop(weights, None)
    return means


def mean_score(rows: Sequence[Score]) -> float:
    """Mean over tasks; NaN if there are none."""
    return sum(row.score for row in rows) / len(rows) if rows else math.nan


def mean_error(rows: Sequence[Score]) -> float:
    """Standard error of the mean over tasks; NaN if there are none."""
    return math.hypot(*(row.stderr for row in rows)) / len(rows) if rows else math.nan


def parents_of(context: Context, child: Model) -> list[Model]:
    return [context.lineage.require(name) for name in child.parents]


def gain(context: Context, child: Model) -> tuple[float, float]:
    """Selection score, and by how much it is above the better parent's; NaN where unknown."""
    known = known_means(context, "selection")
    value = known.get(child.weights or "", math.nan)
    theirs = [known.get(p.weights or "", math.nan) for p in parents_of(context, child)]
    return value, value - max(theirs, default=math.nan)
