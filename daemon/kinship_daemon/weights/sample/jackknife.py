"""
Kinship and its standard error from sums over sampled units, by a stratified jackknife.

Every unit is left out once and its stratum's others stand for it; how much the kinship moves tells
how uncertain it is (Quenouille 1956, Tukey 1958; stratified and without replacement: Rust and Rao,
Replication methods for analyzing complex survey data, Stat. Methods Med. Res. 5, 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kinship_daemon.weights.kinship import Metric

__all__ = ["LEVEL", "Estimate", "Moments", "Units", "interval", "jackknife"]

# Standard errors on either side of a value that hold the truth 95 times of 100.
LEVEL = 1.959963984540054

# The sums are float64: of a delta's squares, less is their rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Estimate:
    """
    Kinships, and how far off they may be.

    Attributes:
        value: float64; NaN beside a delta that is zero (for pcc, constant) wherever it was read.
        error: Standard errors, float64: the truth lies within LEVEL of them as often as it should
            also where few blocks decide and Student's t is wider than the normal distribution.
    """

    value: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class Units:
    """
    What was drawn, whichever units it is made of.

    Attributes:
        stratum: Of each unit, (units,) int64, counted from 0.
        drawn: Units drawn in that stratum, (units,) float64.
        weight: How many units each stands for, (units,) float64.
        missed: The share of its stratum that was not drawn, (units,) float64; 0 where all were.
    """

    stratum: Tensor
    drawn: Tensor
    weight: Tensor
    missed: Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """
    Sums over each unit of two deltas' elements, (units, pairs) float64.

    Attributes:
        xy: Products of the two.
        xx, yy: Squares of each.
        x, y: The elements themselves.
    """

    xy: Tensor
    xx: Tensor
    yy: Tensor
    x: Tensor
    y: Tensor


def jackknife(
    moments: Moments, units: Units, parameters: Tensor, metric: Metric, *, skew: bool = True
) -> Estimate:
    """
    Kinship of pairs of deltas.

    Args:
        parameters: Of the whole models, (pairs,) float64.
        skew: Whether the units may be so skew that their sum is, too.

    Returns:
        (pairs,).
    """
    formula = _FORMULAS[metric]
    totals, others = {}, {}
    count = int(units.stratum.max()) + 1
    for each in fields(moments):
        sums = getattr(moments, each.name) * units.weight[:, None]
        totals[each.name] = sums.sum(0)
        # A unit left out, the others of its stratum count for more.
        factor = units.drawn / (units.drawn - 1).clamp_min(1)
        off = sums - _means(sums, units, count)
        others[each.name] = totals[each.name] - factor[:, None] * off
    value = formula(Moments(**totals), parameters)
    moved = formula(Moments(**others), parameters) - value
    share = units.missed * (units.drawn - 1) / units.drawn
    parts = moved * share.sqrt()[:, None]
    error = _error(parts, units, count)
    return Estimate(value, error * _skewed(parts) if skew else error)


def interval(estimate: Estimate, metric: Metric) -> tuple[Tensor, Tensor]:
    """The lower and upper ends of the 95 % intervals, no further than values can be."""
    reach = LEVEL * estimate.error
    least, most = (0.0, torch.inf) if metric == "euclidean" else (-1.0, 1.0)
    low, high = estimate.value - reach, estimate.value + reach
    return low.clamp(least, most), high.clamp(least, most)


def _means(sums: Tensor, units: Units, count: int) -> Tensor:
    """Each unit's stratum's mean, (units, pairs)."""
    means = torch.zeros(count, sums.shape[1], dtype=sums.dtype)
    means.index_add_(0, units.stratum, sums / units.drawn[:, None])
    return means[units.stratum]


def _error(parts: Tensor, units: Units, count: int) -> Tensor:
    """
    Standard errors, widened where few units decide.

    Args:
        parts: Each unit's part of the estimate's deviation, (units, pairs).
    """
    squares = parts.square()
    strata = torch.zeros(count, squares.shape[1], dtype=squares.dtype)
    strata.index_add_(0, units.stratum, squares)
    variance = strata.sum(0)
    freedom = torch.ones(count, dtype=squares.dtype)
    freedom[units.stratum] = (units.drawn - 1).clamp_min(1)
    # Satterthwaite 1946: the degrees of freedom of a sum of variances.
    by_strata = variance.square() / (strata.square() / freedom[:, None]).sum(0)
    # Where a few units of many hold the variance, as heavy tails have it, so few it has. These are
    # 2 V^2 / Var(V), and the units' fourth powers for Var(V) are a little more than it is.
    by_units = 2 * variance.square() / squares.square().sum(0)
    degrees = torch.minimum(by_strata, by_units).nan_to_num(nan=torch.inf)
    return variance.sqrt() * _widened(degrees.clamp_min(1))


def _skewed(parts: Tensor) -> Tensor:
    """How much further the farther end of the interval lies where sums are skew (Johnson 1978)."""
    skewness = parts.pow(3).sum(0).abs() / parts.square().sum(0).pow(1.5)
    return 1 + skewness.nan_to_num(nan=0.0) * (2 * LEVEL**2 + 1) / (6 * LEVEL)


def _widened(degrees: Tensor) -> Tensor:
    """Student's 97.5 % quantile over the normal one (Abramowitz and Stegun 26.7.5)."""
    z = LEVEL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    wide = torch.full_like(degrees, z)
    for power, term in enumerate(terms, start=1):
        wide += term / degrees**power
    return wide / z


def _cosine(sums: Moments, parameters: Tensor) -> Tensor:  # noqa: ARG001 - as the others
    return _normalised(sums.xy, sums.xx, sums.yy, sums)


def _pcc(sums: Moments, parameters: Tensor) -> Tensor:
    def centred(product: Tensor, one: Tensor, other: Tensor) -> Tensor:
        return product - one * other / parameters

    xy, xx = centred(sums.xy, sums.x, sums.y), centred(sums.xx, sums.x, sums.x)
    return _normalised(xy, xx, centred(sums.yy, sums.y, sums.y), sums)


def _normalised(xy: Tensor, xx: Tensor, yy: Tensor, sums: Moments) -> Tensor:
    defined = (xx > _ROUNDING * sums.xx) & (yy > _ROUNDING * sums.yy)
    lengths = torch.where(defined, xx * yy, torch.nan).sqrt()
    return (xy / lengths).clamp(-1, 1)


def _euclidean(sums: Moments, parameters: Tensor) -> Tensor:  # noqa: ARG001 - as the others
    squares = sums.xx + sums.yy - 2 * sums.xy
    return torch.where(squares > _ROUNDING * (sums.xx + sums.yy), squares, 0.0).sqrt()


_FORMULAS: Mapping[Metric, Callable[[Moments, Tensor], Tensor]] = {
    "pcc": _pcc,
    "cosine": _cosine,
    "euclidean": _euclidean,
}
