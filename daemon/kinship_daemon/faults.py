"""
What goes wrong over a step, turned into states of its job and of models.

A model's own fault sets that model aside. Trouble of the world sets the job back, for a time that
grows with every try. A budget that is used up is waited for. Whatever else is raised ends the
daemon: a mistake in the settings, a broken lineage, a bug.
"""

from __future__ import annotations

import math
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
    PlanFailed,
    Stopped,
    Transient,
    Unavailable,
    about,
    machine_words,
)
from kinship_daemon.foreign.shown import shown
from kinship_daemon.hub.records import UnknownRepo
from kinship_daemon.retry import reopen
from kinship_daemon.steps.evaluation import BUDGET as EVALUATION_BUDGET
from kinship_daemon.steps.evaluation import base_failure
from kinship_daemon.steps.leaves import dependents
from kinship_daemon.steps.objections import same_as
from kinship_daemon.steps.step import Step, Work
from kinship_storage.errors import DamagedLineage, LineageError
from kinship_storage.records import Job
from kinship_storage.rows import stamp
from kinship_storage.transitions import Cause

__all__ = ["Faults", "asked_for", "is_ahead"]

# A model whose job was put off so often is set aside, so that its generation goes on without it.
_PATIENCE = 3
# So many models in a row that cannot be evaluated, and the base is asked the same.
_SUSPICIOUS = 3
_ANSWERED = "hub_answered"  # the hub that this home last heard something of, by its name
_AWAY = "hub_away_since"  # when the hub first did not answer; None where it does
# However long the world says it will be away: it is asked again within a day.
_LONGEST_WAIT = timedelta(days=1)
_HOUR = timedelta(hours=1)

_IN_USE = frozenset({"seen", "proposed", "admitted"})


class Faults:
    """
    One daemon's. For one thread.

    Attributes:
        missed: What jobs wait for, by key, but for a single repo.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.missed: dict[str, Transient] = {}
        self._tries: dict[str, int] = {}  # how often a job was put off since it last went well
        self._failed: list[str] = []  # models in a row that could not be evaluated
        self._hub_answered = context.lineage.get(_ANSWERED) == context.hub.name

    def went_well(self, step: Step[Any], key: str) -> None:
        self._tries.pop(key, None)
        self.missed.pop(key, None)
        if step.needs == "hub" and not self._hub_answered:
            self._hub_answered = True
            self._context.lineage.put(_ANSWERED, self._context.hub.name)
        if step.needs == "hub" and self._context.lineage.get(_AWAY) is not None:
            self._context.lineage.put(_AWAY, None)
        if step.needs == "device":
            self._failed.clear()

    def met(self, step: Step[Any], work: Work, key: str, error: Exception) -> None:
        """
        Act on what a running job raised; on return a model was set aside for it.

        Raises:
            Transient, BudgetReached: The job is to be taken again later, and says when.
            Exception: The error itself, where it concerns more than one model.
        """
        if isinstance(error, DamagedLineage):
            raise error  # nothing more is written to it
        if isinstance(error, EvaluationFailed):
            self._doubt(work, key, error)
        if isinstance(error, ModelError | UnknownRepo):
            self._blame(step, work, key, error)
        elif isinstance(error, Transient | BudgetReached):
            self._put_off(step, work, key, error)
            raise error
        elif isinstance(error, KinshipError) and self._will_pass(step, error):
            self._put_off(step, work, key, error)
            raise Transient(f"{error}; asked again at the next look") from error
        elif isinstance(error, KinshipError | Stopped):
            self._context.lineage.interrupt(key)
            raise error
        elif (fault := self.contained(step, work, error)) is not None:
            self._blame(step, work, key, fault)
        else:
            raise error

    def met_in_plan(self, step: Step[Any], error: Exception) -> None:
        """
        Act on what was raised while a step was planned; on return a model was set aside for it.

        Raises:
            Transient, BudgetReached: The step is to be planned again later.
            Exception: What was raised, where it concerns more than one model.
        """
        model: str | None = None
        if isinstance(error, PlanFailed) and isinstance(error.__cause__, Exception):
            model, error = error.model, error.__cause__
        if isinstance(error, ModelError | UnknownRepo):
            fault: ModelError | UnknownRepo | None = error
            model = getattr(error, "model", None) or model
        else:
            fault = self.contained(step, Work({}, model), error)
        if fault is None or model is None or model == self._context.base.id:
            raise error
        cause: Cause = fault.cause if isinstance(fault, ModelError) else "world"
        setting = fault.setting if isinstance(fault, ModelError) else None
        if self._context.lineage.require(model).status in _IN_USE:
            self._set_aside(model, str(fault), cause, setting)
        elif dependents(self._context.lineage, model):
            self._lose(model, str(fault), cause, setting)
        else:
            # It is aside already, and yet the plan looks at it: once more, later.
            raise Transient(f"{model}: {fault}") from error

    def set_aside_again(self, work: Work, job: Job) -> bool:
        """Work that failed before is not done again: whoever it was about stays aside."""
        model = None if work.model is None else self._context.lineage.model(work.model)
        if model is None or job.cause is None or model.status not in _IN_USE:
            return False
        setting = "evaluate" if job.cause == "settings" else None
        self._set_aside(model.id, job.reason or "it failed before", job.cause, setting)
        return True

    def contained(self, step: Step[Any], work: Work, error: Exception) -> ModelError | None:
        """
        What no step should raise, met over one model, as a fault that keeps that model back.

        It may be a mistake of ours or of a library over a file that nobody foresaw. Nobody knows
        whether the bytes are bad, so the model is tried again, less and less often. None for what
        concerns all: the base, the disk, the database.
        """
        model = work.model
        if model is None or not step.blames or model == self._context.base.id:
            return None
        if isinstance(error, KinshipError | Stopped):
            return None
        if isinstance(error, OSError) and machine_words(error) is not None:
            return None
        if type(error).__module__ == "sqlite3":
            return None
        if isinstance(error, MemoryError):
            return ModelError(f"{step.kind} of it takes more memory than there is", cause="world")
        log = self._context.home.bug_log
        note_bug(log, self._context.now(), f"{step.kind} of {model}", error)
        words = f"a bug met in {step.kind} ({shown(repr(error))}); see {log}"
        return ModelError(words, cause="world")

    def pause(self) -> timedelta:
        """The shortest wait for what did not come: it is over at the next look."""
        return timedelta(minutes=self._context.config.watch.poll_minutes) / 2

    def _will_pass(self, step: Step[Any], error: KinshipError) -> bool:
        """
        A hub that refuses us after it answered, now or at an earlier start, has a bad hour.

        So it is in an outage of its accounts. A wrong token at the first start ends the daemon.
        """
        return step.needs == "hub" and self._hub_answered and not isinstance(error, LineageError)

    def _put_off(self, step: Step[Any], work: Work, key: str, error: KinshipError) -> None:
        """The job waits, longer each time; a model that others wait for is set aside meanwhile."""
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        if isinstance(error, Transient) and not isinstance(error, Unavailable):
            self.missed[key] = error
        due = self._context.now() + (asked_for(error) or self._later(tries))
        if isinstance(error, BudgetReached):
            midnight = self._context.midnight()
            self._tell_once("budget", str(error), midnight - timedelta(days=1))
            due = min(due, midnight) if error.others_may_go_on else midnight
        self._context.lineage.wait(key, str(error), due)
        if step.needs == "hub" and not isinstance(error, BudgetReached | Unavailable):
            self._note_away(error)
        about = "" if work.model is None else f"{work.model} waits: "
        fault = _hub_fault(error) if step.needs == "hub" else None
        self._say("warning", f"{about}{error}", work.model, fault=fault)
        if tries >= _PATIENCE and isinstance(error, Unavailable) and error.model is not None:
            self._lose(error.model, str(error), "world", None)
        # Neither a silent hub nor a worker that cannot start says anything about a model.
        waits_on = tries < _PATIENCE or isinstance(error, BudgetReached)
        waits_on |= step.needs in {"hub", "device"}
        if step.blames and work.model is not None and not waits_on:
            model = self._context.lineage.require(work.model)
            if model.status in _IN_USE - {"seen"} and model.kind != "base":
                self._set_aside(model.id, str(error), "world", None)

    def _note_away(self, error: KinshipError) -> None:
        """A hub that is away for long is an event, once for as long as it is away."""
        lineage, now = self._context.lineage, self._context.now()
        since = lineage.get(_AWAY)
        if since is None:
            lineage.put(_AWAY, stamp(now))
        elif now - datetime.fromisoformat(since) >= timedelta(
            minutes=self._context.config.notify.hub_away_minutes
        ):
            words = f"the hub is away since {since}: {error}"
            self._tell_once("hub_away", words, datetime.fromisoformat(since))

    def _tell_once(self, kind: str, words: str, since: datetime) -> None:
        """An event whose first word says what it is about, unless it was told since then."""
        with self._context.lineage.transaction():
            if not self._context.lineage.told_since(kind, since, words.partition(" ")[0]):
                self._context.lineage.add_event(kind, words)

    def _doubt(self, work: Work, key: str, error: EvaluationFailed) -> None:
        """
        Whether a model is to blame is seen by the base, which is asked what the model failed at.

        Raises:
            KinshipError: The base fails, too; whoever was set aside for it is taken back.
        """
        lineage = self._context.lineage
        if work.model not in self._failed:
            self._failed.append(str(work.model))
        if error.document is None and len(self._failed) < _SUSPICIOUS:
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
        with lineage.transaction():
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
        if isinstance(error, EvaluationFailed):
            lineage.spend(EVALUATION_BUDGET, self._context.today, error.seconds)
        if culprit != work.model and not self._keeps_anyone_back(culprit, error):
            # What is to blame is aside already, and yet the work asks for it: once more, later.
            self._put_off(step, work, key, error)
            raise Transient(str(error)) from error
        with lineage.transaction():
            if culprit != work.model:
                lineage.interrupt(key)  # the work itself is as good as ever
            elif cause == "world":
                lineage.wait(key, str(error), self._next_try(culprit))
            else:
                lineage.fail(key, cause, str(error))
            if isinstance(error, LeafGone):
                self._lose(culprit, str(error), cause, setting)
            else:
                self._set_aside(culprit, str(error), cause, setting)

    def _keeps_anyone_back(self, culprit: str, error: Exception) -> bool:
        lineage = self._context.lineage
        merges = dependents(lineage, culprit) if isinstance(error, LeafGone) else []
        return bool(merges) or lineage.require(culprit).status in _IN_USE

    def _lose(self, leaf: str, words: str, cause: Cause, setting: str | None) -> None:
        """A leaf's bytes cannot be had: it is set aside, and so is what rests on it."""
        lineage = self._context.lineage
        with lineage.transaction():
            reason = self._set_aside(leaf, words, cause, setting)
            for merge in dependents(lineage, leaf):
                gone = f"cannot be made any more: {leaf}: {reason}"
                self._set_aside(merge.id, gone, cause, setting)
            for copy in lineage.models("finetune", "refused"):
                if copy.reason == same_as(leaf):
                    reopen(lineage, copy)

    def _set_aside(self, name: str, words: str, cause: Cause, setting: str | None) -> str:
        """Returns the reason as it is kept: it is always shown with the model's name before it."""
        model = self._context.lineage.require(name)
        reason = about(name, words.removeprefix(f"{model.weights}: "))
        if model.status in _IN_USE:
            retry_at = stamp(self._next_try(name)) if cause == "world" else None
            self._context.lineage.move_model(
                name, "quarantine", reason=reason, cause=cause, setting=setting, retry_at=retry_at
            )
            self._say("quarantine", f"{name}: {reason}", name, cause=cause)
        return reason

    def _next_try(self, name: str) -> datetime:
        """When a model that the world kept back is tried again: later each time."""
        faults = self._context.lineage.require(name).faults
        return self._context.now() + self._later(1 + faults)

    def _later(self, tries: int) -> timedelta:
        doubled: timedelta = self.pause() * 2 ** min(tries - 1, 30)
        return min(doubled, _LONGEST_WAIT)

    def _say(self, kind: str, message: str, model: str | None, **more: str | None) -> None:
        facts = {"model": model, **more}
        self._context.report.event(kind, message, **{k: v for k, v in facts.items() if v})


def _hub_fault(error: KinshipError) -> str | None:
    """The kind of a hub's fault, for who counts them; None for what is none of it."""
    if isinstance(error, BudgetReached):
        return None
    if isinstance(error, Unavailable):
        return "repo"  # one of many
    if not isinstance(error, Transient):
        return "refused"
    return "away" if error.retry_seconds is None else "asked to wait"


def is_ahead(due: datetime, now: datetime) -> bool:
    """Nobody is to wait longer than the longest wait: then the clock was set back meanwhile."""
    return now < due <= now + _LONGEST_WAIT + _HOUR


def asked_for(error: KinshipError) -> timedelta | None:
    """How long the world says it will be away, within a day; None if it does not say."""
    seconds = error.retry_seconds if isinstance(error, Transient) else None
    if seconds is None:
        return None
    # One more than it says, for the clocks.
    wait = 0.0 if math.isnan(seconds) else max(0.0, seconds)
    return min(timedelta(seconds=min(wait, 1e6) + 1), _LONGEST_WAIT)
