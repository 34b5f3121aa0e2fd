"""
Looking while documents come in: when a merge may be accepted early, and when it is given up.

The evidence of a share `tau` of the documents, as a z value, times `sqrt(tau)`, moves as Brownian
motion does. It is accepted at the first look at which that is above one constant (O'Brien and
Fleming, Biometrics 1979): early looks ask for much more than the last.
"""

from functools import lru_cache
from itertools import pairwise
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

__all__ = [
    "EQUAL",
    "LOOKS",
    "Shares",
    "boundary",
    "chance_of_crossing",
    "is_futile",
    "predictive_chance",
]

# Of the documents, answered at each look: ascending, the last is 1.
Shares = tuple[float, ...]

LOOKS = 10
EQUAL: Shares = tuple(look / LOOKS for look in range(1, LOOKS + 1))
# What a test without looks asks for at 2.5 %.
_GOAL = 1.959963984540054
# Of merges that did better on selection, and of those they are held against, 32 to 35 % of the
# documents are then asked, and 2 to 5 points of power are lost; at a fifth 28 to 29 %, and 4 to 9
# points (docs/benchmarks.md).
_LEAST_CHANCE = 0.1
# Below so many standard deviations nothing is left; points of the grid above it.
_FLOOR = -8.0
_POINTS = 401


@lru_cache(maxsize=256)
def boundary(alpha: float, shares: Shares = EQUAL) -> float:
    """
    The constant c: accept at the first look where `z * sqrt(tau)` is c or more.

    Args:
        alpha: Chance of ever accepting a merge that gains nothing, in (0, 0.5).
    """
    high = float(stats.norm.isf(alpha / len(shares))) + 1  # a union of the looks needs no more
    found = optimize.brentq(lambda c: chance_of_crossing(c, shares) - alpha, 0.0, high, xtol=1e-9)
    return float(found)


def chance_of_crossing(c: float, shares: Shares = EQUAL) -> float:
    """
    Chance that `z * sqrt(tau)` is c or more at any of the looks, if nothing is gained.

    The exact recursion of Armitage, McPherson and Rowe (1969), on a grid (Simpson's rule). Of the
    largest value that was seen it is the p-value of a test with looks.
    """
    if c <= _FLOOR:
        return 1.0
    first, *steps = (sqrt(b - a) for a, b in pairwise((0.0, *shares)))
    grid = np.linspace(_FLOOR, c, _POINTS)
    weights = _simpson(grid)
    density = _density(grid, first)  # of who is below c after the first look
    crossed = float(stats.norm.sf(c / first))
    for step in steps:
        held = weights * density
        crossed += float(held @ stats.norm.sf((c - grid) / step))
        density = _density(grid[:, None] - grid[None, :], step) @ held
    return min(1.0, crossed)


def predictive_chance(z: float, tau: float, goal: float = _GOAL) -> float:
    """
    Chance that z is `goal` or more once all documents are asked, given that it is z at a share tau.

    Whatever the true gain is, it was as likely as any other before (a flat prior).
    """
    if tau >= 1:
        return float(z >= goal)
    return float(stats.norm.cdf((z / sqrt(tau) - goal) / sqrt((1 - tau) / tau)))


def is_futile(z: float, tau: float) -> bool:
    """Whether to ask no more: the chance of a significant end is under a tenth."""
    return predictive_chance(z, tau) < _LEAST_CHANCE


def _density(moves: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    return np.asarray(np.exp(-((moves / step) ** 2) / 2) / (step * sqrt(2 * pi)))


def _simpson(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.full(len(grid), 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return np.asarray(weights * (grid[1] - grid[0]) / 3)
