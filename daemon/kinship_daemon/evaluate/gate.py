"""Whether a merge is provably better than its best parent: a paired bootstrap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kinship_daemon.errors import KinshipError
from kinship_storage.records import Score

__all__ = ["Verdict", "judge"]

# Elements that one batch of resamples may hold: about 16 MB of float64.
_BATCH_ELEMENTS = 2_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """
    The gate's answer for one merge.

    Attributes:
        gain: Child minus parent, mean over tasks of the mean over documents.
        low: Lower end of the gain's confidence interval; `high` the upper.
        n: Documents compared, all tasks together.
        parent: The best parent, which the child was compared with.
        reason: The answer in words, with its numbers.
    """

    passed: bool
    gain: float
    low: float
    high: float
    n: int
    parent: str
    reason: str


def judge(
    child: Sequence[Score],
    parents: Mapping[str, Sequence[Score]],
    *,
    min_gain: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> Verdict:
    """
    Compare a child with its best parent, document by document; scores of other splits are ignored.

    The best parent has the highest validation mean, ties by name. Documents are resampled within
    their task, so every task weighs the same however long it is. The child passes when the lower
    end of the percentile interval lies above `min_gain`.

    Args:
        min_gain: In units of the score (0.01 is one point of accuracy).
        confidence: Of the two-sided interval, such as 0.95.

    Raises:
        KinshipError: Nothing to compare, or child and parent answered different questions.
    """
    if not parents:
        raise KinshipError("a merge without parents cannot be judged; name at least one parent")
    answers = _validation("the child", child)
    known = {name: _validation(name, scores) for name, scores in sorted(parents.items())}
    best = max(known, key=lambda name: _mean(known[name]))  # the first of equals: ties by name
    differences = [_paired(answers, known[best], task, best) for task in _tasks(answers, known)]
    low, high = _interval(differences, confidence, resamples, seed)
    gain = _gain(*differences, axis=0).item()
    n = sum(len(values) for values in differences)
    words = _words(gain, (low, high), f"{best} on {n} documents", min_gain, confidence)
    return Verdict(low > min_gain, gain, low, high, n, best, words)


def _validation(name: str, scores: Sequence[Score]) -> Mapping[str, Score]:
    found = {score.task: score for score in scores if score.split == "validation"}
    if not found:
        raise KinshipError(f"{name} has no validation scores; evaluate it on validation first")
    return found


def _mean(scores: Mapping[str, Score]) -> float:
    return math.fsum(score.score for score in scores.values()) / len(scores)


def _tasks(child: Mapping[str, Score], parents: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """The tasks, sorted; all parents must have exactly them, or their means do not compare."""
    for name, scores in parents.items():
        if scores.keys() != child.keys():
            raise KinshipError(
                f"{name} was validated on {', '.join(sorted(scores))} and the child on "
                f"{', '.join(sorted(child))}; evaluate both on the same tasks"
            )
    return sorted(child)


def _paired(
    child: Mapping[str, Score], parent: Mapping[str, Score], task: str, name: str
) -> Floats:
    """Child minus parent for each document of one task, (documents,) in order of their ids."""
    mine, theirs = child[task], parent[task]
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


def _interval(
    differences: Sequence[Floats], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the gain; where no document differs from another it is a point."""
    result = stats.bootstrap(
        differences,
        _gain,
        paired=False,  # pairing is in the differences; between tasks resampling is independent
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // sum(len(values) for values in differences)),
        confidence_level=confidence,
        random_state=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _words(
    gain: float, ends: tuple[float, float], over: str, min_gain: float, confidence: float
) -> str:
    interval = f"{100 * confidence:.4g} % interval {ends[0]:+.4f} to {ends[1]:+.4f}"
    facts = f"{gain:+.4f} over {over} ({interval})"
    if ends[0] > min_gain:
        return f"better: {facts}; the lower end is above {min_gain:g}"
    if gain > min_gain:
        return f"not certain: {facts}; the lower end is not above {min_gain:g}"
    return f"refused: {gain:+.4f} against {over} ({interval})"
