"""Whether a merge is better than its parents: the evidence, and the level that it must reach."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kinship_daemon.errors import KinshipError
from kinship_daemon.evaluate.e_value import e_value
from kinship_daemon.evaluate.evidence import evidence, flip_chance, units, z_value
from kinship_daemon.evaluate.looks import chance_of_crossing, is_futile
from kinship_daemon.evaluate.scoring import Look
from kinship_daemon.evaluate.verdict import verdict_words
from kinship_storage.records import Score, Split

__all__ = ["Undecided", "Verdict", "judge", "judge_at_looks"]

_CONFIDENCE = 0.95
# Elements that one batch of resamples may hold: about 16 MB of float64.
_BATCH_ELEMENTS = 2_000_000
# Nobody is surer: the chance of it has no digits left.
_SURELY = 12.0

Floats = NDArray[np.float64]
# By task: for each document, by its id, the first of those that it stands or falls with.
Clusters = Mapping[str, Sequence[int]]
_ALONE: Clusters = {}


@dataclass(frozen=True)
class Verdict:
    """
    The gate's answer for one merge.

    Attributes:
        gain: Child minus whom it was held against, mean over tasks of the mean over documents.
        low: Lower end of the gain's 95 % interval, for the report; `high` the upper.
        n: Documents compared, all tasks together.
        against: Of all that it was compared with, the one that it is least surely better than.
        p: Chance of such a gain over that one by luck, or 1 / e where the gate is strict.
        alpha: The level that p must not exceed.
        reason: The answer in words, with its numbers.
        share: Of all documents, those that were compared.
    """

    passed: bool
    gain: float
    low: float
    high: float
    n: int
    against: str
    p: float
    alpha: float
    reason: str
    share: float = 1.0


@dataclass(frozen=True)
class Undecided:
    """
    More answers are needed.

    Attributes:
        look: Up to which the child is to answer.
        others: Names of those who are, too; the rest need not yet.
    """

    look: Look
    others: tuple[str, ...]


def judge(
    child: Sequence[Score],
    others: Mapping[str, Sequence[Score]],
    *,
    alpha: float,
    min_gain: float,
    resamples: int,
    seed: int,
    strict: bool = False,
    clusters: Clusters = _ALONE,
) -> Verdict:
    """
    Compare a child with each of the others on the validation documents, one by one.

    It must be better than all of them, so the largest p counts. Every task weighs the same,
    however long it is.

    Args:
        others: Its parents, and who else must be beaten, by name.
        alpha: Level of this test.
        min_gain: In units of the score (0.01 is one point of accuracy).
        resamples: Of the bootstrap that the interval comes from.
        strict: Judge by e-values; selection scores are needed, too.
        clusters: Documents that count as one; tasks that are not named have none.

    Raises:
        KinshipError: Nothing to compare, or child and other answered different questions.
    """
    if not others:
        raise KinshipError("a merge without parents cannot be judged; name at least one parent")
    known = {name: _paired(child, each, name, clusters) for name, each in sorted(others.items())}
    if strict:
        before = {n: _paired(child, others[n], n, clusters, "selection") for n in known}
        most = _most(child, clusters)
        bets = {n: e_value(d, before[n], min_gain=min_gain, most=most) for n, d in known.items()}
        chances = {name: min(1.0, 1 / bet) if bet else 1.0 for name, bet in bets.items()}
    else:
        chances = {n: evidence(d, min_gain=min_gain, seed=seed).p for n, d in known.items()}
    # Of equal ones the least gain, then the first name.
    against = max(known, key=lambda name: (chances[name], -_mean_gain(known[name])))
    rules = (alpha, min_gain, resamples, seed)
    return _verdict(against, known[against], chances[against], *rules, n=_documents(child))


def judge_at_looks(
    child: Sequence[Score],
    others: Mapping[str, Sequence[Score]],
    looks: Sequence[Look],
    *,
    alpha: float,
    min_gain: float,
    resamples: int,
    seed: int,
    futility: bool,
    clusters: Clusters = _ALONE,
) -> Verdict | Undecided:
    """
    As `judge`, but with each of the others at the first look that decides between the two.

    Accepted early is what is far enough ahead for a look so early, and given up what could hardly
    pass at the end any more: its p is 1, and it is held against nobody further. What is answered
    beyond the look that decides has no say. Each comparison is a test of its own, and all must be
    passed, so that the level holds.

    Args:
        others: The one that is hardest to beat first.
        futility: Whether merges are given up.
        clusters: As of `judge`.

    Raises:
        KinshipError: As `judge`.
    """
    if not others:
        raise KinshipError("a merge without parents cannot be judged; name at least one parent")
    known: dict[str, _Compared] = {}
    for name in others:
        found = _compare(
            child,
            others[name],
            name,
            looks,
            alpha=alpha,
            min_gain=min_gain,
            seed=seed,
            futility=futility,
            clusters=clusters,
        )
        if isinstance(found, Look):
            return Undecided(found, (name,))
        known[name] = found
        if found.given_up:
            break
    against = max(sorted(known), key=lambda n: (known[n].p, -_mean_gain(known[n].differences)))
    found = known[against]
    rules = (alpha, min_gain, resamples, seed)
    return _verdict(against, found.differences, found.p, *rules, n=found.n, share=found.share)


@dataclass(frozen=True)
class _Compared:
    """What the look that decided says of a child and another model."""

    differences: list[Floats]
    p: float
    n: int
    share: float
    given_up: bool = False


def _compare(
    child: Sequence[Score],
    other: Sequence[Score],
    name: str,
    looks: Sequence[Look],
    *,
    alpha: float,
    min_gain: float,
    seed: int,
    futility: bool,
    clusters: Clusters,
) -> _Compared | Look:
    """At the first look that decides; the look up to which more answers are needed."""
    shares, furthest = tuple(look.share for look in looks), -math.inf
    for look in looks:
        if not (look.is_answered(child) and look.is_answered(other)):
            return look
        mine = look.of(child)
        differences = _paired(mine, look.of(other), name, clusters)
        z = z_value(differences, min_gain=min_gain)
        furthest = min(max(furthest, z * math.sqrt(look.share)), _SURELY)
        p, is_last = chance_of_crossing(furthest, shares), look is looks[-1]
        if p <= alpha or is_last:
            p = max(p, flip_chance(differences, min_gain=min_gain, seed=seed))
        if p <= alpha or is_last:
            return _Compared(differences, p, _documents(mine), look.share)
        if futility and is_futile(z, look.share):
            return _Compared(differences, 1.0, _documents(mine), look.share, given_up=True)
    raise KinshipError("there is no look at the answers; give at least one")


def _verdict(
    against: str,
    differences: Sequence[Floats],
    p: float,
    alpha: float,
    min_gain: float,
    resamples: int,
    seed: int,
    *,
    n: int,
    share: float = 1.0,
) -> Verdict:
    gain = _mean_gain(differences)
    low, high = _interval(differences, resamples, seed)
    passed = p <= alpha
    words = verdict_words(
        passed,
        gain,
        (low, high),
        n,
        against=against,
        p=p,
        alpha=alpha,
        min_gain=min_gain,
        share=share,
    )
    return Verdict(passed, gain, low, high, n, against, p, alpha, words, share)


def _mean_gain(differences: Sequence[Floats]) -> float:
    return _gain(*differences, axis=0).item()


def _documents(child: Sequence[Score]) -> int:
    return sum(len(score.samples) for score in child if score.split == "validation")


def _paired(
    child: Sequence[Score],
    other: Sequence[Score],
    name: str,
    clusters: Clusters,
    split: Split = "validation",
) -> list[Floats]:
    """Child minus other for each document, or cluster, of each task, tasks sorted."""
    mine, theirs = _of_split("the child", child, split), _of_split(name, other, split)
    if theirs.keys() != mine.keys():
        raise KinshipError(
            f"{name} was evaluated on {', '.join(sorted(theirs))} and the child on "
            f"{', '.join(sorted(mine))}; evaluate both on the same tasks"
        )
    found = []
    for task in sorted(mine):
        values = _differences(mine[task], theirs[task], task, name)
        if together := _clusters(mine[task], clusters):
            values = units(values, np.array(together))
            if len(values) < 2:
                raise KinshipError(f"the documents of task {task!r} are all of one cluster")
        found.append(values)
    return found


def _clusters(score: Score, clusters: Clusters) -> list[int]:
    """Of each of its documents, in order of their ids; empty where each stands for itself."""
    of = clusters.get(score.task)
    return [of[document] for document, _ in sorted(score.samples)] if of else []


def _most(child: Sequence[Score], clusters: Clusters) -> list[float]:
    """By task, the largest difference that a unit can have, tasks sorted."""
    found = []
    for _, score in sorted(_of_split("the child", child, "validation").items()):
        sizes = Counter(_clusters(score, clusters))
        found.append(max(sizes.values()) * len(sizes) / sizes.total() if sizes else 1.0)
    return found


def _of_split(name: str, scores: Sequence[Score], split: Split) -> Mapping[str, Score]:
    found = {score.task: score for score in scores if score.split == split}
    if not found:
        raise KinshipError(f"{name} has no {split} scores; evaluate it on {split} first")
    return found


def _differences(mine: Score, theirs: Score, task: str, name: str) -> Floats:
    """Child minus other for each document of one task, (documents,) in order of their ids."""
    for what in ("metric", "task_version"):
        if getattr(mine, what) != getattr(theirs, what):
            raise KinshipError(
                f"task {task!r}: the child's {what} is {getattr(mine, what)} and that of {name} is "
                f"{getattr(theirs, what)}; evaluate both with the same settings"
            )
    ours, others = dict(mine.samples), dict(theirs.samples)
    if ours.keys() != others.keys():
        raise KinshipError(
            f"task {task!r}: the child and {name} were scored on different documents "
            f"({len(ours)} and {len(others)}, {len(ours.keys() & others.keys())} of them shared); "
            "evaluate both with the same settings"
        )
    if len(ours) < 2:
        raise KinshipError(f"task {task!r} has {len(ours)} documents to compare; two are needed")
    return np.array([ours[doc] - others[doc] for doc in sorted(ours)], dtype=np.float64)


def _gain(*differences: Floats, axis: int) -> Floats:
    """Mean over tasks of the mean over documents, which lie on `axis`; other axes are resamples."""
    return np.asarray(np.mean([values.mean(axis=axis) for values in differences], axis=0))


def _interval(differences: Sequence[Floats], resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of the gain; where no document differs from another it is a point."""
    result = stats.bootstrap(
        differences,
        _gain,
        paired=False,  # pairing is in the differences; between tasks resampling is independent
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // sum(len(values) for values in differences)),
        confidence_level=_CONFIDENCE,
        random_state=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
