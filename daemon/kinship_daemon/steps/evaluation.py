"""How a model is evaluated on one list of tasks, whichever step asks for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kinship_daemon.context import Context
from kinship_daemon.errors import (
    BudgetReached,
    EvaluationFailed,
    ModelError,
    WorkerDied,
)
from kinship_daemon.evaluate.scoring import score_split
from kinship_daemon.evaluate.settings import Settings
from kinship_daemon.report import absolute
from kinship_daemon.steps.assemblies import assembly
from kinship_daemon.steps.leaves import source
from kinship_daemon.steps.step import Work
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Score, Split

__all__ = ["BUDGET", "Evaluated", "base_failure", "evaluate", "record", "work_for"]

BUDGET = "evaluation_seconds"


@dataclass(frozen=True)
class Evaluated:
    """
    A model's scores.

    Attributes:
        seconds: That it took, which count for the day.
    """

    scores: Sequence[Score]
    day: str
    seconds: float


def work_for(settings: Settings, model: Model, split: Split) -> Work:
    inputs = {
        "weights": model.weights,
        "split": split,
        "settings": settings.fingerprint(split),
    }
    return Work(inputs, model.id)


def evaluate(context: Context, settings: Settings, work: Work) -> Evaluated:
    """
    Scores of the weights under these settings.

    Raises:
        BudgetReached: The day's hours of evaluation are used up.
        ModelError, Transient: As `Evaluator.evaluate`.
    """
    _check_hours(context)
    began = time.monotonic()
    try:
        try:
            found = _scores(context, settings, work)
        except WorkerDied as error:
            # Someone else's memory on the device, say: once may be bad luck.
            context.report.event("warning", f"{error}; once more", model=work.model)
            found = _scores(context, settings, work)
    except EvaluationFailed as error:
        error.seconds = time.monotonic() - began
        raise
    # Under what they were asked for, whatever a worker makes of it: that is how they are found.
    named = [replace(score, settings=work.inputs["settings"]) for score in found]
    return Evaluated(named, context.today, time.monotonic() - began)


def base_failure(context: Context, work: Work, failure: EvaluationFailed) -> ModelError | None:
    """How the base fails at what a model failed at; None where it does well."""
    evaluator, base = context.evaluator, assembly(context, context.base)
    try:
        if failure.document is None:
            score_split(evaluator, base, work.inputs["split"])
        else:
            evaluator.probe(base, failure.document)
    except ModelError as error:
        return error
    return None


def record(lineage: Lineage, found: Evaluated) -> None:
    """Adds what is new: a score, or documents to one that is there."""
    for score in found.scores:
        there = lineage.scores(score.weights, score.split, score.settings, samples=False)
        if any(known.task == score.task for known in there):
            lineage.extend_score(
                score.weights, score.split, score.task, score.settings, score.samples
            )
        else:
            lineage.add_scores([score])
    lineage.spend(BUDGET, found.day, found.seconds)


def _scores(context: Context, settings: Settings, work: Work) -> Sequence[Score]:
    split: Split = work.inputs["split"]
    model = source(context.lineage, work.inputs["weights"])
    # What was answered before is not asked again.
    known = context.lineage.scores(work.inputs["weights"], split, work.inputs["settings"])
    with context.progress(f"{split} of {work.model}", None, "documents") as advance:
        evaluator = context.evaluators.under(settings)
        made = assembly(context, model)
        return score_split(evaluator, made, split, absolute(advance), known)


def _check_hours(context: Context) -> None:
    limit = context.config.limits.eval_hours_per_day
    if context.spent(BUDGET) >= limit * 3600:
        raise BudgetReached(
            f"limits.eval_hours_per_day {limit:g} used up; the next day (UTC) has its own"
        )
