"""Gates at work on simulated homes: the one that is built in, that with looks, the one before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import NormalDist

import numpy as np
from tests.bench.homes import Answers, Born, Home

from kinship_daemon.evaluate.discovery import CAP, LAMBDA, Judged, saffron
from kinship_daemon.evaluate.evidence import evidence, sign_flip
from kinship_daemon.evaluate.looks import LOOKS, chance_of_crossing, is_futile

__all__ = ["Fate", "before", "ours", "with_looks"]

FDR = 0.10
_NORMAL = 1.959963984540054


@dataclass(frozen=True)
class Fate:
    """
    What became of a merge that was judged.

    Attributes:
        gain: Its true gain over its best parent; `over_all` that over all it was held against.
        level: That its p was held against.
        asked: Of its validation documents and of theirs whom it is compared with, the share asked.
    """

    gain: float
    over_all: float
    passed: bool
    level: float = 0.0
    asked: float = 1.0


def before(home: Home) -> list[Fate]:
    """A 95 % interval of the gain over the best parent, which lies above 0; its normal form."""
    fates = []
    for born in home.merges:
        parents = [home.models[name] for name in born.parents]
        if _is_promising(born, parents):
            best = max(parents, key=lambda parent: _mean(parent.validation))
            z, _ = _z(_differences(born, best), 1.0)
            gain = _true_gain(born, parents)
            fates.append(Fate(gain, gain, z > _NORMAL))
    return fates


def ours(home: Home, *, require: str = "best") -> list[Fate]:
    """As the daemon judges today: on all documents."""
    fates: list[Fate] = []
    past: list[Judged] = []
    for born, parents, others in _judged(home, fates, require):
        level = saffron(past, FDR)
        p = max(_p(_differences(born, other)) for other in others)
        past.append(Judged(p, p <= level))
        gain, over_all = _true_gain(born, parents), _true_gain(born, others)
        fates.append(Fate(gain, over_all, p <= level, level))
    return fates


def with_looks(home: Home, fixed: Sequence[Fate], *, futility: bool) -> list[Fate]:
    """
    The same with ten looks at the documents, each verdict at the level of `ours`.

    Args:
        fixed: What `ours` says; its publications are those that merges are compared with.
    """
    fates: list[Fate] = []
    for born, _, others in _judged(home, fixed, "best"):
        judged = fixed[len(fates)]
        p, asked = _looked(born, others, judged.level, futility=futility)
        fates.append(replace(judged, passed=p <= judged.level, asked=asked))
    return fates


def _judged(
    home: Home, fates: Sequence[Fate], require: str
) -> Iterator[tuple[Born, list[Born], list[Born]]]:
    """Merges that deserve it in turn, parents, and whom each is compared with; `fates` may grow."""
    published: list[Born] = []
    place = 0
    for born in home.merges:
        parents = [home.models[name] for name in born.parents]
        if not _is_promising(born, parents):
            continue
        best = _best(published) if require == "best" else None
        others = parents if best is None or best in parents else [*parents, best]
        if not _is_promising(born, others):
            continue
        yield born, parents, others
        if fates[place].passed:
            published.append(born)
        place += 1


def _best(published: Sequence[Born]) -> Born | None:
    """By selection; the last where there is none."""
    if not published or not published[0].selection:
        return published[-1] if published else None
    return max(published, key=lambda born: born.score)


def _is_promising(born: Born, others: Sequence[Born]) -> bool:
    return not born.selection or all(born.score > other.score for other in others)


def _looked(
    born: Born, others: Sequence[Born], level: float, *, futility: bool
) -> tuple[float, float]:
    """
    p, and the share of the documents of all who take part that it took.

    Each comparison has looks of its own, the best on selection first; who is given up is held
    against nobody further.
    """
    hardest_first = sorted(others, key=lambda other: -other.score) if born.selection else others
    found = []
    for other in hardest_first:
        found.append(_compared(_differences(born, other), level, futility=futility))
        if found[-1][0] == 1:
            break
    shares = [share for _, share in found]
    return max(p for p, _ in found), (max(shares) + sum(shares)) / (1 + len(others))


def _compared(
    differences: Sequence[Answers], level: float, *, futility: bool
) -> tuple[float, float]:
    most = -np.inf
    for look in range(1, LOOKS + 1):
        tau, is_last = look / LOOKS, look == LOOKS
        z, shares = _z(differences, tau)
        most = max(most, z * sqrt(tau))
        p = _chance(most)
        if p <= level or is_last:
            p = max(p, sign_flip(np.concatenate(shares)))
        if p <= level or is_last:
            return p, tau
        if futility and is_futile(z, tau):
            return 1.0, tau
    raise AssertionError("the last look decides")


_GRID = np.linspace(-3.0, 8.0, 441)
_CHANCES = np.array([])


def _chance(most: float) -> float:
    """`chance_of_crossing`, looked up: it is asked for a hundred thousand times."""
    global _CHANCES  # noqa: PLW0603 - made once, when it is first asked for
    if not len(_CHANCES):
        _CHANCES = np.array([chance_of_crossing(float(c)) for c in _GRID])
    return float(np.exp(np.interp(most, _GRID, np.log(_CHANCES))))


def _p(differences: Sequence[Answers]) -> float:
    """As `evidence`; where the sign flip could change nothing, it is left out."""
    z, _ = _z(differences, 1.0)
    normal = NormalDist().cdf(-z)
    return normal if CAP < normal < 0.4 or normal > LAMBDA else evidence(differences).p


def _z(differences: Sequence[Answers], tau: float) -> tuple[float, list[Answers]]:
    """Of the first of each task's documents, and what each document adds to the gain."""
    asked = [values[: max(2, round(tau * len(values)))] for values in differences]
    shares = [values / (len(asked) * len(values)) for values in asked]
    gain = sum(float(values.sum()) for values in shares)
    error = sqrt(sum(len(values) * float(values.var(ddof=1)) for values in shares))
    return (gain / error if error else np.sign(gain) * 40.0), shares


def _differences(born: Born, other: Born) -> list[Answers]:
    return [a - b for a, b in zip(born.validation, other.validation, strict=True)]


def _true_gain(born: Born, parents: Sequence[Born]) -> float:
    return born.true - max(parent.true for parent in parents)


def _mean(tasks: Sequence[Answers]) -> float:
    return sum(float(task.mean()) for task in tasks) / len(tasks)
