"""
A small Bayesian regression, and the improvement it lets expect.

Features and gains are standardised (mean 0, deviation 1) over what is learnt from. Weights are
normal given the noise, w ~ N(0, 10 s2 I), and the noise inverse gamma, s2 ~ IG(1, 0.1): a prior
that is fixed and weak, not fitted. A gain's own noise is s2 times its share, which is given. A
prediction is then Student's t of 2 + merges degrees of freedom; expected improvement (Jones,
Schonlau and Welch, *Efficient Global Optimization of Expensive Black-Box Functions*, 1998) takes a
normal of the same mean and variance for it. The variance has both parts: of the weights that are
not known yet, and of gains that differ by more than the features say, the noise of evaluation
among it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Regression", "expected_improvement"]

Array = NDArray[np.float64]

_PRECISION, _SHAPE, _RATE = 0.1, 1.0, 0.1


@dataclass(frozen=True)
class Regression:
    """
    A conjugate linear regression of standardised gains on standardised features.

    Attributes:
        shift: Each feature's mean over the merges, (features,).
        scale: Its deviation; 1 where it is the same in all.
        offset: Mean gain.
        unit: The gains' deviation; 1 where all are the same.
        mean: Posterior mean of the weights, intercept first, (1 + features,).
        spread: Posterior covariance of the weights over the noise's variance.
        freedom: Degrees of freedom of a prediction.
        noise: Posterior scale of the noise's variance, b/a.
    """

    shift: Array
    scale: Array
    offset: float
    unit: float
    mean: Array
    spread: Array
    freedom: float
    noise: float

    @classmethod
    def learn(cls, features: Array, gains: Array, shares: Array) -> Regression:
        """
        From merges; an unknown feature counts as average.

        Args:
            features: (merges, features).
            gains: (merges,).
            shares: Of the noise's variance, how much each gain has; above 0, (merges,).
        """
        known = np.isfinite(features)
        count = np.maximum(known.sum(0), 1)
        shift = np.where(known, features, 0.0).sum(0) / count
        squares = np.where(known, features - shift, 0.0) ** 2
        scale = _deviation(np.sqrt(squares.sum(0) / count))
        offset, unit = float(gains.mean()), float(_deviation(gains.std(keepdims=True))[0])
        x = _design(features, shift, scale) / np.sqrt(shares)[:, None]
        y = (gains - offset) / unit / np.sqrt(shares)
        precision = _PRECISION * np.eye(x.shape[1]) + x.T @ x
        spread: Array = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        mean = spread @ (x.T @ y)
        shape = _SHAPE + len(y) / 2
        rate = _RATE + float(y @ y - mean @ precision @ mean) / 2
        return cls(shift, scale, offset, unit, mean, spread, 2 * shape, rate / shape)

    def predict(self, features: Array, shares: Array) -> tuple[Array, Array]:
        """Expected gain of each pair, and its standard deviation, (pairs,) both."""
        x = _design(features, self.shift, self.scale)
        own = np.einsum("ij,ij->i", x @ self.spread, x)
        return self.offset + self.unit * (x @ self.mean), self._deviations(shares + own)

    def weights(self) -> tuple[Array, Array]:
        """What one deviation of each feature adds to the gain, intercept first, and how surely."""
        return self.unit * self.mean, self._deviations(np.diag(self.spread))

    def _deviations(self, spread: Array) -> Array:
        """Of Student's t with these variances over the noise's."""
        deviations: Array = np.sqrt(self.noise * spread * self.freedom / (self.freedom - 2))
        return self.unit * deviations


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """E max(0, y - best) of y ~ N(mean, deviation^2), of each."""
    safe = np.where(deviation > 0, deviation, 1.0)
    z = (mean - best) / safe
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = 0.5 * np.array([math.erfc(x) for x in (-z / math.sqrt(2)).tolist()])
    # Far below the best the two terms cancel to rounding's dust, which may be negative.
    improved = np.maximum(safe * (z * below + density), 0.0)
    result: Array = np.where(deviation > 0, improved, np.maximum(mean - best, 0.0))
    return result


def _design(features: Array, shift: Array, scale: Array) -> Array:
    standard = np.nan_to_num((features - shift) / scale, nan=0.0)
    return np.hstack([np.ones((len(standard), 1)), standard])


def _deviation(values: Array) -> Array:
    """The deviations, with 1 for those that are nothing but rounding."""
    deviations: Array = np.where(values > 1e-12, values, 1.0)
    return deviations
