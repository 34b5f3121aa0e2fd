"""Calls to a server: never in the way of a stop, bounded in time and retries."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kinship_daemon.errors import KinshipError, Stopped, Transient, Unavailable
from kinship_daemon.hub.quota import PATIENCE_SECONDS, Quota
from kinship_daemon.hub.records import Refused

__all__ = [
    "AT_ONCE",
    "CALL_SECONDS",
    "Calls",
    "allowance",
    "asked_server",
    "connection",
    "leave_when",
    "note_answer",
    "note_request",
]

T = TypeVar("T")

AT_ONCE = 8  # connections, unless another number is set
CALL_SECONDS = 180.0  # a small call with all its retries
_BACKOFF_SECONDS = (0.5, 1.0)  # so three tries
_TICK_SECONDS = 0.1  # how soon a stop is seen
_SLOWEST = 32_768  # bytes/s: what is slower over hours is cut off, and gone on from later
_AHEAD = 16  # blocks that a stream may be ahead of its reader


@dataclass(frozen=True)
class _Call:
    """What the threads of one call share with whoever waits for them."""

    quota: Quota
    slots: threading.Semaphore
    items: queue.Queue[tuple[str, Any]] = field(default_factory=lambda: queue.Queue(_AHEAD))
    abandoned: threading.Event = field(default_factory=threading.Event)

    def work(self, source: Callable[[], Iterable[Any]]) -> None:
        """The body of a thread. Touches nothing but the source and the queue."""
        _CURRENT.set(self)
        try:
            for item in source():
                self._put("item", item)
            self._put("end", None)
        except _AbandonedError:
            return
        except BaseException as error:
            # Raised again where it is waited for, whatever it is.
            try:
                self._put("error", error)
            except _AbandonedError:
                return

    def check(self) -> None:
        if self.abandoned.is_set():
            raise _AbandonedError

    def _put(self, kind: str, value: object) -> None:
        while True:
            self.check()
            try:
                return self.items.put((kind, value), timeout=_TICK_SECONDS)
            except queue.Full:
                continue


# The call that this thread works for. A client's hooks find it here.
_CURRENT: ContextVar[_Call | None] = ContextVar("_CURRENT", default=None)


# Set in a thread that makes calls and is to leave before the daemon stops.
_LEAVING: ContextVar[threading.Event | None] = ContextVar("_LEAVING", default=None)


class _AbandonedError(Exception):
    """Nobody waits for this any more."""


class Calls:
    """
    How one server is called.

    Every call runs in daemon threads of its own, so that whoever waits for it can leave at any
    moment, whatever sleeps or hangs there: at a stop, at its deadline, at Ctrl-C. An abandoned
    thread sends nothing more.
    """

    def __init__(
        self, quota: Quota, stop: threading.Event | None = None, at_once: int = AT_ONCE
    ) -> None:
        self.quota = quota
        self.at_once = at_once
        self._slots = threading.Semaphore(at_once)
        self._stop = stop

    def check(self) -> None:
        """Raises Stopped once a stop is asked for."""
        if any(event is not None and event.is_set() for event in (self._stop, _LEAVING.get())):
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep; raises Stopped as soon as a stop is asked for."""
        end = time.monotonic() + seconds
        self.check()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _TICK_SECONDS))
            self.check()

    def stream(
        self, what: str, sources: Sequence[Callable[[], Iterable[T]]], seconds: float
    ) -> Generator[T, None, None]:
        """
        What the sources give, each read in a thread of its own, in the order it comes.

        Args:
            what: For the message, such as a URL.
            seconds: From now to the end of all.

        Raises:
            Stopped: asked for meanwhile. Transient: it took too long.
        """
        call = _Call(self.quota, self._slots)
        end = time.monotonic() + seconds
        try:
            self.check()
            for source in sources:
                threading.Thread(target=call.work, args=(source,), daemon=True).start()
            running = len(sources)
            while running:
                kind, value = self._next(call, what, end)
                if kind == "item":
                    yield value
                elif kind == "error":
                    raise value
                else:
                    running -= 1
        finally:
            call.abandoned.set()

    def once(self, what: str, work: Callable[[], T], seconds: float = CALL_SECONDS) -> T:
        """What `work` returns, done in a thread of its own."""
        with closing(self.stream(what, [lambda: (work(),)], seconds)) as results:
            return next(results)

    def retried(self, what: str, work: Callable[[], T], seconds: float = CALL_SECONDS) -> T:
        """
        As `once`, a few times while it is Transient. Only for what may be done twice.

        Raises:
            Refused: Every try was refused with the same words; once alone it may be by chance.
        """
        end = time.monotonic() + seconds
        heard: set[str] = set()
        for pause in (*_BACKOFF_SECONDS, None):
            try:
                return self.once(what, work, end - time.monotonic())
            except Unavailable:
                raise  # another minute changes nothing
            except (Transient, Refused) as error:
                heard.add(str(error))
                trouble = error
            if pause is None or time.monotonic() > end:
                break
            self.pause(trouble, pause)
        if isinstance(trouble, Refused) and len(heard) > 1:
            raise Transient(str(trouble))
        raise trouble

    def pause(self, error: KinshipError, seconds: float) -> None:
        """Wait before the next try; raises the error itself if it asks for much more than that."""
        asked = (error.retry_seconds if isinstance(error, Transient) else None) or 0.0
        if asked > PATIENCE_SECONDS:
            raise error
        self.wait(max(seconds, asked))

    def backoff(self, failures: int) -> float | None:
        """Seconds before the next try after so many failures in a row; None: give up."""
        return _BACKOFF_SECONDS[failures - 1] if failures <= len(_BACKOFF_SECONDS) else None

    def _next(self, call: _Call, what: str, end: float) -> tuple[str, Any]:
        while True:
            self.check()
            if time.monotonic() > end:
                raise Transient(f"{what} takes too long; try again later")
            try:
                return call.items.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                continue


def allowance(count: int) -> float:
    """Seconds that the transfer of so many bytes may take."""
    return CALL_SECONDS + count / _SLOWEST


def leave_when(event: threading.Event) -> None:
    """Let this thread's calls end with Stopped once an event is set, as at a stop."""
    _LEAVING.set(event)


@contextmanager
def connection() -> Iterator[None]:
    """One of the connections that a server may have; for the threads of a call."""
    call = _CURRENT.get()
    if call is None:
        yield
        return
    while not call.slots.acquire(timeout=_TICK_SECONDS):
        call.check()
    try:
        yield
    finally:
        call.slots.release()


def asked_server() -> str | None:
    """For a client's hook: the server that this thread's call is for; None outside a call."""
    call = _CURRENT.get()
    return None if call is None else call.quota.server


def note_request(url: str) -> None:
    """
    For a client's hook, before a request is sent in a thread of a call; waits a few seconds.

    Raises:
        Transient: the server wants no such call for longer than that.
    """
    call = _CURRENT.get()
    if call is None:
        return
    call.check()
    # Abandoned or not, at the latest now.
    call.abandoned.wait(call.quota.check(url))
    call.check()


def note_answer(url: str, status: int, headers: Mapping[str, str]) -> None:
    """
    For a client's hook, as soon as an answer's headers are there.

    Raises:
        Transient: it asks for a wait that is too long to sleep through.
    """
    call = _CURRENT.get()
    if call is not None:
        call.quota.note(url, status, headers)
