"""From documents to scores: which are to be asked, and what the answers make together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kinship_daemon.evaluate.evaluator import Evaluator
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

__all__ = ["missing", "score_split", "scores"]


def missing(
    settings: Settings, split: Split, known: Iterable[Score] = ()
) -> Mapping[Task, Sequence[int]]:
    """
    The documents of a split that are not in `known` yet, in chunks, by task.

    Args:
        settings: Told what the documents are.
    """
    there = {score.task: {document for document, _ in score.samples} for score in known}
    found = {}
    for task in settings.tasks(split):
        order = documents(
            task.task,
            settings.documents[split][task.task].count,
            split,
            shared=settings.shared(task.task),
            limit=settings.limit,
            seed=settings.seed,
        )
        answered = there.get(task.task, set())
        new = [chunk for chunk in chunks(order, settings.chunk) if not answered.issuperset(chunk)]
        if new:
            found[task] = tuple(document for chunk in new for document in chunk)
    return found


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
