"""Jobs that end in every way a job can end, for the checks."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.errors import EvaluationFailed, ModelError, Transient, WorkerDied
from kinship_daemon.execute.executor import Site

__all__ = ["FAULTS", "Die", "Hang", "Raise", "Read", "Say", "Stuck"]

FAULTS: tuple[Exception, ...] = (
    ModelError("NaN in it", model="org/a"),
    ModelError("no such dtype", cause="settings", setting="evaluate.dtype"),
    EvaluationFailed("crashed", document=("quick", 3), seconds=1.5),
    Transient("away", 7.0),
    ValueError("a bug"),
)


@dataclass(frozen=True)
class Say:
    """Tells that it is half done, then gives a word and a number in full precision."""

    word: str

    def __call__(self, site: Site) -> tuple[str, float]:
        site.progress(1, 2)
        return self.word, 1 / (3 + len(self.word))


@dataclass(frozen=True)
class Raise:
    """Raises one of the faults."""

    fault: int

    def __call__(self, site: Site) -> None:  # noqa: ARG002 - it is the protocol's
        raise FAULTS[self.fault]


@dataclass(frozen=True)
class Read:
    """
    Gives the text of a file of one of its sources.

    Attributes:
        when: It tells that it has begun, and waits until this file exists.
    """

    weights: str
    file: str
    when: str | None = None

    def __call__(self, site: Site) -> str:
        while self.when is not None and not Path(self.when).exists():
            site.progress(0, 1)
            time.sleep(0.05)
        return (site.folder(self.weights) / self.file).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Die:
    """Takes its process along, unless that is the daemon's; then it ends as evaluators do."""

    daemon: int

    def __call__(self, site: Site) -> None:
        site.progress(0, 1)
        if os.getpid() == self.daemon:
            raise WorkerDied("an evaluator's process died")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Hang:
    """Never ends, and says again and again that it is not done."""

    def __call__(self, site: Site) -> None:
        while True:
            site.progress(0, 1)
            time.sleep(0.02)


@dataclass(frozen=True)
class Stuck:
    """Never ends and, once it said that it has begun, never says anything."""

    def __call__(self, site: Site) -> None:
        site.progress(0, 1)
        while True:
            time.sleep(60)
