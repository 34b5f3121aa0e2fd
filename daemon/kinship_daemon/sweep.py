"""
From one model to another in a straight line, and what becomes of the answers on the way.

As in *Revisiting Model Interpolation for Efficient Reasoning* (arXiv 2510.10977), where a model
between an instruct and a thinking model first is the one, then changes abruptly, then is the other.
That paper tells the stages by the share of responses that think; here they are told by whose
answers are given to the documents that the two models answer differently.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kinship_daemon.weights.recipe import Recipe
from kinship_storage.records import Score

__all__ = ["Point", "Sweep", "sweep"]

# Below so much of the second model's answers it is still the first, above the rest the second.
_EDGE = 0.1


@dataclass(frozen=True)
class Point:
    """
    A model on the line.

    Attributes:
        share: Of the second model, 0 to 1.
        score: Mean over tasks.
        tasks: Score by task.
        second: How far its scores on the disputed documents are from the first model's to the
            second's, 0 to 1 or a little beyond; None where there are none.
    """

    share: float
    score: float
    tasks: Mapping[str, float]
    second: float | None


@dataclass(frozen=True)
class Sweep:
    """
    All of the line, from the first model to the second.

    Attributes:
        disputed: Documents that the two models answer with different scores.
    """

    points: tuple[Point, ...]
    disputed: int

    @property
    def stages(self) -> tuple[float, float] | None:
        """Up to which share it is the first model, and from which on the second."""
        seconds = [point.second for point in self.points if point.second is not None]
        if not seconds:
            return None
        # The ends are the models themselves, with 0 and 1.
        left = next(i for i, second in enumerate(seconds) if second > _EDGE) - 1
        arrived = max(i for i, second in enumerate(seconds) if second < 1 - _EDGE) + 1
        return self.points[left].share, self.points[arrived].share


def sweep(
    first: str,
    second: str,
    steps: int,
    parent: Callable[[str], Sequence[Score]],
    child: Callable[[Recipe], Sequence[Score]],
) -> Sweep:
    """
    Score `steps` - 1 models between two, evenly spaced.

    Args:
        parent: A parent's answers, to the same documents as those of every child.
        child: Those of a merge of both.
    """
    ends = parent(first), parent(second)
    places = [number / steps for number in range(steps + 1)]

    def answers() -> Iterator[tuple[float, Sequence[Score]]]:
        for share in places:
            if share in (0, 1):
                yield share, ends[int(share)]
            else:
                weights = {"weight": [1 - share, share]}
                yield share, child(Recipe("linear", (first, second), weights))

    before, after = (_by_document(each) for each in ends)
    apart = {document: after[document] - value for document, value in before.items()}
    disputed = {document: gap for document, gap in apart.items() if gap}
    points = tuple(_point(share, found, before, disputed) for share, found in answers())
    return Sweep(points, len(disputed))


_Values = Mapping[tuple[str, int], float]


def _point(share: float, found: Sequence[Score], before: _Values, disputed: _Values) -> Point:
    tasks = {score.task: statistics.fmean(v for _, v in score.samples) for score in found}
    values = _by_document(found)
    second = None
    if disputed:
        moved = sum(
            (values[document] - before[document]) * (1 if gap > 0 else -1)
            for document, gap in disputed.items()
        )
        second = moved / sum(map(abs, disputed.values()))
    return Point(share, statistics.fmean(tasks.values()), tasks, second)


def _by_document(found: Sequence[Score]) -> dict[tuple[str, int], float]:
    return {(score.task, at): value for score in found for at, value in score.samples}
