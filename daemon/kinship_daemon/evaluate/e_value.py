"""
Evidence as a bet: the e-value of a gain, which may be compared under any dependence of merges.

A bet against "no better" starts with 1 and is multiplied by `1 + l * X_i` for every document. If
the child is no better, its expected end is at most 1, so an end of 100 is luck once in a hundred
times at most (Waudby-Smith and Ramdas, arXiv 2010.09686).
"""

from collections.abc import Sequence
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from kinship_daemon.errors import KinshipError

__all__ = ["e_value"]

Floats = NDArray[np.float64]

# Three stakes, around the one that is best where the evidence just reaches 200.
_STAKES = (0.5, 1.0, 2.0)
_SHARES = (0.25, 0.5, 0.25)
_AIM = sqrt(2 * log(200))
# Nobody bets so much that one document could cost more than nearly all.
_MOST_LOSS = 0.95


def e_value(
    differences: Sequence[Floats],
    selection: Sequence[Floats],
    *,
    min_gain: float = 0.0,
    most: Sequence[float] | None = None,
) -> float:
    """
    E-value of the gain being above `min_gain`; every task weighs the same.

    Args:
        differences: For each validation task, (units,): child minus the other, by document, in
            [-1, 1], or as `evidence.units`.
        selection: The same on the selection documents, which the stakes are chosen by: they must
            not depend on what the bet is about.
        most: For each task, the largest difference that a unit can have; 1 by default.

    Raises:
        KinshipError: Scores are not between 0 and 1.
    """
    bounds = most or [1.0] * len(differences)
    if any(np.abs(v).max() > bound + 1e-9 for v, bound in zip(differences, bounds, strict=True)):
        raise KinshipError("gate.strict takes tasks whose scores are between 0 and 1")
    total, tasks = sum(map(len, differences)), len(differences)
    bets = np.concatenate(
        [(values - min_gain) * total / (tasks * len(values)) for values in differences]
    )
    worst = max(
        (bound + min_gain) * total / (tasks * len(values))
        for values, bound in zip(differences, bounds, strict=True)
    )
    scale = sqrt(total * _variance(differences, selection))
    end = 0.0
    for stake, share in zip(_STAKES, _SHARES, strict=True):
        part = _AIM * stake / scale
        if worst > 0:
            part = min(part, _MOST_LOSS / worst)
        end += share * float(np.exp(np.minimum(np.log1p(part * bets).sum(), 700.0)))
    return end


def _variance(differences: Sequence[Floats], selection: Sequence[Floats]) -> float:
    """Of one bet, as the selection documents foretell it; never 0."""
    # As if one more document differed: a stake is finite where none did.
    seen = [(float((values**2).sum()) + 1) / (len(values) + 1) for values in selection]
    total, tasks = sum(map(len, differences)), len(differences)
    return sum(seen) / len(seen) * total / tasks**2 * sum(1 / len(v) for v in differences)
