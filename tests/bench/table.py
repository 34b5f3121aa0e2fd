"""What was measured, as rows that grow on the terminal and end as a table for the README."""

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

__all__ = ["Progress", "Row", "filesystem", "gigabytes", "machine", "markdown", "verdict"]

_HEADINGS = (
    "work", "ours", "against", "ratio", "bar", "verdict", "private memory, ours / theirs"
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        work: What was done.
        ours, peer: What was measured, with units.
        ratio: Of the two, as the bar speaks of it.
        bar: What must be reached; empty where nothing must.
        verdict: met, missed, measured (no bar), skipped or failed.
        private: Peak private memory of ours and theirs.
        notes: For below the table.
        facts: Raw numbers, for --json.
    """

    work: str
    ours: str = ""
    peer: str = ""
    ratio: str = ""
    bar: str = ""
    verdict: str = "measured"
    private: str = ""
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[str, ...]:
        found = (self.work, self.ours, self.peer, self.ratio, self.bar, self.verdict, self.private)
        return tuple(cell or "-" for cell in found)


def verdict(*met: bool) -> str:
    return "met" if all(met) else "missed"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def filesystem(folder: Path) -> str:
    """What kind of file system a folder lies on: ext4, or tmpfs, which is memory."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "an unknown file system"
    kinds = {Path(where): kind for _, where, kind, *_ in mounts}
    above = (folder.resolve(), *folder.resolve().parents)
    return next(kinds[path] for path in above if path in kinds)


class Progress:
    """On a terminal the table so far and what runs now; elsewhere a line for each."""

    def __init__(self, live: Live | None) -> None:
        self._live = live
        self._rows: list[Row] = []

    def runs(self, what: str) -> None:
        if self._live is None:
            print(what, file=sys.stderr, flush=True)
            return
        shown = Table(*_HEADINGS)
        for row in self._rows:
            shown.add_row(*row.cells)
        shown.add_row(Spinner("dots", what))
        self._live.update(shown)

    def done(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        if self._live is None:
            for row in rows:
                print("  " + " | ".join(row.cells), file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Progress]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Progress(None)
        return
    # Transient: the table that stays is the markdown one.
    with Live(console=console, transient=True) as live:
        yield Progress(live)


def machine() -> dict[str, str]:
    """What figures depend on: processor, cores, memory, device, versions, date."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "device": _device(),
        **{name: _version(name) for name in ("torch", "transformers", "mergekit")},
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def markdown(rows: Sequence[Row], facts: dict[str, str], parameters: int) -> str:
    """The table, its notes and where it was measured."""
    lines = [
        f"Mistral of {parameters / 1e9:.2f} billion parameters, bf16, 2 shards, warm page cache. "
        f"{', '.join(f'{key} {value}' for key, value in facts.items())}.",
        "Best of the runs, the median in brackets; whole processes from start to exit unless it "
        "says otherwise. Absolute times mean little on a machine that others use too; the ratios "
        "are from runs in turns. Private memory is the peak of anonymous pages: mapped files, "
        "which the system may drop at any time, are not in it.",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        f"|{'---|' * len(_HEADINGS)}",
        *(f"| {' | '.join(row.cells)} |" for row in rows),
        "",
        *(f"- {row.work}: {note}" for row in rows for note in row.notes),
    ]
    return "\n".join(lines)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = [
        line.partition(":")[2].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
