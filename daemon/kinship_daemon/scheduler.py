"""The daemon's clock: APScheduler runs polls and generations, one at a time, until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from kinship_daemon import cycle
from kinship_daemon.daemon import BudgetReached, Daemon, Stopped
from kinship_daemon.errors import Transient

_T = TypeVar("_T")

__all__ = ["run_once", "serve", "stopping_on_signals"]


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop at the next step; a second one stops at once."""

    def ask(number: int, _frame: object) -> None:
        if stop.is_set():
            # Nothing is lost: every step done is committed, files are renamed only when whole, and
            # the worker ends with us.
            os._exit(128 + number)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_once(d: Daemon) -> cycle.Outcome | None:
    """One cycle: one poll, one generation. None if someone stopped it."""
    try:
        cycle.poll(d)
        return cycle.evolve(d)
    except Stopped:
        return None


def serve(d: Daemon, *, until_converged: bool = False) -> str | None:
    """
    Poll and evolve until asked to stop, or with `until_converged` until there is nothing to do.

    Returns:
        Why evolution stopped, or None if someone stopped the daemon.

    Raises:
        Transient, BudgetReached: with `until_converged`; otherwise the daemon waits and goes on.
    """
    every = f"{d.config.watch.poll_minutes:g} min"
    d.report.event("start", f"{d.base.id} on {d.hub.name}, every {every}; home {d.home.path}")
    return _Service(d, until_converged).run()


class _Service:
    def __init__(self, d: Daemon, until_converged: bool) -> None:
        self._d = d
        self._until_converged = until_converged
        self._outcome: str | None = None
        self._failure: BaseException | None = None
        self._first = True
        self._idle = False
        # One thread: polls and generations share the lineage and never run at the same time. Two
        # instances, so that a job may ask for its own next run, which waits for the thread.
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 2, "misfire_grace_time": None},
            timezone=UTC,
        )
        # Its log is not for users: a tick dropped while work goes on is what is wanted, and what
        # a job raises comes out of `run`.
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
        self._scheduler.add_listener(self._crash, EVENT_JOB_ERROR)

    def run(self) -> str | None:
        every = self._d.config.watch.poll_minutes * 60
        now = datetime.now(UTC)
        self._scheduler.add_job(self._poll, "interval", id="poll", seconds=every, next_run_time=now)
        self._scheduler.add_job(self._evolve, "interval", id="evolve", seconds=every)
        self._scheduler.start()
        try:
            self._d.stop.wait()
        finally:
            self._scheduler.shutdown(wait=True)
        if self._failure is not None:
            raise self._failure
        return self._outcome

    def _poll(self) -> None:
        grown = self._patiently(lambda: cycle.poll(self._d))
        if grown or self._first:
            # The first time even if the hub is away: there may be unfinished work at home.
            self._soon("evolve")
        self._first = False

    def _evolve(self) -> None:
        outcome = self._patiently(lambda: cycle.evolve(self._d))
        if outcome is None:
            return
        if outcome.stop is None:
            self._soon("evolve")
        elif self._until_converged:
            self._outcome = outcome.stop
            self._d.stop.set()
        elif not self._idle:
            every = f"{self._d.config.watch.poll_minutes:g} min"
            self._d.report.event("idle", f"waiting for new fine-tunes, a look every {every}")
        self._idle = outcome.stop is not None

    def _patiently(self, work: Callable[[], _T]) -> _T | None:
        """What will pass is said and tried again at the next tick; None for not done."""
        if self._d.stop.is_set():
            return None
        try:
            return work()
        except Stopped:
            return None
        except (Transient, BudgetReached) as error:
            if self._until_converged:
                raise
            self._d.report.event("warning", str(error))
            return None

    def _soon(self, name: str) -> None:
        self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))

    def _crash(self, event: JobExecutionEvent) -> None:
        # APScheduler would log it and go on; a bug must end the daemon, loudly.
        self._failure = event.exception
        self._d.stop.set()
