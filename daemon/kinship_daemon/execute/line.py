"""Jobs that wait for workers of one kind, each of which is a thread of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kinship_daemon.errors import Transient
from kinship_daemon.execute.executor import Failed, Job, Report, Tell

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
        choose: Which of the jobs that wait a worker, by its number, had best take; the first.
        rest: Called where a worker, by its number, had nothing to do for `idle_seconds`; before it
            takes a job again, it is made ready.
        take: Told which job a worker, by its number, takes, before that can be dropped no more.
    """

    def __init__(
        self,
        workers: Sequence[Do],
        name: str,
        ready: Callable[[int], None] = lambda _: None,
        choose: Callable[[int, Sequence[Job]], int] = lambda _, __: 0,
        rest: Callable[[int], None] = lambda _: None,
        idle_seconds: float | None = None,
        take: Callable[[int, Job], None] = lambda _, __: None,
    ) -> None:
        self._rest = rest
        self._take = take
        self._idle_seconds = idle_seconds
        self._ready = ready
        self._choose = choose
        self._workers = list(workers)
        self._name = name
        self._waiting: list[_Out] = []
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []  # begun when there is work for them
        self._idle = 0
        self._called_off = 0  # how often those without work were told to rest
        self._closed = False

    def put(self, out: _Out) -> None:
        """Where the machine has no thread for anyone to do it, that is told as its end."""
        with self._changed:
            self._waiting.append(out)
            is_begun = self._begin()
            if not is_begun:
                self._waiting.remove(out)
            self._changed.notify()
        if not is_begun:
            job, _, tell = out
            words = "no thread can be started for it; raise the limit of processes (`ulimit -u`)"
            tell(Failed(job.key, job.attempt, Transient(words)))

    def add(self, worker: Do) -> None:
        """One more who does jobs; its number is the next."""
        with self._changed:
            self._workers.append(worker)
            self._begin()

    def drop(self, key: str, attempt: int) -> bool:
        """Whether it waited; now it does no more."""
        with self._changed:
            for out in self._waiting:
                if (out[0].key, out[0].attempt) == (key, attempt):
                    self._waiting.remove(out)
                    return True
        return False

    def rest(self) -> None:
        """Who has nothing to do just now rests at once."""
        with self._changed:
            self._called_off += 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def _begin(self) -> bool:
        """One more thread where it has work; False where there is none and can be none now."""
        if len(self._waiting) > self._idle and len(self._threads) < len(self._workers):
            number = len(self._threads)
            name = f"{self._name}-{number}"
            thread = threading.Thread(target=self._work, args=(number,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return bool(self._threads)  # whoever is there does it
            self._threads.append(thread)
        return True

    def _work(self, number: int) -> None:
        while True:
            self._ready(number)
            with self._changed:
                self._idle += 1
                is_ready = self._waited()
                if not is_ready:
                    self._rest(number)
                    self._changed.wait_for(self._is_called)
                self._idle -= 1
                if self._closed:
                    return
                if not is_ready:
                    continue
                chosen = self._choose(number, [job for job, *_ in self._waiting])
                job, folders, tell = self._waiting.pop(chosen)
                self._take(number, job)
            self._workers[number](job, folders, self._unless_closed(tell))

    def _waited(self) -> bool:
        """Whether there is work now, and not a reason to rest."""
        before = self._called_off
        self._changed.wait_for(
            lambda: self._is_called() or self._called_off > before, self._idle_seconds
        )
        return self._is_called()

    def _is_called(self) -> bool:
        return bool(self._waiting) or self._closed

    def _unless_closed(self, tell: Tell) -> Tell:
        def told(report: Report) -> None:
            if not self._closed:
                tell(report)

        return told
