"""From documents to scores: which are to be asked, and what the answers make together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinship_daemon.evaluate.evaluator import Evaluator
from kinship_daemon.evaluate.looks import LOOKS
from kinship_daemon.evaluate.settings import (
    Answers,
    Progress,
    Settings,
    Task,
    harness_versions,
)
from kinship_daemon.evaluate.split import chunks, documents
from kinship_storage.records import Score, Split

if TYPE_CHECKING:
    from kinship_daemon.weights.materialise import Assembly

__all__ = ["Look", "in_order", "looks", "missing", "score_split", "scores", "split_order"]


def missing(
    settings: Settings, split: Split, known: Iterable[Score] = (), look: int | None = None
) -> Mapping[Task, Sequence[int]]:
    """
    The documents of a split that are not in `known` yet, in chunks, by task.

    Args:
        settings: Told what the documents are.
        look: Only those up to this one of the looks; all by default.
    """
    there = {score.task: {document for document, _ in score.samples} for score in known}
    found = {}
    for task in settings.tasks(split):
        order = split_order(settings, split, task)
        if look is not None:
            order = _upto(order, look, settings.chunk)
        answered = there.get(task.task, set())
        new = [chunk for chunk in chunks(order, settings.chunk) if not answered.issuperset(chunk)]
        if new:
            found[task] = tuple(document for chunk in new for document in chunk)
    return found


@dataclass(frozen=True)
class Look:
    """
    Attributes:
        number: From 1 to LOOKS.
        documents: All that are answered then, by task.
        share: Of what all documents tell, in (0, 1].
    """

    number: int
    documents: Mapping[str, frozenset[int]]
    share: float

    def is_answered(self, scores: Sequence[Score]) -> bool:
        """Whether a model has answered all of them."""
        there = {score.task: {document for document, _ in score.samples} for score in scores}
        return all(there.get(task, set()) >= ids for task, ids in self.documents.items())

    def of(self, scores: Sequence[Score]) -> list[Score]:
        """The scores with the answers of this look alone; their means are those of all."""
        return [
            replace(score, samples=tuple(s for s in score.samples if s[0] in ids))
            for score in scores
            if (ids := self.documents.get(score.task)) is not None
        ]


def looks(
    settings: Settings, split: Split, numbers: Iterable[int] = range(1, LOOKS + 1)
) -> tuple[Look, ...]:
    """
    When to look at the answers to a split; the last time all are there.

    Ten equal looks, of whole chunks: where a task has few chunks, some fall together.

    Args:
        numbers: Which of the ten, ascending.
    """
    orders = {task.task: split_order(settings, split, task) for task in settings.tasks(split)}
    least = sum(1 / len(order) for order in orders.values())
    found: dict[float, Look] = {}
    for number in numbers:
        there = {name: _upto(order, number, settings.chunk) for name, order in orders.items()}
        share = least / sum(1 / len(some) for some in there.values())
        sets = {name: frozenset(some) for name, some in there.items()}
        found.setdefault(share, Look(number, sets, share))
    return tuple(found.values())


def in_order(
    settings: Settings, split: Split, scores: Sequence[Score]
) -> list[NDArray[np.float64]]:
    """What a model answered of each task, in the order in which documents are asked."""
    there = {score.task: dict(score.samples) for score in scores}
    return [
        np.array([known[document] for document in order if document in known], dtype=np.float64)
        for task in settings.tasks(split)
        for order, known in [(split_order(settings, split, task), there.get(task.task, {}))]
    ]


def split_order(settings: Settings, split: Split, task: Task) -> tuple[int, ...]:
    """The documents of a task that a split has, as they are asked."""
    found = settings.documents[split][task.task]
    return documents(
        task.task,
        found.count,
        split,
        clusters=found.clusters,
        shared=settings.shared(task.task),
        limit=settings.limit,
        seed=settings.seed,
    )


def _upto(order: tuple[int, ...], look: int, chunk: int) -> tuple[int, ...]:
    """The first of equal shares, rounded up to whole chunks, of two documents at least."""
    wanted = max(2, len(order) * look / LOOKS)
    return order[: chunk * math.ceil(wanted / chunk)]


def scores(
    answers: Iterable[Answers],
    settings: Settings,
    split: Split,
    weights: str,
    known: Iterable[Score] = (),
) -> tuple[Score, ...]:
    """A score a task of the split, of what is known and the answers, in the settings' order."""
    there = {score.task: score for score in known}
    for answer in answers:
        before = there.get(answer.task)
        samples = {**dict(answer.samples), **dict(before.samples if before else ())}
        values = list(samples.values())
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        there[answer.task] = Score(
            weights=weights,
            task=answer.task,
            split=split,
            settings=settings.fingerprint(split),
            metric=answer.metric,
            task_version=answer.version,
            score=math.fsum(values) / len(values),
            stderr=spread / math.sqrt(len(values)),
            n=len(values),
            seed=settings.seed,
            harness=harness_versions(),
            samples=tuple(sorted(samples.items())),
        )
    return tuple(there[task.task] for task in settings.tasks(split))


def score_split(
    evaluator: Evaluator,
    assembly: Assembly,
    split: Split,
    progress: Progress | None = None,
    known: Sequence[Score] = (),
) -> tuple[Score, ...]:
    """
    Scores on all documents of a split, of which only those are asked that are not known.

    Raises:
        ModelError, KinshipError: As `Evaluator.evaluate`.
    """
    if not evaluator.settings.documents:
        evaluator.check()
    settings = evaluator.settings
    asked = missing(settings, split, known)
    found = evaluator.evaluate(assembly, asked, progress).answers if asked else ()
    return scores(found, settings, split, assembly.identity, known)
