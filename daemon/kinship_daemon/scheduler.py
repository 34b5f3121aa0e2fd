"""
The daemon's clock: turns of the loop until told to stop, a look at the hub now and then.

APScheduler only rings: that a look is due, that a new day has begun. All work is done by turns in
the thread that called `serve`, so that nothing of it needs a lock.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from apscheduler.schedulers.background import BackgroundScheduler

from kinship_daemon import cycle
from kinship_daemon.context import Context
from kinship_daemon.errors import KinshipError, Stopped
from kinship_daemon.generation_table import show_generation
from kinship_daemon.runner import Runner, Turn
from kinship_daemon.startup import webhook_secret
from kinship_daemon.steps.decide import converged
from kinship_storage.records import Generation

__all__ = ["Service", "run_once", "serve", "stopping_on_signals"]

# A signal only sets a flag, which does not end a wait: so that is looked at so often.
_TICK_SECONDS = 0.2
# What is not done by then is left, whatever it is: a kill at any moment loses nothing.
_GRACE_SECONDS = 4.0


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop, which takes seconds; a second one stops at once."""
    timers: list[threading.Timer] = []

    def ask(number: int, _frame: object) -> None:
        # Nothing is lost: every step done is committed, files are renamed only when whole, and
        # the worker ends with us.
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        timer = threading.Timer(_GRACE_SECONDS, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()
        timers.append(timer)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def run_once(context: Context) -> bool:
    """
    One look at the hub and one generation.

    Returns:
        False if someone stopped it.

    Raises:
        KinshipError: As `serve`; also what keeps work waiting.
    """
    running = cycle.runner(context)
    try:
        with _saying_what_is_finished(context, running):
            looked = running.loop(context.now(), look=True)
            last = cycle.generation(running, context)
    except Stopped:
        return False
    if (proposed := context.lineage.last_generation()) and proposed.generation is not None:
        show_generation(context, proposed.generation)
    for waiting in (*last.waiting, *(looked.waiting if looked.kind is None else ())):
        raise waiting
    return True


def serve(context: Context, *, until_converged: bool = False) -> Generation | None:
    """
    Look and work until asked to stop, or with `until_converged` until there is nothing to do.

    Returns:
        The decision that ended the evolution, or None if someone stopped the daemon.

    Raises:
        Transient, BudgetReached: With `until_converged`; otherwise the daemon waits and goes on.
        UsageError: watch.webhook_port is set and cannot be listened at, or there is no secret.
    """
    every = f"{context.config.watch.poll_minutes:g} min"
    where = f"{context.base.id} on {context.hub.name}, every {every}; home {context.home.path}"
    context.report.event("start", where)
    return Service(context, cycle.runner(context), until_converged=until_converged).run()


class Service:
    """Turns, one after another, and the waits between them."""

    def __init__(self, context: Context, running: Runner, *, until_converged: bool) -> None:
        self._context = context
        self._running = running
        self._until_converged = until_converged
        self._bell = threading.Event()
        self._look_is_due = threading.Event()
        # What earlier starts made was shown then.
        self._shown = max(self._made(), default=0)
        self._is_idle = False
        running.hurried = self._look_is_due.is_set

    def run(self) -> Generation | None:
        scheduler = BackgroundScheduler(timezone=UTC)
        seconds = self._context.config.watch.poll_minutes * 60
        scheduler.add_job(self.hurry, "interval", seconds=seconds, misfire_grace_time=None)
        scheduler.add_job(self._bell.set, "cron", hour=0, misfire_grace_time=None)
        with (
            self._web(),
            self._webhook(),
            _saying_what_is_finished(self._context, self._running),
        ):
            scheduler.start()
            try:
                return self._turns()
            except Stopped:
                return None
            finally:
                scheduler.shutdown(wait=False)

    def hurry(self) -> None:
        """A look at the hub is due, as soon as the hub allows; from any thread."""
        self._look_is_due.set()
        self._bell.set()

    def _turns(self) -> Generation | None:
        self._look_is_due.set()
        looked = False
        while not self._context.stop.is_set():
            self._bell.clear()
            # One look after another, as where each takes longer than their interval, would leave
            # no time for what they find.
            look = self._look_is_due.is_set() and not looked
            if look:
                self._look_is_due.clear()
            turn = self._running.loop(self._context.now(), look=look)
            looked = turn.kind == "watch"
            if look and not looked:
                # The hub is away, or was just now: the look is taken as soon as it may be.
                self._look_is_due.set()
            if turn.kind in {"decide", None}:
                self._show_generations()
            if turn.kind is not None:
                self._is_idle = False
                continue
            stop = converged(self._context)
            if self._until_converged:
                return self._ended(turn, stop)
            self._say_idle(stop)
            if look or not self._look_is_due.is_set():
                self._wait(turn.due)
        return None

    def _ended(self, turn: Turn, stop: Generation | None) -> Generation:
        for waiting in reversed(turn.waiting):
            raise waiting
        if stop is None:
            raise KinshipError("nothing can be done now; `kinship-daemon status` says why")
        return stop

    def _show_generations(self) -> None:
        """Those made since the last time."""
        for number in self._made():
            if number > self._shown:
                show_generation(self._context, number)
                self._shown = number

    def _made(self) -> list[int]:
        """Generations that are through; the newest is still being made after a decision."""
        decisions = self._context.lineage.generations()
        numbers = [d.generation for d in decisions if d.generation is not None]
        proposed = self._context.lineage.models("merge", "proposed")
        going_on = {model.generation for model in proposed}
        return [number for number in numbers if number not in going_on]

    def _say_idle(self, stop: Generation | None) -> None:
        if stop is not None and not self._is_idle:
            every = f"{self._context.config.watch.poll_minutes:g} min"
            message = f"waiting for new fine-tunes, a look every {every}"
            self._context.report.event("idle", message)
        self._is_idle = True

    def _wait(self, due: datetime | None) -> None:
        """Until the bell rings, something is due, or the daemon is to stop."""
        # The scheduler goes by the machine's clock: set back a day, it would not ring for a day.
        latest = time.monotonic() + 1.5 * 60 * self._context.config.watch.poll_minutes
        while not self._context.stop.is_set():
            left = None if due is None else (due - self._context.now()).total_seconds()
            if left is not None and left <= 0:
                return
            if time.monotonic() > latest:
                self.hurry()
            self._context.lineage.check_in_place()
            if self._bell.wait(_TICK_SECONDS if left is None else min(left, _TICK_SECONDS)):
                return

    @contextmanager
    def _web(self) -> Iterator[None]:
        """The dashboard, where it is wanted."""
        web = self._context.config.web
        if web.port is None:
            yield
            return
        from kinship_daemon.web.serving import served  # noqa: PLC0415 - only who serves imports it

        token = None if web.token is None else web.token.get_secret_value()
        with served(self._context.home, web.host, web.port, token) as server:
            self._context.report.event("listen", f"the dashboard is at {server.url}")
            if server.is_open:
                warning = "the dashboard has no password: set web.token, or web.host to 127.0.0.1"
                self._context.report.event("warning", warning)
            yield

    @contextmanager
    def _webhook(self) -> Iterator[None]:
        """Who hurries the next look, where that is wanted."""
        watch, secret = self._context.config.watch, webhook_secret(self._context.config)
        if watch.webhook_port is None or secret is None:
            yield
            return
        from kinship_daemon.web.serving import hooked  # noqa: PLC0415 - only who serves imports it
        from kinship_daemon.web.webhook import PATH, Webhook  # noqa: PLC0415

        webhook = Webhook(secret, self.hurry)
        with hooked(webhook, watch.webhook_host, watch.webhook_port) as server:
            self._context.report.event("listen", f"for webhooks at port {server.port}, {PATH}")
            yield


@contextmanager
def _saying_what_is_finished(context: Context, running: Runner) -> Iterator[None]:
    """Whoever asks for a stop hears at once that it was heard, and what becomes of the step."""
    ended = threading.Event()

    def say() -> None:
        context.stop.wait()
        if not ended.is_set():
            doing = running.doing
            left = f"{doing} is left, and done again at the next start; " if doing else ""
            context.report.event("stopping", f"{left}a second Ctrl-C stops at once")

    threading.Thread(target=say, name="stopping", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
