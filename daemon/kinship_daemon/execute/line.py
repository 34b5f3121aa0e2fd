"""Jobs that wait for workers of one kind, each of which is a thread of ours."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kinship_daemon.execute.executor import Job, Report, Tell

__all__ = ["Do", "Line"]

Do = Callable[[Job, Mapping[str, Path], Tell], None]
_Out = tuple[Job, Mapping[str, Path], Tell]
# So long a worker's thread may take to end once what it waits for was killed.
_END_SECONDS = 30.0


class Line:
    """
    Jobs in the order in which they came, and a thread for each of those who do them.

    Args:
        ready: Called before a worker, by its number, takes a job; returns when it can do one, or
            when all is to end.
    """

    def __init__(
        self, workers: Sequence[Do], name: str, ready: Callable[[int], None] = lambda _: None
    ) -> None:
        self._ready = ready
        self._workers = workers
        self._name = name
        self._waiting: deque[_Out] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []  # begun when there is work for them
        self._idle = 0
        self._closed = False

    def put(self, out: _Out) -> None:
        with self._changed:
            self._waiting.append(out)
            if len(self._waiting) > self._idle and len(self._threads) < len(self._workers):
                number = len(self._threads)
                name = f"{self._name}-{number}"
                thread = threading.Thread(target=self._work, args=(number,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def drop(self, key: str, attempt: int) -> bool:
        """Whether it waited; now it does no more."""
        with self._changed:
            for out in self._waiting:
                if (out[0].key, out[0].attempt) == (key, attempt):
                    self._waiting.remove(out)
                    return True
        return False

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def _work(self, number: int) -> None:
        while True:
            self._ready(number)
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._idle -= 1
                if self._closed:
                    return
                job, folders, tell = self._waiting.popleft()
            self._workers[number](job, folders, self._unless_closed(tell))

    def _unless_closed(self, tell: Tell) -> Tell:
        def told(report: Report) -> None:
            if not self._closed:
                tell(report)

        return told
