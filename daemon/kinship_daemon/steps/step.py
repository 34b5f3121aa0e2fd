"""
Steps as data: a kind of job, the work that the lineage calls for, and how its result is written.

A step's work is planned from the lineage alone, so that "nothing is to be done" can be seen and a
restart needs no queue. `run` may take hours and may happen anywhere; it changes nothing in the
lineage. `commit` happens in the daemon, in one transaction with the job's `done`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from kinship_daemon.context import Context
from kinship_storage.lineage import Lineage

__all__ = ["Needs", "Step", "Work", "guarded", "planned", "say_nothing"]

R = TypeVar("R")

# What is busy, or may be away, while a step runs.
Needs = Literal["cpu", "device", "disk", "hub", "policy"]


@dataclass(frozen=True)
class Work:
    """
    One job's data.

    Attributes:
        inputs: JSON; what the result depends on. Weights are named by identity, never by a path.
        model: Id of the model that it is about, who is set aside if it turns out to be at fault.
        ahead: Gives what was begun in other threads before its turn, raising what `run` may raise;
            None where nothing was.
        begin: Has it begun elsewhere before its turn, where that can be now; `ahead` then has less
            to wait for.
    """

    inputs: Mapping[str, Any]
    model: str | None = None
    ahead: Callable[[], Any] | None = field(default=None, compare=False)
    begin: Callable[[], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Step(Generic[R]):
    """
    A kind of job.

    Attributes:
        plan: The work that is to be done now, in the order in which it is to be done. It is asked
            for the next only when the last is through, and may look at what came of it. The plan of
            what needs a device is also looked at while nothing of it is done: what would come next.
        run: Does it. Raises ModelError (the model is set aside), Transient or BudgetReached (it is
            tried again later), Stopped.
        commit: Writes the result; nothing else.
        tell: Reports it, after it is written.
        blames: Whether a fault sets the model aside.
        holds_up: Whether a run that is to end fails while some of its work waits for the world.
        feeds: Whether models may be asked something else once some of its work is done.
        sifts: Whether what it has work for is not to be given to a device for later steps.
        repeats: Whether work that was done is done again when it is planned again: what it left is
            gone, or the world may have changed.
    """

    kind: str
    needs: Needs
    plan: Callable[[Context], Iterator[Work]]
    run: Callable[[Context, Work], R]
    commit: Callable[[Lineage, Work, R], None]
    tell: Callable[[Context, Work, R], None]
    blames: bool = True
    holds_up: bool = True
    feeds: bool = False
    sifts: bool = False
    repeats: bool = False


def say_nothing(_context: Context, _work: Work, _result: object) -> None:
    """For steps whose result is no news."""


@contextmanager
def planned(step: Step[Any], context: Context) -> Iterator[Iterator[Work]]:
    """A step's plan, which ends here, with all that it began, and not when it is collected."""
    plan = step.plan(context)
    try:
        yield plan
    finally:
        if isinstance(plan, Generator):
            plan.close()


def guarded(plan: Iterable[Work], faults: list[Exception]) -> Iterator[Work]:
    """A plan up to what is raised while it is made, which is put into `faults`."""
    try:
        yield from plan
    except Exception as error:
        faults.append(error)
