"""
How strong the evidence is that one model is better than another: a p-value from paired answers.

Two tests, and the larger p counts. The normal test asks how many standard errors the gain is above
zero. The sign-flip test asks how often random signs of the same differences give as large a gain;
it holds where few documents differ, when a standard error means little.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kinship_daemon.errors import KinshipError

__all__ = ["Evidence", "evidence", "flip_chance", "sign_flip", "units", "z_value"]

Floats = NDArray[np.float64]

# The exact sign-flip test lists 2^20 cases at most: 20 differences of 20 sizes, or the right and
# wrong answers to four tasks that differ on some 100 documents each.
_MOST_DOUBLINGS = 20
_FLIPS = 1_000_000
# Random flips alone never say less.
_LEAST_SAMPLED = 1e-6
# Sums that differ by less, relative to the largest difference, are the same sum.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Evidence:
    """
    What paired answers say about a gain.

    Attributes:
        gain: Mean over tasks of the mean difference.
        stderr: Its standard error.
        p: Chance of a gain so far above the least gain by luck, if there is none. In [0, 1].
    """

    gain: float
    stderr: float
    p: float


def evidence(
    differences: Sequence[Floats],
    *,
    min_gain: float = 0.0,
    seed: int = 0,
) -> Evidence:
    """
    One-sided test that the gain is above `min_gain`; every task weighs the same.

    Args:
        differences: For each task, (units,): child minus the other, by document or as `units`.
        seed: Of the random flips, where there are too many cases for the exact test.

    Raises:
        KinshipError: A task has fewer than two documents or clusters.
    """
    gain = sum(float(values.mean()) for values in differences) / len(differences)
    shares = [_shares(values - min_gain, len(differences)) for values in differences]
    stderr = float(np.sqrt(sum(len(x) * x.var(ddof=1) for x in shares)))
    flat = np.concatenate(shares)
    p = max(_normal(gain - min_gain, stderr), sign_flip(flat, seed))
    return Evidence(gain, stderr, min(1.0, p))


def z_value(differences: Sequence[Floats], *, min_gain: float = 0.0) -> float:
    """
    By how many standard errors the gain is above `min_gain`; infinite where nothing varies.

    Args:
        differences: As of `evidence`.
    """
    shares = [_shares(values - min_gain, len(differences)) for values in differences]
    excess = float(sum(x.sum() for x in shares))
    stderr = float(np.sqrt(sum(len(x) * x.var(ddof=1) for x in shares)))
    if stderr == 0:
        return math.inf if excess > 0 else 0.0 if excess == 0 else -math.inf
    return excess / stderr


def flip_chance(differences: Sequence[Floats], *, min_gain: float = 0.0, seed: int = 0) -> float:
    """The sign-flip test of `evidence` alone."""
    shares = [_shares(values - min_gain, len(differences)) for values in differences]
    return sign_flip(np.concatenate(shares), seed)


def units(values: Floats, clusters: NDArray[np.int64]) -> Floats:
    """
    What each cluster of documents says, weighed so that the mean stays that over documents.

    Questions about one text, and one question that is there twice, stand or fall together: they
    are one witness.

    Args:
        values: (documents,).
        clusters: (documents,), the same number for those of one cluster.

    Returns:
        (clusters,)
    """
    _, unit = np.unique(clusters, return_inverse=True)
    sums = np.asarray(np.bincount(unit, weights=values), dtype=np.float64)
    return sums * (len(sums) / len(values))


def _shares(excess: Floats, tasks: int) -> Floats:
    """What each unit of a task adds to the gain over all tasks, (units,)."""
    if len(excess) < 2:
        raise KinshipError(f"a task has {len(excess)} documents to compare; two are needed")
    return np.asarray(excess / (tasks * len(excess)))


def _normal(excess: float, stderr: float) -> float:
    if stderr == 0:
        return 0.0 if excess > 0 else 1.0
    return float(stats.norm.sf(excess / stderr))


def sign_flip(values: Floats, seed: int = 0) -> float:
    """
    How often random signs of the values give as large a sum; exact where the cases can be counted.

    Args:
        values: (n,); zeros have no say.

    Returns:
        In (0, 1]; from random flips never below 1e-6.
    """
    values = values[values != 0]
    if not len(values):
        return 1.0
    values = np.asarray(values / np.abs(values).max(), dtype=np.float64)
    seen = float(values.sum()) - _ROUNDING
    sizes, counts = np.unique(np.abs(values).round(12), return_counts=True)
    doublings = np.log2(counts + 1.0)
    if doublings.sum() - doublings.max() <= _MOST_DOUBLINGS:
        return _exact(sizes, counts, seen)
    return _sampled(values, seen, seed)


def _exact(sizes: Floats, counts: NDArray[np.int64], seen: float) -> float:
    """
    A convolution of binomials: of `counts[i]` values of one size, any number may be positive.

    Every case of all sizes but the most frequent is listed; of that one the tail is known.
    """
    *listed, last = np.argsort(counts, kind="stable")
    sums, chances = np.zeros(1), np.ones(1)
    for place in listed:
        positive = np.arange(counts[place] + 1)
        moves = sizes[place] * (2 * positive - counts[place])
        sums = np.add.outer(sums, moves).ravel()
        weights = stats.binom.pmf(positive, counts[place], 0.5)
        chances = np.multiply.outer(chances, weights).ravel()
    n = counts[last]
    at_least = np.append(stats.binom.sf(np.arange(-1, n), n, 0.5), 0.0)  # k positive or more
    needed = np.ceil((seen - sums) / (2 * sizes[last]) + n / 2)
    return float(chances @ at_least[np.clip(needed, 0, n + 1).astype(np.int64)])


def _sampled(values: Floats, seen: float, seed: int) -> float:
    """A million random flips, the observed one counted in."""
    rng = np.random.default_rng(seed)
    sums = np.zeros(_FLIPS)
    for start in range(0, len(values), 16):
        # All 2^16 sums of 16 values are looked up, not added: a tenth of the time.
        table = np.zeros(1)
        for value in values[start : start + 16]:
            table = np.concatenate([table + value, table - value])
        sums += table[rng.integers(0, len(table), _FLIPS, dtype=np.uint32)]
    reached = int((sums >= seen).sum())
    return max(_LEAST_SAMPLED, (1 + reached) / (1 + _FLIPS))
