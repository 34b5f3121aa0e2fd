"""
The runner: takes steps one at a time, the first kind that has work first.

No device waits meanwhile: see `ahead.py`. What has been answered there is written before anything
else.

What waits for the world, or for a budget, rests, and so does all that would ask the same of it.
What else becomes of a fault is said in `faults.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kinship_daemon.ahead import Ahead
from kinship_daemon.context import Context
from kinship_daemon.errors import (
    BudgetReached,
    KinshipError,
    Stopped,
    Transient,
    Unavailable,
)
from kinship_daemon.faults import Faults, asked_for, is_ahead
from kinship_daemon.retry import reopen
from kinship_daemon.steps.step import Step, Work, guarded, planned
from kinship_storage.jobs import job_key
from kinship_storage.records import Job

__all__ = ["SILENT", "Runner", "Turn"]

# So many in a row that do not come, and the others of the kind need not be asked for either.
SILENT = 5
# So often a job may be done without a rest: a file that is gone again, say. Then it is a bug.
_MOST_REPEATS = 5
# While these are done, devices would wait.
_LONG = frozenset({"device", "disk", "hub"})
# Done as often as the clock says, also while there is other work.
_BY_THE_CLOCK = "watch"


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
    """
    Why a kind of step, or all that needs the hub, is left alone, and until when.

    Attributes:
        holds_up: Whether a run that is to end fails over it, where there is such work.
    """

    until: datetime
    error: KinshipError
    holds_up: bool = True


class Runner:
    """
    One daemon's. For one thread.

    Attributes:
        doing: The step at work now, in words; for any thread.
        hurried: Whether a look at the hub is due meanwhile: it is taken between two models, while
            a device is at the next one.
    """

    doing: str | None = None
    hurried: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, context: Context, steps: Sequence[Step[Any]]) -> None:
        self._context = context
        self._steps = steps
        self._faults = Faults(context)
        self._rests: dict[str, _Rest] = {}
        self._repeated: Counter[str] = Counter()  # how often a job was done since the last rest
        self._dues: list[datetime] = []  # of what this turn found waiting
        self._planned: dict[str, set[str]] = {}  # keys by kind, of plans seen to their end
        self._ahead = Ahead(context)

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
        self._dues, self._planned = [], {}
        asking = [step for step in self._steps if step.needs == "device"]
        asking = [s for s in asking if s.kind not in left_out and self._resting(s, now) is None]
        self._ahead.turn(asking)
        if answered := self._ahead.answered():
            for step in asking:
                if self._work_through(step, now, waiting, answered):
                    return Turn(step.kind, tuple(waiting))
        for step in self._steps:
            if step.kind in left_out:
                continue
            rest = self._resting(step, now)
            if rest is not None:
                with planned(step, self._context) as plan:
                    faults: list[Exception] = []
                    if next(guarded(plan, faults), None) is not None or faults:
                        self._dues.append(rest.until)
                        waiting += [rest.error] if rest.holds_up else []
                continue
            if self._work_through(step, now, waiting):
                return Turn(step.kind, tuple(waiting))
        self._ahead.leave()
        self._repeated.clear()
        self._forget_unplanned(now)
        return Turn(None, tuple(waiting), self._due(now))

    def _reopen(self, now: datetime) -> None:
        """Whoever was set aside for the world, and whose time has come."""
        lineage = self._context.lineage
        if not lineage.due_models(now):
            return
        with lineage.transaction():  # `kinship-daemon retry` opens them beside us
            due = lineage.due_models(now)
            for model in due:
                reopen(lineage, model)
        for model in due:
            words = f"{model.id} is tried again, set aside for: {model.reason}"
            self._context.report.event("retry", words, model=model.id)

    def _resting(self, step: Step[Any], now: datetime) -> _Rest | None:
        names = (step.kind, "hub") if step.needs == "hub" else (step.kind,)
        rests = [self._rests[name] for name in names if name in self._rests]
        return next((rest for rest in rests if is_ahead(rest.until, now)), None)

    def _due(self, now: datetime) -> datetime | None:
        """When something may be done that cannot be done now. Only of what is still planned."""
        set_aside = self._context.lineage.set_aside("world")
        times = [datetime.fromisoformat(each.retry_at) for each in set_aside if each.retry_at]
        ahead = (time for time in [*times, *self._dues] if is_ahead(time, now))
        return min(ahead, default=None)

    def _forget_unplanned(self, now: datetime) -> None:
        """
        What is wanted no more, as things are now, is not said to wait.

        Only once its wait is over: a plan may leave out who waits.
        """
        lineage = self._context.lineage
        with lineage.transaction():
            for job in lineage.jobs("waiting"):
                due = _due(job)
                is_left_out = job.key not in self._planned.get(job.kind, {job.key})
                if is_left_out and (due is None or not is_ahead(due, now)):
                    lineage.retry(job.key)

    def _is_better_left(self, step: Step[Any]) -> bool:
        """Whether the rest of a kind's work is for another turn."""
        if step.needs == "device":
            return self.hurried() and self._ahead.is_busy
        return step.needs in _LONG and bool(self._ahead.answered())

    def _work_through(
        self,
        step: Step[Any],
        now: datetime,
        waiting: list[KinshipError],
        only: Collection[str] | None = None,
    ) -> bool:
        """
        All of a kind's work that can be done. Returns whether any was.

        Args:
            only: Keys of jobs; the others are left for another turn.
        """
        with planned(step, self._context) as plan:
            if only is None:
                return self._work_down(step, plan, now, waiting)
            some = (work for work in plan if job_key(step.kind, work.inputs) in only)
            worked = self._work_down(step, some, now, waiting)
        self._planned.pop(step.kind, None)  # it was not seen to its end
        return worked

    def _work_down(
        self, step: Step[Any], plan: Iterable[Work], now: datetime, waiting: list[KinshipError]
    ) -> bool:
        worked, silent = False, 0
        missed: Transient | None = None
        seen: set[str] = set()
        faults: list[Exception] = []  # one at most: it ends the plan
        for work in guarded(plan, faults):
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
                self._note_wait(key)
            except BudgetReached as error:
                self._note_wait(key)
                if step.holds_up:
                    waiting.append(error)
                if not error.others_may_go_on:
                    self._rest(step.kind, self._context.midnight(), error, step.holds_up)
                    break
            except Transient as error:
                self._note_wait(key)
                missed, silent = error, silent + 1
                if self._hub_is_away(error) or silent == SILENT:
                    break
            if worked and self._is_better_left(step):
                break
        else:
            self._planned[step.kind] = seen
        worked |= self._met_in_plan(step, faults, waiting)
        if missed is not None and (not worked or self._hub_is_away(missed)):
            until = self._context.now() + (asked_for(missed) or self._faults.pause())
            # One that does not come says nothing of the others; many do, and a hub that says when.
            holds_up = step.holds_up or silent == SILENT or asked_for(missed) is not None
            self._rest(step.kind, until, missed, holds_up)
            waiting += [missed] if holds_up else []
        return worked

    def _met_in_plan(
        self, step: Step[Any], faults: Sequence[Exception], waiting: list[KinshipError]
    ) -> bool:
        """Returns whether a model was set aside for it; else the whole kind waits."""
        if not faults:
            return False
        self._planned.pop(step.kind, None)  # it was not seen to its end
        try:
            self._faults.met_in_plan(step, faults[0])
        except (Transient, BudgetReached) as error:
            until = self._context.now() + (asked_for(error) or self._faults.pause())
            if isinstance(error, BudgetReached):
                until = self._context.midnight()
            self._rest(step.kind, until, error, step.holds_up)
            waiting += [error] if step.holds_up else []
            return False
        return True

    def _rest(self, name: str, until: datetime, error: KinshipError, holds_up: bool) -> None:
        self._rests[name] = _Rest(until, error, holds_up)
        self._dues.append(until)

    def _hub_is_away(self, error: KinshipError) -> bool:
        """Whether the hub has said when it is back: nothing is asked of it before."""
        wait = asked_for(error)
        if wait is not None:
            self._rest("hub", self._context.now() + wait, error, holds_up=True)
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
            return step.blames and self._faults.set_aside_again(work, job)
        if job.status == "done" or self._is_early(step, job, now, waiting):
            return False
        with lineage.transaction():
            # Its wait is over, whatever a clock that was set back says.
            if lineage.require_job(job.key).status == "waiting":
                lineage.retry(job.key)
        if step.needs in _LONG:
            self._ahead.ask(step)
        lineage.start(job.key)
        self.doing = step.kind if work.model is None else f"{step.kind} of {work.model}"
        try:
            result = step.run(self._context, work)
            with lineage.finish(job.key):
                step.commit(lineage, work, result)
        except Exception as error:
            self._faults.met(step, work, job.key, error)
        else:
            self._ahead.note(step)
            self._faults.went_well(step, job.key)
            self._note_done(step, work, job.key)
            self._tell(step, work, result)
        finally:
            if not self._context.stop.is_set():  # else it is told what was left
                self.doing = None
        return True

    def _tell(self, step: Step[Any], work: Work, result: Any) -> None:
        """What is done and written is not undone by words that cannot be found for it."""
        try:
            step.tell(self._context, work, result)
        except Exception as error:
            fault = self._faults.contained(step, work, error)
            if fault is None:
                raise
            words = f"{work.model}: {step.kind} is done, but: {fault}"
            self._context.report.event("warning", words, model=work.model)

    def _note_wait(self, key: str) -> None:
        due = _due(self._context.lineage.require_job(key))
        if due is not None:
            self._dues.append(due)

    def _is_early(
        self, step: Step[Any], job: Job, now: datetime, waiting: list[KinshipError]
    ) -> bool:
        due = _due(job)
        if job.status != "waiting" or due is None or not is_ahead(due, now):
            return False
        self._dues.append(due)
        if step.holds_up and (missed := self._faults.missed.get(job.key)) is not None:
            waiting.append(missed)
        return True

    def _note_done(self, step: Step[Any], work: Work, key: str) -> None:
        """Work that is planned again as soon as it is done would never end: a bug is loud."""
        if step.kind == _BY_THE_CLOCK:
            return
        self._repeated[key] += 1
        if self._repeated[key] > _MOST_REPEATS:
            raise RuntimeError(f"{step.kind} is done again and again: {dict(work.inputs)}")


def _due(job: Job) -> datetime | None:
    return None if job.due is None else datetime.fromisoformat(job.due)
