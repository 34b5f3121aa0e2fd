"""How models are evaluated on one list of tasks, whichever step asks for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kinship_daemon.context import Context
from kinship_daemon.errors import (
    BudgetReached,
    EvaluationFailed,
    ModelError,
    WorkerDied,
)
from kinship_daemon.evaluate.scoring import Look, missing, scores
from kinship_daemon.evaluate.settings import Answers, Settings, Task
from kinship_daemon.execute.evaluation import Answered
from kinship_daemon.report import Advance
from kinship_daemon.steps.assemblies import ingredients, is_here
from kinship_daemon.steps.leaves import source
from kinship_daemon.steps.step import Work
from kinship_storage.jobs import job_key
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Score, Split

__all__ = [
    "BUDGET",
    "Evaluated",
    "base_failure",
    "evaluate",
    "keep",
    "record",
    "together",
    "work_for",
]

BUDGET = "evaluation_seconds"


@dataclass(frozen=True)
class Evaluated:
    """
    A model's scores.

    Attributes:
        seconds: That a device was busy over it, which count for the day.
    """

    scores: Sequence[Score]
    day: str
    seconds: float


def work_for(settings: Settings, model: Model, split: Split, look: Look | None = None) -> Work:
    """
    Args:
        look: Up to which the documents are asked; all by default.
    """
    inputs: dict[str, Any] = {
        "weights": model.weights,
        "split": split,
        "settings": settings.fingerprint(split),
    }
    if look is not None and look.share < 1:
        inputs["look"] = look.number
    return Work(inputs, model.id)


def together(
    context: Context, kind: str, settings: Settings, works: Sequence[Work]
) -> Iterator[Work]:
    """
    Pieces of a plan that do not depend on each other, in the order in which they are committed.

    While one is waited for, the executor's workers are at the next ones. What was begun stays so
    when the plan ends, until it is wanted or `keep` is told that it is not.

    Args:
        kind: Of the step that they are planned for.
    """
    batch = _Batch(context, settings, works, kind)
    try:
        for number, work in enumerate(works):
            yield replace(
                work, ahead=partial(batch.answer, number), begin=partial(batch.begin, number)
            )
    finally:
        batch.close()


def keep(context: Context, keys: Collection[str]) -> None:
    """Of all models that are asked, go on with these jobs' alone."""
    for key in context.evaluators.begun.difference(keys):
        context.evaluators.leave(key)
        context.files.release(key)


def evaluate(context: Context, settings: Settings, work: Work) -> Evaluated:
    """
    Scores of the weights under these settings.

    Raises:
        BudgetReached: The day's hours of evaluation are used up.
        ModelError, Transient: As `Evaluator.evaluate`.
    """
    _check_hours(context)
    alone = _Batch(context, settings, [work], "evaluate")
    answer = work.ahead or partial(alone.answer, 0)
    try:
        try:
            found = answer()
        except WorkerDied as error:
            # Someone else's memory on the device, say: once may be bad luck.
            context.report.event("warning", f"{error}; once more", model=work.model)
            first = error.seconds
            try:
                found = answer()
            except EvaluationFailed as again:
                again.seconds += first
                raise
            found = replace(found, seconds=found.seconds + first)
    finally:
        alone.close()
    return found


def base_failure(context: Context, work: Work, failure: EvaluationFailed) -> ModelError | None:
    """How the base fails at what a model failed at; None where it does well."""
    asked = failure.document
    settings = context.evaluators.known(context.settings)
    what = missing(settings, work.inputs["split"]) if asked is None else asked
    try:
        context.evaluators.ask(settings, ingredients(context, context.base), what)
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


@dataclass(frozen=True)
class _Asking:
    """What is to be asked of one model: the documents that it did not answer before."""

    settings: Settings
    known: Sequence[Score]
    documents: Mapping[Task, Sequence[int]]

    @property
    def count(self) -> int:
        return sum(map(len, self.documents.values()))


class _Batch:
    """Evaluations that do not depend on each other, and one line of progress for all of them."""

    def __init__(
        self, context: Context, settings: Settings, works: Sequence[Work], kind: str
    ) -> None:
        self._context = context
        self._settings = settings
        self._works = works
        self._kind = kind
        self._counts: dict[str, int] = {}  # documents asked, of each that was begun
        self._done: dict[str, int] = {}  # of these, answered
        self._shown = ExitStack()
        self._advance: Advance | None = None

    def begin(self, number: int) -> None:
        """
        Have one of them asked ahead of its turn.

        Only where there is a worker for it, its files are here and nothing says that its turn will
        not come.
        """
        context, work = self._context, self._works[number]
        if not context.evaluators.room or self._key(work) in context.evaluators.begun:
            return
        job = context.lineage.job(job_key(self._kind, work.inputs))
        if (job is not None and job.status in {"waiting", "failed"}) or _hours_left(context) <= 0:
            return
        try:
            asking = self._asking(work)
            if asking.documents and is_here(
                context, source(context.lineage, work.inputs["weights"])
            ):
                self._begin(work, asking)
        except Exception:
            return  # met again when it is its turn, and then it is told, of this model

    def answer(self, number: int) -> Evaluated:
        """
        What one of them gives; the next ones are begun, as many as there are workers for.

        Raises:
            ModelError, Transient: As `Evaluator.evaluate`.
        """
        work = self._works[number]
        key, asking = self._key(work), self._asking(work)
        self._show(number)
        found = None
        try:
            if asking.documents:
                self._begin(work, asking)
            for later in range(number + 1, len(self._works)):
                if not self._context.evaluators.room:
                    break
                self.begin(later)
            if asking.documents:
                found = self._context.evaluators.result(key)
                if found.evaluation is not None:
                    tell_cut(self._context, work, found.evaluation.answers)
                self._watch(key, asking.count, asking.count)  # also where it was done before
        finally:
            self._context.files.release(key)
        return self._evaluated(work, asking, found)

    def close(self) -> None:
        self._advance = None
        self._shown.close()

    def _key(self, work: Work) -> str:
        return job_key(self._kind, work.inputs)

    def _asking(self, work: Work) -> _Asking:
        settings = self._context.evaluators.known(self._settings)
        split: Split = work.inputs["split"]
        # What was answered before is not asked again.
        weights, fingerprint = work.inputs["weights"], work.inputs["settings"]
        known = self._context.lineage.scores(weights, split, fingerprint)
        return _Asking(settings, known, missing(settings, split, known, work.inputs.get("look")))

    def _begin(self, work: Work, asking: _Asking) -> None:
        """Have it asked these documents, unless it is already."""
        context, key = self._context, self._key(work)
        self._counts[key] = asking.count
        if context.evaluators.is_asked(key, asking.documents):
            return
        context.evaluators.leave(key)  # what it was asked is not what is wanted any more
        made = ingredients(context, source(context.lineage, work.inputs["weights"]))
        names = (source(context.lineage, weights).id for weights in made.sources)
        context.files.hold(key, *names)
        context.evaluators.begin(key, asking.settings, made, asking.documents)

    def _evaluated(self, work: Work, asking: _Asking, found: Answered | None) -> Evaluated:
        evaluation = None if found is None else found.evaluation
        made = scores(
            () if evaluation is None else evaluation.answers,
            asking.settings,
            work.inputs["split"],
            work.inputs["weights"],
            asking.known,
        )
        # Under what they were asked for, whatever a worker makes of it: that is how they are found.
        named = [replace(score, settings=work.inputs["settings"]) for score in made]
        return Evaluated(named, self._context.today, 0.0 if found is None else found.seconds)

    def _show(self, number: int) -> None:
        label = self._label(number)
        if self._advance is None:
            shown = self._context.progress(label, None, "documents")
            self._advance = self._shown.enter_context(shown)
        self._advance(0, label=label)
        self._context.evaluators.watch(self._watch)

    def _label(self, number: int) -> str:
        """Whose turn it is, which of how many it is, and how many are asked at a time."""
        work, lineage = self._works[number], self._context.lineage
        model = lineage.require(str(work.model))
        place = f", {number + 1} of {len(self._works)}" if len(self._works) > 1 else ""
        if model.kind == "merge" and work.inputs["split"] == "selection":
            # Of all of its generation, however many were done in earlier turns.
            merges = [m.id for m in lineage.models("merge") if m.generation == model.generation]
            place = f", merge {merges.index(model.id) + 1} of {len(merges)}"
        at_once = self._context.evaluators.at_once
        together = f"; {at_once} at a time" if at_once > 1 else ""
        return f"{work.inputs['split']} of {model.id}{place}{together}"

    def _watch(self, key: str, done: int, total: int) -> None:
        """Tell how far all are; those that are not begun yet are taken to be like this one."""
        if self._advance is None or key not in self._counts:
            return
        more = done - self._done.get(key, 0)
        self._done[key] = done
        left = len(self._works) - len(self._counts)
        self._advance(more, sum(self._counts.values()) + left * total)


def tell_cut(context: Context, work: Work, answers: Iterable[Answers]) -> None:
    """
    Say of a task that its prompts are longer than what models here read.

    Of the first model that is asked: the others read as much, and none of them is to blame.
    """
    lineage, settings = context.lineage, work.inputs["settings"]
    if lineage.mean_scores(work.inputs["split"], settings) or lineage.partials(settings):
        return
    for each in answers:
        if each.cut:
            context.report.event(
                "warning",
                f"task {each.task!r}: {each.cut} prompts are longer than what {work.model} reads, "
                "and lose their beginning, of which examples come first; fewer num_fewshot or "
                "another task would work",
                task=each.task,
                cut=each.cut,
            )


def _check_hours(context: Context) -> None:
    if _hours_left(context) <= 0:
        limit = context.config.limits.eval_hours_per_day
        raise BudgetReached(
            f"limits.eval_hours_per_day {limit:g} used up; the next day (UTC) has its own"
        )


def _hours_left(context: Context) -> float:
    return context.config.limits.eval_hours_per_day - context.spent(BUDGET) / 3600
