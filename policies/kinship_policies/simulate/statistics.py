"""Paired statistics: bootstrap intervals, sign-flip permutation, Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from kinship_policies.simulate.landscape import Array

__all__ = ["RESAMPLES", "holm", "interval", "sign_flip"]

RESAMPLES = 9999
_GAUSS = NormalDist()
_EXACT = 13  # 2^13 sign patterns are fewer than the resamples
_ROUNDING = 1e-9


def interval(values: Array, seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    BCa bootstrap interval of the mean (Efron 1987).

    With one value, or all of them the same, it has no width: it then says nothing about chance.

    Args:
        values: (n,), n at least 1.
    """
    n = len(values)
    if n < 2 or np.ptp(values) <= _ROUNDING * np.abs(values).max():
        return float(values.mean()), float(values.mean())
    rng = np.random.default_rng([seed, 0xB007])
    means = values[rng.integers(0, n, (RESAMPLES, n))].mean(1)
    # Half of the ties count as below, so that a symmetric lumpy sample has no bias.
    below = (means < values.mean()).mean() + (means == values.mean()).mean() / 2
    bias = _GAUSS.inv_cdf(float(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES)))
    off = values.mean() - values  # in proportion to the jackknife's deviations
    acceleration = float((off**3).sum() / (6 * (off**2).sum() ** 1.5)) * -1
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = (_corrected(_GAUSS.inv_cdf(tail), bias, acceleration) for tail in tails)
    ends = np.quantile(means, [low, high])
    return float(ends[0]), float(ends[1])


def _corrected(z: float, bias: float, acceleration: float) -> float:
    shifted = bias + z
    return _GAUSS.cdf(bias + shifted / (1 - acceleration * shifted))


def sign_flip(differences: Array, seed: int) -> float:
    """
    Two-sided p-value of paired differences: how often random signs give as large a mean.

    Exact for few pairs; otherwise from random signs, the observed ones counted in.

    Args:
        differences: (n,), n at least 1.
    """
    n = len(differences)
    scale = float(np.abs(differences).max())
    if scale == 0:
        return 1.0
    seen = abs(float(differences.sum())) - _ROUNDING * scale
    if n <= _EXACT:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * patterns) @ differences) >= seen).mean())
    rng = np.random.default_rng([seed, 0xF11B])
    signs = 1 - 2 * rng.integers(0, 2, (RESAMPLES, n))
    reached = int((np.abs(signs @ differences) >= seen).sum())
    return (1 + reached) / (1 + RESAMPLES)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979) of a family of p-values, by name."""
    ordered = sorted(p_values.items(), key=lambda item: (item[1], item[0]))
    corrected: dict[str, float] = {}
    least = 0.0
    for rank, (name, p) in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - rank) * p))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}
