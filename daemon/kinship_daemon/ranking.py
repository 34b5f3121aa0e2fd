"""In which order candidates are fetched, whatever the policy: the distant and the popular first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kinship_storage.records import Candidate

__all__ = ["Ranked", "popularity", "ranked"]

# Of a candidate whose kinship could not be estimated: neither near nor far.
_UNKNOWN = 0.5


@dataclass(frozen=True)
class Ranked:
    """A candidate and its place: the higher `value`, the sooner it is fetched."""

    candidate: Candidate
    value: float


def ranked(
    candidates: Sequence[Candidate], *, novelty: float, popularity_weight: float
) -> list[Ranked]:
    """
    Candidates, the best first; ties by name.

    Args:
        novelty: Weight of 1 minus the highest kinship to the population, in [0, 1].
        popularity_weight: Weight of `popularity`, relative to the most popular of these.
    """
    most = max((popularity(candidate) for candidate in candidates), default=0.0) or 1.0

    def value(candidate: Candidate) -> float:
        distance = _UNKNOWN if candidate.novelty is None else candidate.novelty
        distance = min(max(distance, 0.0), 1.0)
        return novelty * distance + popularity_weight * popularity(candidate) / most

    found = [Ranked(candidate, value(candidate)) for candidate in candidates]
    return sorted(found, key=lambda each: (-each.value, each.candidate.model))


def popularity(candidate: Candidate) -> float:
    """Downloads and likes on a scale of magnitudes; a like is worth ten downloads."""
    return math.log1p(candidate.downloads + 10 * candidate.likes)
