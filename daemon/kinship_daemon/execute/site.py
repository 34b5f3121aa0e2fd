"""What jobs find on this machine: the file cache's folders, and a warm evaluator on a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kinship_daemon.errors import Stopped, Transient
from kinship_daemon.evaluate.evaluator import Evaluator, open_evaluator
from kinship_daemon.evaluate.settings import Settings
from kinship_daemon.execute.executor import Done, Failed, Job, Progress, Report, Site, Tell

__all__ = ["HereSite", "LocalSite", "Workshop", "outcome"]


@dataclass(frozen=True)
class Workshop:
    """
    What an executor is given of the daemon's machine.

    Attributes:
        log: The evaluation's log; further workers add their number to its name.
        devices: Where models are evaluated, one worker each: `cpu`, `cuda:0`.
        processes: How many jobs that need none of them are done at a time.
        options: The config's `executor` section, for who needs more than this.
        hub: Where models come from: a URL, or a folder.
        stop: Set when the daemon is to stop.
        say: Tells the user one line about the machines; from any thread.
    """

    log: Path
    devices: tuple[str, ...] = ("cpu",)
    processes: int = 1
    options: Mapping[str, object] = field(default_factory=dict)
    hub: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class HereSite:
    """
    The process that does a job itself, without a device.

    Attributes:
        folders: Of the job's sources, by weights identity.
        progress: As `Site.progress`.
    """

    folders: Mapping[str, Path]
    progress: Callable[[int, int], None]

    def folder(self, weights: str) -> Path:
        """As `Site.folder`."""
        return _folder(self.folders, weights)

    def evaluator(self, settings: Settings) -> Evaluator:  # noqa: ARG002 - it is the protocol's
        """There is none."""
        raise RuntimeError("a job that evaluates needs a device")


class _Any(threading.Event):
    """Set itself, or where one of the others is: a job is cancelled, or all end."""

    def __init__(self, *others: threading.Event) -> None:
        super().__init__()
        self._others = others

    def is_set(self) -> bool:
        return super().is_set() or any(other.is_set() for other in self._others)


class LocalSite:
    """
    A worker's place on this machine; one job at a time.

    Args:
        number: Which worker it is, from 0; it has the device of that number.
        closing: Set when all jobs are to end, beside the workshop's `stop`.
    """

    def __init__(
        self, workshop: Workshop, number: int = 0, closing: threading.Event | None = None
    ) -> None:
        self._workshop = workshop
        self._number = number
        self._cancelled = _Any(workshop.stop, closing or threading.Event())
        self._at: tuple[str, int] | None = None
        self._folders: Mapping[str, Path] = {}
        self._tell: Tell = lambda _: None
        self._evaluator: Evaluator | None = None
        self._asked: Settings | None = None
        self._lock = threading.Lock()

    def take(self, job: Job) -> None:
        """It will be at this job next: from now on that can be cancelled."""
        with self._lock:
            self._at = (job.key, job.attempt)

    @contextmanager
    def at(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> Iterator[None]:
        with self._lock:
            self._at = (job.key, job.attempt)
            self._folders, self._tell = folders, tell
        try:
            yield
        finally:
            with self._lock:
                self._at = None
                self._cancelled.clear()

    def cancel(self, key: str, attempt: int) -> bool:
        """Returns whether it was at that job."""
        with self._lock:
            if self._at != (key, attempt):
                return False
            self._cancelled.set()
            return True

    def folder(self, weights: str) -> Path:
        """As `Site.folder`."""
        return _folder(self._folders, weights)

    def evaluator(self, settings: Settings) -> Evaluator:
        """As `Site.evaluator`; that of other settings ends."""
        # It learns what the documents are: that is no other setting.
        if self._evaluator is None or settings not in (self._asked, self._evaluator.settings):
            self.close()
            device = self._workshop.devices[self._number]
            self._evaluator = open_evaluator(
                settings,
                log=self._log(),
                stop=self._cancelled,
                **({"device": device} if device.startswith("cuda:") else {}),
            )
            self._asked = settings
        return self._evaluator

    def progress(self, done: int, total: int) -> None:
        """As `Site.progress`."""
        if self._cancelled.is_set():
            raise Stopped
        assert self._at is not None
        self._tell(Progress(*self._at, done, total))

    def close(self) -> None:
        """End its evaluator."""
        evaluator, self._evaluator = self._evaluator, None
        if evaluator is not None:
            evaluator.close()

    def _log(self) -> Path:
        log = self._workshop.log
        return log if self._number == 0 else log.with_name(f"{log.stem}.{self._number}{log.suffix}")


def _folder(folders: Mapping[str, Path], weights: str) -> Path:
    if weights not in folders:
        raise Transient(f"no folder holds {weights} on this machine")
    return folders[weights]


def outcome(job: Job, site: Site) -> Report | None:
    """Do a job here: what is to be told of its end, nothing where nobody wants it any more."""
    try:
        return Done(job.key, job.attempt, job.call(site))
    except Stopped:
        return None
    except Exception as error:  # whoever waits for it raises it
        return Failed(job.key, job.attempt, error)
