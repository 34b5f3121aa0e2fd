"""Gives jobs to an executor and keeps the books: attempts, first answers, what was lost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinship_daemon.errors import Lost, Stopped
from kinship_daemon.execute.executor import Done, Executor, Failed, Job, Progress, Report

__all__ = ["Dispatcher"]

# So often a wait for the executor looks whether the daemon is to stop.
_TICK_SECONDS = 0.2
# So many jobs are begun beyond those at work and the next for each worker: quick workers have
# something to do while whoever begins them is busy elsewhere.
_SPARE = 2
# So often a job whose worker went away, through no fault of the job's, is given to another at once.
_MOST_LOST = 5


@dataclass
class _Begun:
    """
    Attributes:
        first: Number of its first attempt; answers to earlier ones are to what was let go.
    """

    job: Job
    folders: Mapping[str, Path]
    first: int
    lost: int = 0
    answer: Done | Failed | None = None


class Dispatcher:
    """
    Jobs that are out, each answered once, whoever answers twice, late or never. For one thread.

    Args:
        stop: Ends every wait with Stopped.
        watch: Told how far a job is: its key, units done and in all. What it raises comes out of
            `result`.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        stop: threading.Event | None = None,
        watch: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.executor = executor
        self.watch = watch
        self._stop = stop or threading.Event()
        self._thread = threading.get_ident()
        # No SimpleQueue: where a signal outlasts its timeout, CPython waits for ever.
        self._told: queue.Queue[Report] = queue.Queue()
        self._begun: dict[str, _Begun] = {}
        self._attempts: dict[str, int] = {}  # the last number of each job, also of those let go

    @property
    def ahead(self) -> int:
        """
        How many device jobs are worth beginning: those at work, the next for each worker, and a few
        more; 0 where nothing is done before it is waited for.
        """
        slots = self.executor.slots
        return 2 * slots + _SPARE if slots else 0

    @property
    def begun(self) -> Mapping[str, Job]:
        """The jobs whose results nobody has had yet, by key."""
        return {key: begun.job for key, begun in self._begun.items()}

    def answered(self) -> frozenset[str]:
        """Of these, the ones whose results need not be waited for."""
        while not self._told.empty():
            self._listen(0)
        return frozenset(key for key, begun in self._begun.items() if begun.answer is not None)

    def begin(self, job: Job, folders: Mapping[str, Path]) -> None:
        """Submit a job that is not out yet; its attempt's number is given here."""
        if job.key not in self._begun:
            self._begun[job.key] = _Begun(job, folders, self._attempts.get(job.key, 0) + 1)
            self._submit(job.key)

    def result(self, key: str) -> Any:
        """
        What a job that was begun gave, which can be had once; waits for it.

        Raises:
            Stopped: The daemon is to stop.
            Lost: Its workers went away again and again.
            KinshipError: As its call.
        """
        begun = self._begun[key]
        try:
            while begun.answer is None:
                if self._stop.is_set():
                    raise Stopped
                self._listen(_TICK_SECONDS)
        except BaseException:
            self.leave(key)
            raise
        del self._begun[key]
        if isinstance(begun.answer, Failed):
            raise begun.answer.error
        return begun.answer.value

    def leave(self, *keys: str) -> None:
        """Nobody wants the results of these any more."""
        for key in keys:
            if (begun := self._begun.pop(key, None)) is not None and begun.answer is None:
                self.executor.cancel(key, begun.job.attempt)

    def close(self) -> None:
        self._begun.clear()
        self.executor.close()

    def _submit(self, key: str) -> None:
        begun = self._begun[key]
        attempt = self._attempts[key] = self._attempts.get(key, 0) + 1
        begun.job = replace(begun.job, attempt=attempt)
        self.executor.submit(begun.job, begun.folders, self._tell)

    def _tell(self, report: Report) -> None:
        # An executor that works in our own thread: nobody else would listen meanwhile.
        if isinstance(report, Progress) and threading.get_ident() == self._thread:
            self._hear(report)
        else:
            self._told.put(report)

    def _listen(self, seconds: float) -> None:
        try:
            self._hear(self._told.get(seconds > 0, seconds or None))
        except queue.Empty:
            return

    def _hear(self, report: Report) -> None:
        begun = self._begun.get(report.key)
        if begun is None or begun.answer is not None or report.attempt < begun.first:
            return  # nobody waits for it, or it was answered before
        is_last = begun.job.attempt == report.attempt
        if isinstance(report, Done):
            begun.answer = report
            if not is_last:
                self.executor.cancel(report.key, begun.job.attempt)
        elif not is_last:
            return  # what went wrong with an attempt that was given up says nothing of the next
        elif isinstance(report, Progress):
            if self.watch is not None:
                self.watch(report.key, report.done, report.total)
        elif isinstance(report, Failed):
            begun.lost += isinstance(report.error, Lost)
            if isinstance(report.error, Lost) and begun.lost <= _MOST_LOST:
                self._submit(report.key)
            else:
                begun.answer = report
