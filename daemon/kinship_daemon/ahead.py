"""
Models are asked before their turn, so that no device waits for the disk or the hub.

Before a step that may take long, all are asked that will be asked anyway, as many as there are
workers for. Their answers wait until it is their turn: who is asked what, and in which order it is
written, does not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kinship_daemon.context import Context
from kinship_daemon.steps.evaluation import keep
from kinship_daemon.steps.step import Step, Work, guarded, planned
from kinship_storage.jobs import job_key

__all__ = ["Ahead"]


class Ahead:
    """One daemon's. For one thread; with an executor that does nothing ahead it does nothing."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._steps: Sequence[Step[Any]] = ()
        self._is_done = False

    def turn(self, steps: Sequence[Step[Any]]) -> None:
        """
        A turn begins.

        Args:
            steps: Those that ask models and may be taken in it, in their order.
        """
        self._steps, self._is_done = steps, False

    def note(self, step: Step[Any]) -> None:
        """Some work of a step was done."""
        self._is_done &= not step.feeds

    def ask(self, before: Step[Any]) -> None:
        """
        Have those asked who will be; those who are asked and will not be wanted are left.

        Args:
            before: The step that is to be taken. One that asks models has its own asked ahead, so
                that others come in only where a worker would have nothing to do.
        """
        evaluators = self._context.evaluators
        if before.needs == "device":
            is_due = evaluators.idle > 0
        else:
            is_due = evaluators.room > 0 or bool(evaluators.answered())
        if self._is_done or not is_due:
            return
        self._is_done = True
        wanted: dict[str, Work] = {}
        for step in self._steps:
            with planned(step, self._context) as plan:
                mine = {job_key(step.kind, work.inputs): work for work in guarded(plan, [])}
            wanted |= mine
            if mine and step.sifts:
                break
        keep(self._context, wanted)
        for work in wanted.values():
            if not evaluators.room:
                return
            if work.begin is not None:
                work.begin()

    def answered(self) -> frozenset[str]:
        """Keys of the jobs that need not be waited for."""
        return self._context.evaluators.answered()

    @property
    def is_busy(self) -> bool:
        """Whether someone is asked, or has answered, whose turn is still to come."""
        return bool(self._context.evaluators.begun)

    def leave(self) -> None:
        """Nobody wants an answer any more."""
        keep(self._context, ())
