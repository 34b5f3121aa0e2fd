"""
The workers of this machine, the default: one for each device, and processes for what needs none.

A device's worker is a thread that holds a warm evaluator, whose own process owns the device and may
die alone. What needs no device is done in a process that stays for the next such job, and is killed
where its own is not wanted any more.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from kinship_daemon.child_process import ChildProcess, settle
from kinship_daemon.errors import WorkerDied
from kinship_daemon.execute.executor import Failed, Job, Report, Tell
from kinship_daemon.execute.executor import Progress as Far
from kinship_daemon.execute.line import Do, Line
from kinship_daemon.execute.site import HereSite, LocalSite, Workshop, outcome

__all__ = ["Local"]

# So often a wait for a process looks whether it is still wanted.
_TICK_SECONDS = 0.2


class Local:
    """
    As many jobs at a time as there are devices, and beside them as many processes as wanted.

    Args:
        workshop: Its devices are taken from there, and how many processes.
    """

    has_machines = False

    def __init__(self, workshop: Workshop) -> None:
        self._devices = workshop.devices
        self._closing = threading.Event()
        count = range(len(workshop.devices))
        self._sites = [LocalSite(workshop, number, self._closing) for number in count]
        self._processes = [_Process(workshop, self._closing) for _ in range(workshop.processes)]
        self._on_devices = Line(
            [_on_site(site) for site in self._sites],
            "device",
            take=lambda number, job: self._sites[number].take(job),
        )
        self._beside = Line(
            [process.do for process in self._processes],
            "process",
            take=lambda number, job: self._processes[number].take(job),
        )

    @property
    def slots(self) -> int:
        return len(self._devices)

    def submit(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        """As `Executor.submit`."""
        line = self._on_devices if job.needs.device else self._beside
        line.put((job, folders, tell))

    def cancel(self, key: str, attempt: int) -> None:
        """As `Executor.cancel`."""
        for line in (self._on_devices, self._beside):
            if line.drop(key, attempt):
                return
        for site in self._sites:
            site.cancel(key, attempt)
        for process in self._processes:
            process.cancel(key, attempt)

    def describe(self) -> list[str]:
        return [
            *(f"{device}: evaluation, one model at a time" for device in self._devices),
            f"beside them: {len(self._processes)} at a time of what needs no device, in processes",
        ]

    def close(self) -> None:
        """As `Executor.close`."""
        self._closing.set()
        for line in (self._on_devices, self._beside):
            line.close()
        for site in self._sites:
            site.close()
        for process in self._processes:
            process.close()


def _on_site(site: LocalSite) -> Do:
    def do(job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        with site.at(job, folders, tell):
            report = outcome(job, site)
        if report is not None:
            tell(report)

    return do


class _Process:
    """Does one job at a time in a process, which stays for the next one unless it is ended."""

    def __init__(self, workshop: Workshop, closing: threading.Event) -> None:
        self._ends = (workshop.stop, closing)
        self._lock = threading.Lock()
        self._at: tuple[str, int] | None = None
        self._cancelled = False
        self._child: ChildProcess | None = None

    def take(self, job: Job) -> None:
        """From now on it can be cancelled."""
        with self._lock:
            self._at = (job.key, job.attempt)

    def do(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        report: Report | None = None
        try:
            report = self._done(job, folders, tell)
        except Exception as error:
            report = Failed(job.key, job.attempt, error)
        finally:
            with self._lock:
                self._at, self._cancelled = None, False
        if report is not None:
            tell(report)

    def cancel(self, key: str, attempt: int) -> None:
        with self._lock:
            self._cancelled |= self._at == (key, attempt)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _done(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> Report | None:
        report = None
        try:
            self._child = self._child or ChildProcess("kinship-job", _serve)
            self._child.pipe.send((job, dict(folders)))
            while not (self._cancelled or any(end.is_set() for end in self._ends)):
                if not self._child.pipe.poll(_TICK_SECONDS):
                    continue
                heard: Report = self._child.pipe.recv()
                if not isinstance(heard, Far):
                    report = heard
                    break
                tell(heard)
        except (EOFError, ConnectionError):
            how = "it could not be started" if self._child is None else self._child.ending()
            raise WorkerDied(f"{job.key}: its process died ({how})") from None
        finally:
            if report is None:
                self.close()
        return report


def _serve(pipe: Connection) -> None:
    """The child's life: one job after another."""
    settle()
    while True:
        try:
            job, folders = pipe.recv()
        except EOFError:
            return
        key = job.key, job.attempt
        report = outcome(job, HereSite(folders, lambda *far, key=key: pipe.send(Far(*key, *far))))
        if report is not None:
            pipe.send(report)
