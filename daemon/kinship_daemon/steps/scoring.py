"""Scores: evaluated once per weights, task list and settings, within the day's budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import BudgetReached, WorkerDied
from kinship_daemon.evaluate.records import Score, Split, harness_versions
from kinship_daemon.report import absolute
from kinship_daemon.steps.assemblies import assembly
from kinship_storage.records import Job, Model, ScoreRow

__all__ = ["finished_today", "mean_score", "score", "score_key", "scores"]


def scores(d: Daemon, model: Model, split: Split) -> tuple[Score, ...]:
    """A model's scores under today's settings, by task; empty if it has none."""
    if model.weights is None:
        return ()
    rows = d.lineage.scores(model.weights, split=split, settings=d.settings.fingerprint(split))
    return tuple(
        Score(
            task=row.task,
            split=row.split,
            metric=row.metric,
            task_version=row.task_version,
            score=row.score,
            stderr=row.stderr,
            samples=row.samples,
        )
        for row in rows
    )


def mean_score(rows: Sequence[Score]) -> float:
    """Mean over tasks; NaN if there are none."""
    return sum(row.score for row in rows) / len(rows) if rows else math.nan


def score(d: Daemon, model: Model, split: Split, kind: str) -> bool:
    """Evaluate one model on one list of tasks, unless it is known. Returns whether it is now."""
    key = score_key(d, model, split)
    if scores(d, model, split):
        return True

    _check_hours(d)

    def work() -> tuple[Score, ...]:
        try:
            return _evaluate(d, model, split)
        except WorkerDied as error:
            # Someone else's memory on the device, say: once may be bad luck, twice is the model.
            d.report.event("warning", f"{error}; once more", model=model.id)
            return _evaluate(d, model, split)

    def record(found: tuple[Score, ...]) -> None:
        assert model.weights is not None
        fingerprint = d.settings.fingerprint(split)
        d.lineage.add_scores(
            [
                ScoreRow(
                    weights=model.weights,
                    task=s.task,
                    split=s.split,
                    settings=fingerprint,
                    metric=s.metric,
                    task_version=s.task_version,
                    score=s.score,
                    stderr=s.stderr,
                    n=len(s.samples),
                    seed=d.settings.seed,
                    harness=harness_versions(),
                    samples=s.samples,
                )
                for s in found
            ]
        )
        if model.kind == "finetune" and split == "selection":
            d.report.event(kind, f"{model.id} {mean_score(found):.4f}", model=model.id)

    return d.step(kind, key, model, work, record)


def score_key(d: Daemon, model: Model, split: Split) -> str:
    return f"evaluate:{model.weights}:{split}:{d.settings.fingerprint(split)}"


def finished_today(d: Daemon, *kinds: str) -> list[Job]:
    """Jobs that ended since midnight UTC, well or badly."""
    today = d.now().strftime("%Y-%m-%d")
    return [
        job for kind in kinds for job in d.lineage.jobs(kind=kind) if _day(job.finished) == today
    ]


def _day(moment: str | None) -> str:
    return (moment or "")[:10]


def _evaluate(d: Daemon, model: Model, split: Split) -> tuple[Score, ...]:
    with d.report.progress(f"{split} of {model.id}", None, "documents") as advance:
        return d.evaluator.evaluate(assembly(d, model), split, absolute(advance))


def _check_hours(d: Daemon) -> None:
    limit = d.config.limits.eval_hours_per_day
    spent = sum(_hours(job) for job in finished_today(d, "screen", "score", "merge", "validate"))
    if spent >= limit:
        raise BudgetReached(
            f"limits.eval_hours_per_day {limit:g} used up; the next day (UTC) has its own"
        )


def _hours(job: Job) -> float:
    """Hours that a job took on the day it ended."""
    if job.started is None or job.finished is None:
        return 0.0
    end = datetime.fromisoformat(job.finished)
    midnight = end.replace(hour=0, minute=0, second=0)
    start = max(datetime.fromisoformat(job.started), midnight)
    return (end - start).total_seconds() / 3600
