"""The rules that the daemon relies on, each as a check of an executor."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinship_daemon.errors import Lost, WorkerDied
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.executor import (
    Call,
    Done,
    Executor,
    Failed,
    Job,
    Needs,
    Progress,
    Report,
    Source,
    Tell,
)
from kinship_daemon.execute.testing.jobs import FAULTS, Die, Hang, Raise, Read, Say, Stuck
from kinship_storage.records import File

__all__ = ["CHECKS", "ConformanceError", "conforms"]

Open = Callable[[], Executor]

# Longer than any start of a worker takes; nothing waits so long that works.
_PATIENCE_SECONDS = 300.0
# As long as a daemon that is to stop may take.
_STOP_SECONDS = 30.0
_DEVICE = Needs(device=True)
_BOTH = (_DEVICE, Needs())


class ConformanceError(AssertionError):
    """An executor broke a rule."""


def conforms(opened: Open) -> None:
    """Runs every check."""
    for check in CHECKS:
        check(opened)


def gives_what_a_call_gives_in_this_process(opened: Open) -> None:
    """More jobs than there are workers, each with its own answer or error, to the last bit."""
    with _running(opened) as (executor, told):
        for needs in _BOTH:
            words = ["a", "bcd", "é" * 1000]
            calls: list[Call] = [*map(Say, words), *map(Raise, range(len(FAULTS)))]
            jobs = [Job(f"{needs} {call}", call, needs) for call in calls]
            for job in jobs:
                executor.submit(job, {}, told)
            for job, word in zip(jobs, words, strict=False):
                given = told.end(job)
                right = (word, 1 / (3 + len(word)))
                _hold(isinstance(given, Done) and given.value == right, f"Say gave {given}")
                _hold(told.far(job) == [(1, 2)], f"Say's progress was told as {told.far(job)}")
            for job, fault in zip(jobs[len(words) :], FAULTS, strict=True):
                error = told.error(job)
                same = type(error) is type(fault) and str(error) == str(fault)
                same = same and vars(error) == vars(fault)
                _hold(same, f"raised {fault!r} {vars(fault)}, told was {error!r} {vars(error)}")
        _hold(told.ends_once(), "a job was told to have ended twice")


def hands_jobs_their_sources(opened: Open) -> None:
    """A job reads the files that it names, wherever it is done."""
    with _running(opened) as (executor, told), tempfile.TemporaryDirectory() as room:
        content = "what it holds"
        Path(room, "model.txt").write_text(content, encoding="utf-8")
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        source = Source((File("model.txt", len(content), sha256),))
        for needs in _BOTH:
            call = Read("sha256:w", "model.txt")
            job = Job(f"read {needs}", call, needs, {"sha256:w": source})
            executor.submit(job, {"sha256:w": Path(room)}, told)
            given = told.end(job)
            _hold(given == Done(job.key, 1, content), f"it read {given}")


def a_worker_that_dies_is_told_and_replaced(opened: Open) -> None:
    """A death is an end that is told, of whom it was at; the next job is done as ever."""
    with _running(opened) as (executor, told):
        for needs in _BOTH:
            for number in range(executor.slots + 1):
                job = Job(f"die {needs} {number}", Die(os.getpid()), needs)
                executor.submit(job, {}, told)
                error = told.error(job)
                _hold(isinstance(error, WorkerDied | Lost), f"a death was told as {error!r}")
            job = Job(f"after {needs}", Say("well"), needs)
            executor.submit(job, {}, told)
            _hold(isinstance(told.end(job), Done), "nothing is done after a worker died")


def a_job_at_work_can_be_cancelled_and_given_again(opened: Open) -> None:
    """Cancelled as often as there are workers and once more, no worker stays lost to it."""
    for needs in _BOTH:
        with _running(opened) as (executor, told):
            # A process of its own ends over a job that hangs; an evaluator has its time limit.
            is_own = executor.slots > 0 and not needs.device
            hangs = Stuck() if is_own else Hang()
            # One that works in `submit` hears of it while it tells how far it is.
            told.when_begun = executor.cancel
            for attempt in range(1, executor.slots + 2):
                executor.submit(Job("hangs", hangs, needs, attempt=attempt), {}, told)
                told.wait_for("hangs", attempt)
            told.when_begun = None
            job = Job("hangs", Say("done"), needs, attempt=99)
            executor.submit(job, {}, told)
            given = told.end(job)
            _hold(isinstance(given, Done) and given.attempt == 99, f"then it gave {given}")


def a_job_that_waits_can_be_cancelled(opened: Open) -> None:
    """It is never begun, and those behind it are."""
    with _running(opened) as (executor, told):
        if executor.slots == 0:
            return  # nothing ever waits
        hanging = [Job(f"hang {n}", Hang(), _DEVICE) for n in range(executor.slots)]
        for job in hanging:
            executor.submit(job, {}, told)
        waits, behind = Job("waits", Say("a"), _DEVICE), Job("behind", Say("b"), _DEVICE)
        executor.submit(waits, {}, told)
        executor.submit(behind, {}, told)
        executor.cancel("waits", 1)
        executor.cancel("nobody knows it", 1)
        for job in hanging:
            executor.cancel(job.key, job.attempt)
        _hold(isinstance(told.end(behind), Done), "who stood behind it was not done")
        _hold(not told.begun("waits"), "it was begun all the same")


def stops_within_seconds(opened: Open) -> None:
    """Whatever is being done; then nothing is told any more."""
    for call, needs in ((Hang(), _DEVICE), (Stuck(), Needs())):
        with _running(opened) as (executor, told):
            if executor.slots == 0:
                return  # whoever could close it is at the job
            jobs = [Job(f"hang {n}", call, needs) for n in range(executor.slots + 2)]
            for job in jobs:
                executor.submit(job, {}, told)
            told.wait_for("hang 0", 1)
            began = time.monotonic()
            executor.close()
            seconds = time.monotonic() - began
            _hold(seconds < _STOP_SECONDS, f"it took {seconds:.0f} seconds to close")
            before = told.count
            time.sleep(0.1)
            _hold(told.count == before, "something was told after it was closed")


def leaves_nothing_behind(opened: Open) -> None:
    """Neither a process of ours, nor a thread, nor shared memory, also where workers died."""
    with _running(opened) as (executor, told):  # what is kept for good is begun now
        executor.submit(Job("warm", Say("up"), Needs()), {}, told)
        told.end(Job("warm", Say("up")))
    before = _left()
    with _running(opened) as (executor, told):
        for needs in _BOTH:
            for call in (Say("a"), Die(os.getpid()), Say("b")):
                job = Job(f"{needs} {call}", call, needs)
                executor.submit(job, {}, told)
                told.end(job)
    end = time.monotonic() + _STOP_SECONDS
    while (more := _left() - before) and time.monotonic() < end:
        time.sleep(0.05)  # a killed child's entry goes a moment later
    _hold(not more, f"left behind: {sorted(more)}")


def answers_twice_and_late_are_one_answer(opened: Open) -> None:
    """Whoever answers twice, or after its job was given to another, changes nothing."""
    executor = _Doubtful(opened())
    dispatcher = Dispatcher(executor)
    try:
        for number in range(3):
            job = Job(f"job {number}", Say(f"{number}"), _DEVICE)
            dispatcher.begin(job, {})
            given = dispatcher.result(job.key)
            _hold(given == (f"{number}", 0.25), f"it gave {given}")
            dispatcher.begin(job, {})  # once more, while the doubtful still talks of the first
            _hold(dispatcher.result(job.key) == given, "the second time it gave something else")
    finally:
        dispatcher.close()
    _hold(executor.submitted > 6, "nothing was lost, so that nothing was tried")


CHECKS: tuple[Callable[[Open], None], ...] = (
    gives_what_a_call_gives_in_this_process,
    hands_jobs_their_sources,
    a_worker_that_dies_is_told_and_replaced,
    a_job_at_work_can_be_cancelled_and_given_again,
    a_job_that_waits_can_be_cancelled,
    stops_within_seconds,
    leaves_nothing_behind,
    answers_twice_and_late_are_one_answer,
)


class _Doubtful:
    """Tells each end twice; of every first attempt it says first that the worker is lost."""

    def __init__(self, sound: Executor) -> None:
        self._sound = sound
        self._lost: set[str] = set()
        self.submitted = 0

    @property
    def slots(self) -> int:
        return self._sound.slots

    @property
    def has_machines(self) -> bool:
        return self._sound.has_machines

    def submit(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        self.submitted += 1

        def twice(report: Report) -> None:
            if isinstance(report, Done) and report.key not in self._lost:
                self._lost.add(report.key)
                tell(Failed(report.key, report.attempt, Lost("its machine is gone")))
            tell(report)
            if isinstance(report, Done):
                tell(report)

        self._sound.submit(job, folders, twice)

    def cancel(self, key: str, attempt: int) -> None:
        self._sound.cancel(key, attempt)

    def describe(self) -> list[str]:
        return self._sound.describe()

    def close(self) -> None:
        self._sound.close()


class _Told:
    """All that was told, by job and attempt; waits for what is to come."""

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._changed = threading.Condition()
        self.when_begun: Callable[[str, int], None] | None = None

    def __call__(self, report: Report) -> None:
        with self._changed:
            first = report.attempt not in self.begun(report.key)
            self._reports.append(report)
            self._changed.notify_all()
        if first and self.when_begun is not None:
            self.when_begun(report.key, report.attempt)

    @property
    def count(self) -> int:
        return len(self._reports)

    def begun(self, key: str) -> set[int]:
        return {report.attempt for report in self._reports if report.key == key}

    def far(self, job: Job) -> list[tuple[int, int]]:
        mine = [report for report in self._reports if report.key == job.key]
        return [(each.done, each.total) for each in mine if isinstance(each, Progress)]

    def ends_once(self) -> bool:
        ends = [(r.key, r.attempt) for r in self._reports if not isinstance(r, Progress)]
        return len(ends) == len(set(ends))

    def wait(self, so_far: Callable[[], Any], what: str) -> None:
        with self._changed:
            came = self._changed.wait_for(so_far, _PATIENCE_SECONDS)
        _hold(bool(came), f"waited {_PATIENCE_SECONDS:g} seconds in vain until {what}")

    def wait_for(self, key: str, attempt: int) -> None:
        self.wait(lambda: attempt in self.begun(key), f"attempt {attempt} at {key} began")

    def end(self, job: Job) -> Report:
        def found() -> Report | None:
            ends = [each for each in self._reports if isinstance(each, Done | Failed)]
            mine = (e for e in ends if (e.key, e.attempt) == (job.key, job.attempt))
            return next(mine, None)

        self.wait(found, f"{job.key} ended")
        report = found()
        assert report is not None
        return report

    def error(self, job: Job) -> Exception:
        report = self.end(job)
        if not isinstance(report, Failed):
            raise ConformanceError(f"{job.key} gave {report}; it was to fail")
        return report.error


@contextmanager
def _running(opened: Open) -> Iterator[tuple[Executor, _Told]]:
    executor = opened()
    try:
        yield executor, _Told()
    finally:
        executor.close()


def _left() -> set[str]:
    """Our child processes and threads, and the machine's shared memory."""
    found = {f"thread {thread.name}" for thread in threading.enumerate()}
    shared = Path("/dev/shm")  # noqa: S108 - it is looked at, not written
    found |= {f"shared memory {path.name}" for path in shared.glob("*")}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it ended meanwhile
        if parent == str(os.getpid()):
            found.add(f"process {stat.parent.name}")
    return found


def _hold(holds: bool, words: str) -> None:
    if not holds:
        raise ConformanceError(words)
