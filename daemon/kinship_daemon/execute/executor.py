"""
What an executor is: it does jobs somewhere and tells what came of them; it decides nothing.

A job is data and may be done anywhere, also twice: it changes nothing but what it returns. It names
models by their weights identity, never by a path, and holds no secret. Who submits it numbers its
attempts, takes the first answer to any of them and lets the others go (`dispatch.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kinship_daemon.evaluate.evaluator import Evaluator
from kinship_daemon.evaluate.settings import Settings
from kinship_storage.records import File

__all__ = [
    "Call",
    "Done",
    "Executor",
    "Failed",
    "Job",
    "Needs",
    "Progress",
    "Report",
    "Site",
    "Source",
    "Tell",
]


class Site(Protocol):
    """What a job finds where it is done."""

    def folder(self, weights: str) -> Path:
        """
        Where the files of one of the job's sources lie.

        Raises:
            Transient: They cannot be had there now.
        """

    def evaluator(self, settings: Settings) -> Evaluator:
        """The worker's own, still warm where the last job had these settings; needs a device."""

    def progress(self, done: int, total: int) -> None:
        """
        Tell how far the job is.

        Raises:
            Stopped: Nobody wants it any more.
        """


# Picklable; returns what is picklable. Raises a KinshipError.
Call = Callable[[Site], Any]


@dataclass(frozen=True)
class Needs:
    """
    What a job takes while it is done.

    Attributes:
        device: One of the devices that models are evaluated on, and a worker that owns it.
        memory_bytes: Of its own, about, files that it maps left out; 0 where that is little.
    """

    device: bool = False
    memory_bytes: int = 0


@dataclass(frozen=True)
class Source:
    """
    A checkpoint that a job reads, told apart by what it holds.

    Attributes:
        files: Weights, config and tokenizer, with sizes and SHA-256: whoever has such files has
            the checkpoint.
        repo: On the hub; None for what was made here.
        revision: Of the repo, a commit.
    """

    files: tuple[File, ...]
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Job:
    """
    Attributes:
        key: The same for the same work.
        sources: What it reads, by weights identity.
        attempt: From 1; a new one each time it is submitted.
    """

    key: str
    call: Call
    needs: Needs = Needs()
    sources: Mapping[str, Source] = field(default_factory=dict)
    attempt: int = 1


@dataclass(frozen=True)
class Report:
    """What is told of one attempt at a job."""

    key: str
    attempt: int


@dataclass(frozen=True)
class Progress(Report):
    """Units done and in all."""

    done: int
    total: int


@dataclass(frozen=True)
class Done(Report):
    """What its call returned."""

    value: Any


@dataclass(frozen=True)
class Failed(Report):
    """
    What its call raised, with all its facts; or what became of its worker.

    Attributes:
        error: WorkerDied where a worker died over it, Lost where it went away with its machine.
    """

    error: Exception


# Called from any thread; returns at once.
Tell = Callable[[Report], None]


class Executor(Protocol):
    """
    Does jobs. What it holds is not written down anywhere: a daemon that starts submits anew.

    Attributes:
        slots: How many jobs that need a device it does at a time, as things are now; further ones
            wait in the order in which they came. 0 where `submit` itself does the job.
        has_machines: Whether it has other machines than this one: work that needs no device is
            better given to it, too, than done by the daemon.
    """

    @property
    def slots(self) -> int: ...

    @property
    def has_machines(self) -> bool: ...

    def submit(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        """
        Do a job when there is room, and tell of it: progress, then how it ended, once.

        Raises nothing over the job: what keeps it from being done is told as Failed.

        Args:
            folders: Where the job's sources lie on this machine, by weights identity; they stay
                until it has ended or was cancelled. They mean nothing elsewhere.
        """

    def cancel(self, key: str, attempt: int) -> None:
        """
        Nobody wants this attempt any more: a worker at it is free again, or replaced, in seconds.

        It may still be told of. From any thread; unknown ones are nothing.
        """

    def describe(self) -> list[str]:
        """A line for each place where jobs are done: what it is, and what it does."""

    def close(self) -> None:
        """End all jobs and workers within seconds; none is told of after that."""
