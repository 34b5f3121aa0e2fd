"""Runs whole commands against the clock and watches how much memory of their own they take."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

__all__ = ["CommandFailed", "Run", "Series", "in_turns", "kinship_daemon", "timed"]

_SAMPLE_SECONDS = 0.05


class CommandFailed(Exception):
    """A measured command ended badly; the message is its last line."""


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        seconds: From start to exit.
        private: Peak of anonymous memory over the process tree, bytes; mapped files not counted.
        out: What it printed on stdout.
    """

    seconds: float
    private: int
    out: str


@dataclass(frozen=True)
class Series:
    """The same work several times."""

    runs: list[Run] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Seconds. What others on the machine take away only ever adds."""
        return min(run.seconds for run in self.runs)

    @property
    def private(self) -> int:
        return max(run.private for run in self.runs)

    def __str__(self) -> str:
        return f"{self.best:.2f} s ({median(run.seconds for run in self.runs):.2f})"


def kinship_daemon(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "kinship_daemon", *map(str, arguments)]


def timed(command: Sequence[str]) -> Run:
    """
    Run a command to its end.

    Raises:
        CommandFailed: Its exit status is not 0.
    """
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | offline)
        with process, _watched(process.pid) as peak:
            try:
                process.wait()
            finally:
                process.kill()  # where we are interrupted; else it has ended
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            lines = err.read().strip().splitlines() or [f"exit status {process.returncode}"]
            raise CommandFailed(lines[-1][:200])
        return Run(seconds, peak[0], out.read())


def in_turns(
    commands: Sequence[Sequence[str]],
    repeat: int,
    before: Callable[[], object] = lambda: None,
) -> list[Series]:
    """Commands in turns, so that what else the machine does meets them all; `before` each round."""
    series = [Series() for _ in commands]
    for _ in range(repeat):
        before()
        for command, one in zip(commands, series, strict=True):
            one.runs.append(timed(command))
    return series


@contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """Sample the tree under `pid` until left; the one item is the peak in bytes."""
    peak, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], sum(_private(one) for one in _tree(pid)))

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _tree(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _tree(int(child))
    except OSError:
        pass  # it has just ended
    return found


def _private(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0  # it has just ended
    # RssAnon rather than Pss: to add up the pages of a 10 GB process would slow it down.
    return sum(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")
    )
