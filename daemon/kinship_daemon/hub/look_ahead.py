"""Looks at many repos, several at a time, handed out in the order in which they are wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from kinship_daemon.hub.calls import leave_when

__all__ = ["LookAhead"]

T = TypeVar("T")


class LookAhead(Generic[T]):
    """
    Results of looks, of which the next few run in threads while one is waited for.

    Nothing runs before the first result is wanted. With one at a time there are no threads.
    """

    def __init__(self, looks: Sequence[Callable[[], T]], at_once: int) -> None:
        """
        Args:
            looks: In the order in which they will be wanted. They share nothing but the hub.
        """
        self._looks = looks
        self._at_once = at_once
        self._leave = threading.Event()
        self._pool = ThreadPoolExecutor(at_once, "look", leave_when, (self._leave,))
        self._begun: dict[int, Future[T]] = {}

    def result(self, number: int) -> T:
        """What a look returns or raises; each can be had once, and those before it no more."""
        if self._at_once == 1:
            return self._looks[number]()
        for each in range(number, min(number + self._at_once, len(self._looks))):
            if each not in self._begun:
                self._begun[each] = self._pool.submit(self._looks[each])
        return self._begun.pop(number).result()

    def close(self) -> None:
        """Leave the looks that nobody wants any more; they end within a moment."""
        self._leave.set()
        self._pool.shutdown(cancel_futures=True)
