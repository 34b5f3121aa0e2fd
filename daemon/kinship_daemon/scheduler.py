"""The daemon's clock: APScheduler runs polls and generations, one at a time, until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from kinship_daemon import cycle
from kinship_daemon.daemon import BudgetReached, Daemon, Stopped
from kinship_daemon.errors import KinshipError, Transient
from kinship_daemon.webhook import PATH, Webhook, webhook_secret
from kinship_storage.errors import LineageError

_T = TypeVar("_T")

__all__ = ["run_once", "serve", "stopping_on_signals"]

# However long the world says it will be away: it is asked again within a day.
_LONGEST_WAIT = 24 * 3600.0


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
        UsageError: watch.webhook_port is set and cannot be listened at, or there is no secret.
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
        self._polled = False
        self._idle = False
        # Polls wait until then, also hurried ones.
        self._not_before = datetime.now(UTC)
        # Held by a job at work. APScheduler's shutdown waits for jobs with its own locks held, and
        # a job that asks for another run would wait for them for ever; so it is called after them.
        self._at_work = threading.Lock()
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
        self._add("poll", self._poll, every, begin=0)
        self._add("evolve", self._evolve, every, begin=every)
        with self._webhook() as webhook:
            if webhook is not None:
                self._d.report.event("listen", f"for webhooks at port {webhook.port}, {PATH}")
            self._scheduler.start()
            try:
                self._d.stop.wait()
            finally:
                self._d.stop.set()
                with self._at_work:
                    pass
                self._scheduler.shutdown(wait=True)
        if self._failure is not None:
            raise self._failure
        return self._outcome

    def hurry(self) -> None:
        """Poll as soon as the hub allows; from any thread."""
        with suppress(JobLookupError):  # the daemon has just ended
            self._at("poll", max(datetime.now(UTC), self._not_before))

    def _webhook(self) -> AbstractContextManager[Webhook | None]:
        watch, secret = self._d.config.watch, webhook_secret(self._d.config)
        if watch.webhook_port is None or secret is None:
            return nullcontext()
        return Webhook(watch.webhook_host, watch.webhook_port, secret, self.hurry)

    def _add(self, name: str, work: Callable[[], None], every: float, *, begin: float) -> None:
        self._scheduler.add_job(
            self._work,
            "interval",
            [work],
            id=name,
            seconds=every,
            next_run_time=datetime.now(UTC) + timedelta(seconds=begin),
        )

    def _work(self, work: Callable[[], None]) -> None:
        with self._at_work:
            if not self._d.stop.is_set():
                work()

    def _poll(self) -> None:
        if datetime.now(UTC) < self._not_before:
            return  # asked for before the hub said that it is away
        grown = self._patiently("poll", lambda: cycle.poll(self._d))
        self._polled = self._polled or grown is not None
        if grown or self._first:
            # The first time even if the hub is away: there may be unfinished work at home.
            self._soon("evolve")
        self._first = False

    def _evolve(self) -> None:
        outcome = self._patiently("evolve", lambda: cycle.evolve(self._d))
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

    def _patiently(self, name: str, work: Callable[[], _T]) -> _T | None:
        """What will pass is said and tried again at the next tick; None for not done."""
        try:
            return work()
        except Stopped:
            return None
        except (Transient, BudgetReached) as error:
            if self._until_converged:
                raise
            self._d.report.event("warning", str(error))
            if isinstance(error, Transient) and error.retry_seconds is not None:
                self._wait(name, error.retry_seconds)
            return None
        except KinshipError as error:
            # A hub that refuses us, as in an outage of its accounts, after it was fine before.
            passing = name == "poll" and self._polled and not isinstance(error, LineageError)
            if self._until_converged or not passing:
                raise
            self._d.report.event("warning", f"{error}; asked again at the next look")
            return None

    def _wait(self, name: str, seconds: float) -> None:
        """The world has said when it is back: this job comes then, and no poll before it."""
        # One more than it says, for the clocks; 0 first, so that NaN is 0.
        wait = min(max(0.0, seconds) + 1, _LONGEST_WAIT)
        until = datetime.now(UTC) + timedelta(seconds=wait)
        self._not_before = max(self._not_before, until)
        self._at(name, until)
        if self._scheduler.get_job("poll").next_run_time < self._not_before:
            self._at("poll", self._not_before)

    def _soon(self, name: str) -> None:
        self._at(name, datetime.now(UTC))

    def _at(self, name: str, time: datetime) -> None:
        self._scheduler.modify_job(name, next_run_time=time)

    def _crash(self, event: JobExecutionEvent) -> None:
        # APScheduler would log it and go on; a bug must end the daemon, loudly.
        self._failure = event.exception
        self._d.stop.set()
