"""
Who can hardly win any more: a model's final score, foretold from the documents asked so far.

The answers of two models that are known on all documents, a merge's parents say, tell much about
the documents that are left: where both are right, the child nearly always is. What it answers in
each cell of their answers foretells the rest of that cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
from numpy.typing import NDArray

from kinship_storage.records import Partial

__all__ = ["RUNGS", "Asked", "Forecast", "can_hardly_be_among", "forecast", "stop_words"]

Floats = NDArray[np.float64]

# Those of the ten looks at which it is decided who goes on.
RUNGS = (1, 3, 6, 10)
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
        total: Documents in all, N, at least n.
        known: Scores of two models that are known on all documents, (2, N), of two parents the
            better one last; None where nobody is.
    """

    answers: Floats
    total: int
    known: Floats | None = None


@dataclass(frozen=True)
class Forecast:
    """The mean over all tasks and documents as foretold, and its standard deviation."""

    mean: float
    stderr: float = 0.0


def can_hardly_be_among(
    found: Forecast, others: Sequence[Forecast], best: int, width: float
) -> bool:
    """
    Whether so many others are surely ahead that a model may stop.

    Args:
        best: Among so many best of all it would have to be.
        width: Standard deviations of the difference by which it must be behind.
    """
    margins = (width * hypot(found.stderr, other.stderr) for other in others)
    ahead = sum(
        found.mean + margin < other.mean for other, margin in zip(others, margins, strict=True)
    )
    return ahead >= best


def forecast(tasks: Sequence[Asked]) -> Forecast:
    """The final score of a model, every task weighing the same."""
    foretold = [_foretell(task) for task in tasks]
    mean = sum(mean for mean, _ in foretold) / len(tasks)
    return Forecast(mean, sqrt(sum(variance for _, variance in foretold)) / len(tasks))


def stop_words(partial: Partial) -> str:
    """Why a model was stopped, for people."""
    assert partial.share is not None
    return (
        f"stopped after {100 * partial.share:.0f} % of its documents: "
        f"it could hardly be among the {partial.best} best"
    )


def _foretell(task: Asked) -> tuple[float, float]:
    """Mean over all documents of a task, and its variance."""
    if len(task.answers) == task.total:
        return float(task.answers.mean()), 0.0
    known = np.zeros((0, task.total)) if task.known is None else task.known
    answers = np.concatenate([task.answers, known.ravel()])
    by = _by_cell if np.isin(answers, (0.0, 1.0)).all() else _by_line
    expected, variance = by(task.answers, known)
    total = float(task.answers.sum()) + expected
    return total / task.total, variance / task.total**2


def _by_cell(answers: Floats, known: Floats) -> tuple[float, float]:
    """
    Right answers among the unseen, and their variance, from the four cells of both models' answers.

    A beta prior in each cell; the variance is that of a beta-binomial. With nobody known there is
    one cell.
    """
    seen = len(answers)
    prior = _PRIOR if len(known) else np.array([0.5])
    cells = (2 ** np.arange(len(known)) @ known).astype(np.int64)
    unseen = np.bincount(cells[seen:], minlength=len(prior))
    asked = np.bincount(cells[:seen], minlength=len(prior))
    right = np.bincount(cells[:seen], weights=answers, minlength=len(prior))
    chance = (right + _WEIGHT * prior) / (asked + _WEIGHT)
    spread = chance * (1 - chance) * (unseen + asked + _WEIGHT) / (asked + _WEIGHT + 1)
    return float(unseen @ chance), float(unseen @ spread)


def _by_line(answers: Floats, known: Floats) -> tuple[float, float]:
    """
    The sum of graded answers among the unseen, and its variance, by a line in both models' answers.

    Bayesian least squares: before anything is asked, the child is the mean of the two, give or
    take; as in `_by_cell`, that counts as much as two documents. With nobody known the line is
    level.
    """
    seen = len(answers)
    rows = np.vstack([np.ones(known.shape[1]), known]).T
    start = np.array([0.0, 0.5, 0.5]) if len(known) else np.array([float(answers.mean())])
    off = answers - rows[:seen] @ start
    precision = rows[:seen].T @ rows[:seen] + _WEIGHT * np.eye(len(start))
    change = np.linalg.solve(precision, rows[:seen].T @ off)
    left = rows[seen:]
    expected = float((left @ (start + change)).sum())
    # With nothing seen, a residual is as wide as what is between the two models.
    before = float(((known[0] - known[1]) ** 2).mean()) / 4 if len(known) else float(answers.var())
    residual = off - rows[:seen] @ change
    noise = (float(residual @ residual) + _WEIGHT * before) / (seen + _WEIGHT)
    total = left.sum(axis=0)
    return expected, noise * (len(left) + float(total @ np.linalg.solve(precision, total)))
