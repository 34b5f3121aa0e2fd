"""A part of a page that is kept up to date for all visitors together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Live"]

_SHARE = 0.005  # of a core's time, that making it anew may take
_LEAST_SECONDS = 2.0  # from one change that is told to the next
_MOST_SECONDS = 30.0


class Live:
    """
    Made once for each change that visitors are told of, however many they are.

    A change is told of only when enough time has passed for the last one to be cheap: what makes
    the part takes the interpreter from the daemon, and where every core evaluates, from that, too.
    What changed meanwhile is told of then.

    Args:
        state: What the part depends on; another value says that it changed.
        make: Makes it.
    """

    def __init__(self, state: Callable[[], object], make: Callable[[], str]) -> None:
        self._state = state
        self._make = make
        self._told: object = None
        self._next = 0.0
        self._version = 0
        self._made: tuple[int, str] | None = None
        self._one = threading.Lock()

    def version(self) -> int:
        """Another one where visitors are to look again."""
        if time.monotonic() >= self._next and (state := self._state()) != self._told:
            self._told = state
            self._version += 1
            self._next = time.monotonic() + _LEAST_SECONDS
        return self._version

    def text(self) -> str:
        """The part as of this version or later."""
        with self._one:
            version = self.version()
            if self._made is None or self._made[0] != version:
                began = time.thread_time()
                self._made = version, self._make()
                pause = (time.thread_time() - began) / _SHARE
                self._next = time.monotonic() + min(max(pause, _LEAST_SECONDS), _MOST_SECONDS)
            return self._made[1]
