"""
Gaussian processes over models as points of a space, one for each task, and what they expect.

The logit of a task's score is a constant, a plane, a bowl around the base, a weak general quadratic
and smooth waves (RBF)::

    k(x, y) = C + P x.y + B |x|^2 |y|^2 + Q (x.y)^2 + W exp(-|x - y|^2 / 2 l^2)

The bowl is thought to open downwards (its coefficient has the mean -sqrt(B)): far from the base
every model breaks. The noise is binomial by the answered documents, times a share, for models are
asked the same documents and err alike. B, Q, W, l and the share are those of the largest marginal
likelihood on a small grid, the same for all tasks: few models cannot tell more apart.

Not scikit-learn's: it knows no prior mean, no bowl, and no noise that differs by task. Not BoTorch:
it would bring torch into a policy. What is left for us is a Cholesky factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, logit

__all__ = ["Process"]

Array = NDArray[np.float64]

_CONSTANT, _PLANE = 1.0, 1.0
# On the kernel's diagonal, so that models at one point can be told apart by rounding alone.
_JITTER = 1e-6


class _Scales(NamedTuple):
    """Variances of the kernel's parts, the waves' length, and the share of the binomial noise."""

    bowl: float
    quadratic: float
    waves: float
    length: float
    noise: float


_GRID = tuple(
    _Scales(*scales)
    for scales in product(
        (0.3, 1.0, 3.0), (0.01, 0.1, 0.5), (0.003, 0.03, 0.3), (0.3, 0.7), (0.25, 1.0)
    )
)


@dataclass(frozen=True)
class Process:
    """
    What is known of every task's score, everywhere.

    Attributes:
        points: Of the models it was learnt from, (models, dims).
        centre: Mean logit of each task, (tasks,).
        inverse: Of the kernel with its noise, (tasks, models, models).
        solved: That times what the logits are above the prior's mean, (tasks, models).
    """

    points: Array
    scales: _Scales
    centre: Array
    inverse: Array
    solved: Array

    @classmethod
    def learn(cls, points: Array, scores: Array, documents: Array) -> Process:
        """
        From models that were measured.

        Args:
            points: (models, dims), in units of a fine-tune's length.
            scores: (models, tasks), in [0, 1].
            documents: How many of each task were answered, (models, tasks).
        """
        # Half an answer on each side: none right, or all, has a logit too.
        share = (scores * documents + 0.5) / (documents + 1)
        seen, noise = logit(share).T, 1 / (documents * share * (1 - share)).T
        rest = seen - seen.mean(1, keepdims=True)
        scales = max(_GRID, key=lambda each: _evidence(points, rest, noise, each))
        factors = _factors(points, noise, scales)
        inverse = np.stack([cho_solve(factor, np.eye(len(points))) for factor in factors])
        solved = np.einsum("tij,tj->ti", inverse, rest - _bowl(points, scales))
        return cls(points, scales, seen.mean(1), inverse, solved)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """
        The mean score over tasks, and its standard deviation, (n,) both, at points (n, dims).

        The deviation is of what is not known of the model, without the luck of documents.
        """
        across = _kernel(self.points, points, self.scales)
        scores = self._scores(points, across)
        known = ((self.inverse @ across) * across).sum(1)
        left = np.maximum(_variance(points, self.scales) - known, 0.0)
        slopes = scores * (1 - scores)
        deviation = np.sqrt((slopes**2 * left).sum(0)) / len(scores)
        return np.asarray(scores.mean(0)), np.asarray(deviation)

    def by_task(self, points: Array) -> Array:
        """The expected score on each task, (n, tasks)."""
        return self._scores(points, _kernel(self.points, points, self.scales)).T

    def _scores(self, points: Array, across: Array) -> Array:
        logits = self.centre[:, None] + _bowl(points, self.scales) + self.solved @ across
        return np.asarray(expit(logits))


def _evidence(points: Array, rest: Array, noise: Array, scales: _Scales) -> float:
    """The logarithm of the marginal likelihood over all tasks, less a constant."""
    rest = rest - _bowl(points, scales)
    total = 0.0
    for factor, row in zip(_factors(points, noise, scales), rest, strict=True):
        total -= 0.5 * float(row @ cho_solve(factor, row))
        total -= float(np.log(np.diagonal(factor[0])).sum())
    return round(total, 9)  # so that equals are equal, and the first of them is taken


def _factors(points: Array, noise: Array, scales: _Scales) -> list[tuple[Array, bool]]:
    """Cholesky factors of each task's kernel with its noise, as scipy solves with them."""
    kernel = _kernel(points, points, scales)
    return [cho_factor(kernel + np.diag(scales.noise * each + _JITTER)) for each in noise]


def _bowl(points: Array, scales: _Scales) -> Array:
    """The prior's mean less the constant, (n,)."""
    return np.asarray(-np.sqrt(scales.bowl) * (points**2).sum(1))


def _kernel(one: Array, other: Array, s: _Scales) -> Array:
    inner, a, b = one @ other.T, (one**2).sum(1), (other**2).sum(1)
    apart = np.maximum(a[:, None] + b - 2 * inner, 0.0)
    waves = s.waves * np.exp(-apart / (2 * s.length**2))
    smooth = _CONSTANT + _PLANE * inner + s.bowl * np.outer(a, b) + s.quadratic * inner**2
    return np.asarray(smooth + waves)


def _variance(points: Array, s: _Scales) -> Array:
    """The kernel's diagonal, (n,)."""
    square = (points**2).sum(1)
    return np.asarray(_CONSTANT + _PLANE * square + (s.bowl + s.quadratic) * square**2 + s.waves)
