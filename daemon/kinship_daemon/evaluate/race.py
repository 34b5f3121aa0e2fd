"""
Who can hardly win any more: a model's final score, foretold from the documents asked so far.

The answers of two models that are known on all documents, a merge's parents say, tell much about
the documents that are left: where both are right, the child nearly always is. What it answers in
each cell of their answers foretells the rest of that cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["WIDTH", "Asked", "Forecast", "can_hardly_reach", "forecast"]

Floats = NDArray[np.float64]

# On simulated evolutions 0.1 to 0.4 % of winners are stopped, and losers are asked 23 to 54 % of
# their documents; at 1.9 it is 1.1 to 2.4 %, and 19 to 42 % (docs/benchmarks.md).
WIDTH = 2.6
# Chance that a merge is right where none, one, the other, both of its parents are, before
# anything is asked; it counts as much as two documents.
_PRIOR = np.array([0.04, 0.45, 0.55, 0.96])
_WEIGHT = 2.0


@dataclass(frozen=True)
class Asked:
    """
    One task's documents, in the order in which they are asked.

    Attributes:
        answers: Scores so far, (n,).
        one: Scores of a model that is known on all documents, (N,), N at least n.
        other: Those of another; of two parents the better one.
    """

    answers: Floats
    one: Floats
    other: Floats


@dataclass(frozen=True)
class Forecast:
    """The mean over all tasks and documents as foretold, and its standard deviation."""

    mean: float
    stderr: float


def can_hardly_reach(found: Forecast, goal: float, width: float = WIDTH) -> bool:
    """Whether a model may stop: even `width` standard deviations more would not reach the goal."""
    return found.mean + width * found.stderr < goal


def forecast(tasks: Sequence[Asked]) -> Forecast:
    """The final score of a model, every task weighing the same."""
    foretold = [_foretell(task) for task in tasks]
    mean = sum(mean for mean, _ in foretold) / len(tasks)
    return Forecast(mean, sqrt(sum(variance for _, variance in foretold)) / len(tasks))


def _foretell(task: Asked) -> tuple[float, float]:
    """Mean over all documents of a task, and its variance."""
    total, seen = len(task.one), len(task.answers)
    if seen == total:
        return float(task.answers.mean()), 0.0
    known = np.concatenate([task.answers, task.one, task.other])
    by = _by_cell if np.isin(known, (0.0, 1.0)).all() else _by_line
    expected, variance = by(task)
    return (float(task.answers.sum()) + expected) / total, variance / total**2


def _by_cell(task: Asked) -> tuple[float, float]:
    """
    Right answers among the unseen, and their variance, from the four cells of both models' answers.

    A beta prior in each cell; the variance is that of a beta-binomial.
    """
    seen = len(task.answers)
    cells = (2 * task.other + task.one).astype(np.int64)
    unseen = np.bincount(cells[seen:], minlength=4)
    asked = np.bincount(cells[:seen], minlength=4)
    right = np.bincount(cells[:seen], weights=task.answers, minlength=4)
    chance = (right + _WEIGHT * _PRIOR) / (asked + _WEIGHT)
    spread = chance * (1 - chance) * (unseen + asked + _WEIGHT) / (asked + _WEIGHT + 1)
    return float(unseen @ chance), float(unseen @ spread)


def _by_line(task: Asked) -> tuple[float, float]:
    """
    The sum of graded answers among the unseen, and its variance, by a line in both models' answers.

    Bayesian least squares: before anything is asked, the child is the mean of the two, give or
    take; as in `_by_cell`, that counts as much as two documents.
    """
    seen = len(task.answers)
    known = np.column_stack([np.ones_like(task.one), task.one, task.other])
    start = np.array([0.0, 0.5, 0.5])
    off = task.answers - known[:seen] @ start
    precision = known[:seen].T @ known[:seen] + _WEIGHT * np.eye(3)
    change = np.linalg.solve(precision, known[:seen].T @ off)
    left = known[seen:]
    expected = float((left @ (start + change)).sum())
    # With nothing seen, a residual is as wide as what is between the two models.
    before = float(((task.one - task.other) ** 2).mean()) / 4
    residual = off - known[:seen] @ change
    noise = (float(residual @ residual) + _WEIGHT * before) / (seen + _WEIGHT)
    total = left.sum(axis=0)
    return expected, noise * (len(left) + float(total @ np.linalg.solve(precision, total)))
