"""
The runner: takes steps one at a time, and turns what goes wrong into states.

A model's own fault sets that model aside. Trouble of the world sets the job back, for a time that
grows with every try. A budget that is used up is waited for. Whatever else is raised ends the
daemon: a mistake in the settings, a broken lineage, a bug.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kinship_daemon.bugs import note_bug
from kinship_daemon.context import Context
from kinship_daemon.errors import (
    BudgetReached,
    EvaluationFailed,
    KinshipError,
    LeafGone,
    ModelError,
    Stopped,
    Transient,
    Unavailable,
    disk_words,
)
from kinship_daemon.foreign.shown import shown
from kinship_daemon.hub.records import UnknownRepo
from kinship_daemon.retry import reopen
from kinship_daemon.steps.evaluation import base_failure
from kinship_daemon.steps.leaves import dependents
from kinship_daemon.steps.step import Step, Work
from kinship_storage.errors import DamagedLineage, LineageError
from kinship_storage.jobs import job_key
from kinship_storage.records import Job
from kinship_storage.rows import stamp
from kinship_storage.transitions import Cause

__all__ = ["SILENT", "Runner", "Turn"]

# So many in a row that do not come, and the others of the kind need not be asked for either.
SILENT = 5
# A model whose job was put off so often is set aside, so that its generation goes on without it.
_PATIENCE = 3
# So many models in a row that cannot be evaluated, and the base is asked the same.
_SUSPICIOUS = 3
# So often a job may be done without a rest: a file that is gone again, say. Then it is a bug.
_MOST_REPEATS = 5
# Done as often as the clock says, also while there is other work.
_BY_THE_CLOCK = "watch"
_ANSWERED = "hub_answered"  # the hub that this home last heard something of, by its name
# However long the world says it will be away: it is asked again within a day.
_LONGEST_WAIT = timedelta(days=1)
_HOUR = timedelta(hours=1)


_IN_USE = frozenset({"seen", "proposed", "admitted"})


@dataclass(frozen=True)
class Turn:
    """
    What one turn did.

    Attributes:
        kind: The kind of step that was worked through; None where nothing could be done.
        waiting: What keeps work from being done that is planned: the world, or a budget.
        due: When some of it may be tried again; None where nothing waits.
    """

    kind: str | None
    waiting: tuple[KinshipError, ...] = ()
    due: datetime | None = None


@dataclass(frozen=True)
class _Rest:
    """Why a kind of step, or all that needs the hub, is left alone, and until when."""

    until: datetime
    error: KinshipError


class Runner:
    """
    One daemon's. For one thread.

    Attributes:
        doing: The step at work now, in words; for any thread.
    """

    doing: str | None = None

    def __init__(self, context: Context, steps: Sequence[Step[Any]]) -> None:
        self._context = context
        self._steps = steps
        self._rests: dict[str, _Rest] = {}
        self._tries: dict[str, int] = {}  # how often a job was put off since it last went well
        self._repeated: Counter[str] = Counter()  # how often a job was done since the last rest
        self._missed: dict[str, Transient] = {}  # what jobs wait for, but for a single repo
        self._dues: list[datetime] = []  # of the jobs that this turn found waiting
        self._failed: list[str] = []  # models in a row that could not be evaluated
        self._hub_answered = context.lineage.get(_ANSWERED) == context.hub.name

    def loop(self, now: datetime, *, look: bool = False, skip: Iterable[str] = ()) -> Turn:
        """
        One turn: the first kind of step that has work is worked through.

        Args:
            now: The time, UTC.
            look: A look at the hub is due.
            skip: Kinds that are not to be taken.

        Raises:
            Stopped: The daemon was asked to stop; all that is done is saved.
            KinshipError: Nothing that waiting would mend.
        """
        self._reopen(now)
        left_out = {*skip} if look else {*skip, _BY_THE_CLOCK}
        waiting: list[KinshipError] = []
        self._dues = []
        for step in self._steps:
            if step.kind in left_out:
                continue
            rest = self._resting(step, now)
            if rest is not None:
                with _planned(step, self._context) as plan:
                    if next(plan, None) is not None:
                        waiting.append(rest.error)
                continue
            if self._work_through(step, now, waiting):
                return Turn(step.kind, tuple(waiting))
        self._repeated.clear()
        return Turn(None, tuple(waiting), self._due(now))

    def _reopen(self, now: datetime) -> None:
        """Whoever was set aside for the world, and whose time has come."""
        for model in self._context.lineage.due_models(now):
            reopen(self._context.lineage, model)
            self._say(
                "retry", f"{model.id} is tried again, set aside for: {model.reason}", model.id
            )

    def _resting(self, step: Step[Any], now: datetime) -> _Rest | None:
        names = (step.kind, "hub") if step.needs == "hub" else (step.kind,)
        rests = [self._rests[name] for name in names if name in self._rests]
        return next((rest for rest in rests if _is_ahead(rest.until, now)), None)

    def _due(self, now: datetime) -> datetime | None:
        """When something may be done that cannot be done now. Only of what is still planned."""
        set_aside = self._context.lineage.set_aside("world")
        times = [datetime.fromisoformat(each.retry_at) for each in set_aside if each.retry_at]
        times += [rest.until for rest in self._rests.values()] + self._dues
        return min((time for time in times if _is_ahead(time, now)), default=None)

    def _work_through(self, step: Step[Any], now: datetime, waiting: list[KinshipError]) -> bool:
        """Every piece of a kind's work that can be done. Returns whether any was."""
        with _planned(step, self._context) as plan:
            return self._work_down(step, plan, now, waiting)

    def _work_down(
        self, step: Step[Any], plan: Iterable[Work], now: datetime, waiting: list[KinshipError]
    ) -> bool:
        worked, silent = False, 0
        missed: Transient | None = None
        seen: set[str] = set()
        for work in plan:
            if self._context.stop.is_set():
                raise Stopped
            key = job_key(step.kind, work.inputs)
            if key in seen:
                raise RuntimeError(f"{step.kind} plans the same work twice: {dict(work.inputs)}")
            seen.add(key)
            try:
                worked |= self._take(step, work, now, waiting)
                silent = 0
            except Unavailable:
                continue
            except BudgetReached as error:
                if step.holds_up:
                    waiting.append(error)
                if not error.others_may_go_on:
                    until = self._context.midnight()
                    self._rests[step.kind] = _Rest(until, error)
                    break
            except Transient as error:
                missed, silent = error, silent + 1
                if self._hub_is_away(error) or silent == SILENT:
                    break
        if missed is not None and (not worked or self._hub_is_away(missed)):
            until = self._context.now() + (_asked_for(missed) or self._pause())
            self._rests[step.kind] = _Rest(until, missed)
            waiting.append(missed)
        return worked

    def _hub_is_away(self, error: KinshipError) -> bool:
        """Whether the hub has said when it is back: nothing is asked of it before."""
        wait = _asked_for(error)
        if wait is not None:
            self._rests["hub"] = _Rest(self._context.now() + wait, error)
        return wait is not None

    def _take(
        self, step: Step[Any], work: Work, now: datetime, waiting: list[KinshipError]
    ) -> bool:
        """
        Take one step, unless it is not its time. Returns whether anything came of it.

        Raises:
            Transient, BudgetReached: It is to be taken again later; the job says when.
        """
        lineage = self._context.lineage
        job = lineage.submit(step.kind, work.inputs, work.model)
        if job.status == "done" and step.repeats:
            job = lineage.lose(job.key)
        if job.status == "failed":
            return step.blames and self._set_aside_again(work, job)
        if job.status == "done" or self._is_early(step, job, now, waiting):
            return False
        if (due := _due(job)) is not None and due > now:
            lineage.retry_job(job.key)
        lineage.start(job.key)
        self.doing = step.kind if work.model is None else f"{step.kind} of {work.model}"
        for result in self._run(step, work, job.key):
            if step.needs == "device":
                self._failed.clear()
            with lineage.finish(job.key):
                step.commit(lineage, work, result)
            self._tries.pop(job.key, None)
            self._missed.pop(job.key, None)
            self._note_done(step, work, job.key)
            if step.needs == "hub" and not self._hub_answered:
                self._hub_answered = True
                lineage.put(_ANSWERED, self._context.hub.name)
            step.tell(self._context, work, result)
        return True

    def _is_early(
        self, step: Step[Any], job: Job, now: datetime, waiting: list[KinshipError]
    ) -> bool:
        due = _due(job)
        if job.status != "waiting" or due is None or not _is_ahead(due, now):
            return False
        self._dues.append(due)
        if step.holds_up and (missed := self._missed.get(job.key)) is not None:
            waiting.append(missed)
        return True

    def _run(self, step: Step[Any], work: Work, key: str) -> tuple[Any, ...]:
        """The result, in a tuple that is empty where a model was found to be at fault."""
        lineage = self._context.lineage
        try:
            return (step.run(self._context, work),)
        except (ModelError, UnknownRepo) as error:
            if isinstance(error, EvaluationFailed):
                self._doubt(work, key, error)
            self._blame(step, work, key, error)
        except (Transient, BudgetReached) as error:
            self._put_off(step, work, key, error)
            raise
        except DamagedLineage:
            raise  # nothing more is written to it
        except Stopped:
            lineage.interrupt(key)
            raise
        except KinshipError as error:
            # A hub that refuses us after it answered, now or at an earlier start, has a bad hour,
            # as in an outage of its accounts. A wrong token at the first start ends it.
            if isinstance(error, LineageError) or not (step.needs == "hub" and self._hub_answered):
                lineage.interrupt(key)
                raise
            self._put_off(step, work, key, error)
            raise Transient(f"{error}; asked again at the next look") from error
        except Exception as error:
            fault = self._contained(step, work, error)
            if fault is None:
                raise
            self._blame(step, work, key, fault)
        return ()

    def _contained(self, step: Step[Any], work: Work, error: Exception) -> ModelError | None:
        """
        What no step should raise, met over one model, as a fault that keeps that model back.

        It may be a mistake of ours or of a library over a file that nobody foresaw. Nobody knows
        whether the bytes are bad, so the model is tried again, less and less often. None for what
        concerns all: the base, the disk, the database.
        """
        model = work.model
        if model is None or not step.blames or model == self._context.base.id:
            return None
        if isinstance(error, OSError) and disk_words(error) is not None:
            return None
        if type(error).__module__ == "sqlite3":
            return None
        if isinstance(error, MemoryError):
            return ModelError(f"{step.kind} of it takes more memory than there is", cause="world")
        log = self._context.home.bug_log
        note_bug(log, self._context.now(), f"{step.kind} of {model}", error)
        words = f"a bug met in {step.kind} ({shown(repr(error))}); see {log}"
        return ModelError(words, cause="world")

    def _note_done(self, step: Step[Any], work: Work, key: str) -> None:
        """Work that is planned again as soon as it is done would never end: a bug is loud."""
        if step.kind == _BY_THE_CLOCK:
            return
        self._repeated[key] += 1
        if self._repeated[key] > _MOST_REPEATS:
            raise RuntimeError(f"{step.kind} is done again and again: {dict(work.inputs)}")

    def _put_off(self, step: Step[Any], work: Work, key: str, error: KinshipError) -> None:
        """The job waits, longer each time; a model that others wait for is set aside meanwhile."""
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        if isinstance(error, Transient) and not isinstance(error, Unavailable):
            self._missed[key] = error
        wait = _asked_for(error) or self._later(tries)
        due = self._context.now() + wait
        if isinstance(error, BudgetReached) and not error.others_may_go_on:
            due = self._context.midnight()
        self._context.lineage.wait(key, str(error), due)
        self._dues.append(due)
        about = "" if work.model is None else f"{work.model} waits: "
        self._say("warning", f"{about}{error}", work.model)
        # Neither a silent hub nor a worker that cannot start says anything about a model.
        patient = tries < _PATIENCE or isinstance(error, BudgetReached)
        patient |= step.needs in {"hub", "device"}
        if step.blames and work.model is not None and not patient:
            model = self._context.lineage.require(work.model)
            if model.status in _IN_USE - {"seen"} and model.kind != "base":
                self._set_aside(model.id, str(error), "world", None)

    def _doubt(self, work: Work, key: str, error: EvaluationFailed) -> None:
        """
        Whether a model is to blame is seen by the base, which is asked what the model failed at.

        Raises:
            KinshipError: The base fails, too; whoever was set aside for it is taken back.
        """
        lineage = self._context.lineage
        if work.model not in self._failed:
            self._failed.append(str(work.model))
        if error.question is None and len(self._failed) < _SUSPICIOUS:
            return
        failed, self._failed = self._failed, []
        try:
            fault = base_failure(self._context, work, error)
        except (KinshipError, Stopped):
            lineage.interrupt(key)
            raise
        if fault is None:
            return
        lineage.interrupt(key)
        for model in map(lineage.require, failed):
            if model.status == "quarantined":
                reopen(lineage, model)
        raise KinshipError(
            "it is the task's or the machine's fault, not the models', for the base fails as well "
            f"(on {self._context.settings.resolved_device()}; nobody is set aside for it): {fault}"
        ) from fault

    def _blame(
        self, step: Step[Any], work: Work, key: str, error: ModelError | UnknownRepo
    ) -> None:
        """A fault of one model: it is set aside, with the merges that rest on bytes now gone."""
        lineage = self._context.lineage
        cause: Cause = "world" if isinstance(error, UnknownRepo) else error.cause
        setting = None if isinstance(error, UnknownRepo) else error.setting
        culprit = work.model if isinstance(error, UnknownRepo) else error.model or work.model
        if culprit is None or culprit == self._context.base.id or not step.blames:
            lineage.interrupt(key)
            raise KinshipError(str(error)) from error
        with lineage.transaction():
            if culprit != work.model:
                lineage.interrupt(key)  # the work itself is as good as ever
            elif cause == "world":
                lineage.wait(key, str(error), self._next_try(culprit))
            else:
                lineage.fail(key, cause, str(error))
            self._set_aside(culprit, str(error), cause, setting)
            if isinstance(error, LeafGone):
                reason = f"cannot be made any more: {culprit}: {error}"
                for merge in dependents(lineage, culprit):
                    self._set_aside(merge.id, reason, cause, setting)

    def _set_aside_again(self, work: Work, job: Job) -> bool:
        """Work that failed before is not done again: whoever it was about stays aside."""
        model = None if work.model is None else self._context.lineage.model(work.model)
        if model is None or job.cause is None or model.status not in _IN_USE:
            return False
        setting = "evaluate" if job.cause == "settings" else None
        self._set_aside(model.id, job.reason or "it failed before", job.cause, setting)
        return True

    def _set_aside(self, name: str, reason: str, cause: Cause, setting: str | None) -> None:
        if self._context.lineage.require(name).status not in _IN_USE:
            return
        retry_at = stamp(self._next_try(name)) if cause == "world" else None
        self._context.lineage.move_model(
            name, "quarantine", reason=reason, cause=cause, setting=setting, retry_at=retry_at
        )
        self._say("quarantine", reason if name in reason else f"{name}: {reason}", name, cause)

    def _next_try(self, name: str) -> datetime:
        """When a model that the world kept back is tried again: later each time."""
        faults = self._context.lineage.require(name).faults
        return self._context.now() + self._later(1 + faults)

    def _say(self, kind: str, message: str, model: str | None, cause: Cause | None = None) -> None:
        facts = {"model": model, "cause": cause}
        self._context.report.event(kind, message, **{k: v for k, v in facts.items() if v})

    def _pause(self) -> timedelta:
        """The shortest wait for what did not come: it is over at the next look."""
        return timedelta(minutes=self._context.config.watch.poll_minutes) / 2

    def _later(self, tries: int) -> timedelta:
        doubled: timedelta = self._pause() * 2 ** min(tries - 1, 30)
        return min(doubled, _LONGEST_WAIT)


@contextmanager
def _planned(step: Step[Any], context: Context) -> Iterator[Iterator[Work]]:
    """A step's plan, which ends here, with all that it began, and not when it is collected."""
    plan = step.plan(context)
    try:
        yield plan
    finally:
        if isinstance(plan, Generator):
            plan.close()


def _is_ahead(due: datetime, now: datetime) -> bool:
    """Nobody is to wait longer than the longest wait: then the clock was set back meanwhile."""
    return now < due <= now + _LONGEST_WAIT + _HOUR


def _asked_for(error: KinshipError) -> timedelta | None:
    """How long the world says it will be away, within a day; None if it does not say."""
    seconds = error.retry_seconds if isinstance(error, Transient) else None
    if seconds is None:
        return None
    # One more than it says, for the clocks.
    wait = 0.0 if math.isnan(seconds) else max(0.0, seconds)
    return min(timedelta(seconds=min(wait, 1e6) + 1), _LONGEST_WAIT)


def _due(job: Job) -> datetime | None:
    return None if job.due is None else datetime.fromisoformat(job.due)
