"""
How much evidence the next merge needs, so that few of a home's publications are luck, for ever.

Every judged merge is a test, every publication a discovery. The levels below hold the false
discovery rate: of all that a home ever publishes, the expected share that is luck.

PyPI's `online-fdr` 1.0.0 is well kept and has both rules, and its SAFFRON gives these levels as
long as none reaches the cap. It cannot be used: it knows no cap and would take a p between the cap
and its own level for a discovery, and its state is an object that is fed once, where ours is
derived from the lineage's rows whenever it is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import zeta

__all__ = ["CAP", "LAMBDA", "Judged", "e_lond", "saffron"]

# A p up to here is a candidate: so many are expected of merges that gain nothing.
LAMBDA = 0.5
# No single merge is published on less evidence, however much the home may afford.
CAP = 0.025
_DECAY = 1.6
_NORM = 1 / float(zeta(_DECAY))


@dataclass(frozen=True)
class Judged:
    """A merge that was judged: its p, and whether it was a discovery."""

    p: float
    passed: bool


def saffron(past: Sequence[Judged], fdr: float) -> float:
    """
    The level of the next test: SAFFRON (Ramdas and others, arXiv 1802.09098), capped.

    Proven for independent tests. Merges share documents; that it holds there is shown by
    simulation (`python -m tests.bench --only gate`).

    Args:
        past: Every test before, in order.
    """
    start = fdr / 2
    number = len(past) + 1
    candidates = [0]  # how many there are up to each test
    for test in past:
        candidates.append(candidates[-1] + (test.p <= LAMBDA))
    level = start * _gamma(number - candidates[-1])
    discoveries = [place for place, test in enumerate(past, 1) if test.passed]
    for rank, place in enumerate(discoveries):
        wealth = fdr - start if rank == 0 else fdr
        level += wealth * _gamma(number - place - (candidates[-1] - candidates[place]))
    return min(CAP, (1 - LAMBDA) * level)


def e_lond(past: Sequence[Judged], fdr: float) -> float:
    """
    The level of the next test, for p = 1 / e: e-LOND (Xu and Ramdas, arXiv 2311.06412).

    Proven under any dependence, and stricter.

    Args:
        past: Every test before, in order.
    """
    return fdr * _gamma(len(past) + 1) * (1 + sum(test.passed for test in past))


def _gamma(number: int) -> float:
    """Of a series that sums to 1."""
    return float(_NORM * number**-_DECAY)
