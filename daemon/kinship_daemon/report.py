"""What people see while the daemon works: bars and tables on a terminal, else lines."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from kinship_daemon.foreign.shown import LONGEST_LINE, clean, one_line

__all__ = [
    "FORETELLS",
    "Advance",
    "JsonReporter",
    "LineReporter",
    "Reporter",
    "RichReporter",
    "amount",
    "count",
    "reporter",
]


class Advance(Protocol):
    """
    Called with the units just done, and with how many there are in all once that is known.

    `label` is what it is called from now on, where that changes.
    """

    def __call__(self, done: int, total: int | None = None, /, *, label: str = "") -> None: ...


_COLOURS = {
    "quarantine": "red",
    "refused": "yellow",
    "unrelated": "yellow",
    "warning": "bold magenta",
    "publish": "green",
    "published": "green",
}
_SECONDS_BETWEEN_LINES = 15.0
# The first part of the work is mostly start-up: before this share is done, no time left is told.
FORETELLS = 0.01


class Reporter(Protocol):
    def event(self, kind: str, message: str, **facts: Any) -> None:
        """One thing that happened: `kind` is one word, `facts` are for machines."""

    def progress(self, label: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """A long step of `total` units, None while that is not known."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A summary for people; machines have the events."""

    def block(self, title: str, text: str) -> None:
        """Several lines that belong together, such as the family tree."""


def reporter(*, log_json: bool, stream: TextIO | None = None) -> Reporter:
    """The reporter that suits where the output goes."""
    out = stream or sys.stdout
    if log_json:
        return JsonReporter(out)
    return RichReporter(Console(file=out)) if out.isatty() else LineReporter(out)


def absolute(advance: Advance) -> Callable[[int, int], None]:
    """For those who tell how many units are done so far: passes on how many more."""
    seen = 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        advance(done - seen, total)
        seen = done

    return progress


def amount(value: float, unit: str) -> str:
    """`1.2 GB` for bytes, `340 documents` for anything else."""
    if unit != "bytes":
        return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    for prefix in ("", "k", "M"):
        if value < 1000:
            return f"{value:.{1 if prefix else 0}f} {prefix}B"
        value /= 1000
    return f"{value:.1f} GB"


def count(number: int, noun: str) -> str:
    """`1 merge`, `2 merges`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        text = "" if not speed else f"{amount(speed, task.fields['unit'])}/s"
        return Text(text, style="progress.data.speed")


class RichReporter:
    """For a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, kind: str, message: str, **facts: Any) -> None:
        refused = kind == "gate" and not facts.get("passed")
        colour = _COLOURS.get("refused" if refused else kind, "cyan")
        self._console.print(f"[{colour}]{kind:>10}[/] {escape(one_line(message))}", highlight=False)

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn("[cyan]{task.fields[kind]:>10}[/] {task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(escape(one_line(label)), total=total, unit=unit, kind="")

            def advance(done: int, total: int | None = None, /, *, label: str = "") -> None:
                named = escape(one_line(label)) if label else None
                bar.update(task, advance=done, total=total, description=named)

            yield advance

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", title_style="bold")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < 2 else "right")
        for row in rows:
            table.add_row(*(escape(one_line(cell)) for cell in row))
        self._console.print(table)

    def block(self, title: str, text: str) -> None:
        self._console.print(f"\n[bold]{escape(title)}[/]")
        lines = "\n".join(map(one_line, text.split("\n")))
        self._console.print(escape(lines), highlight=False)


class _Lines(ABC):
    """Progress as events: one every few seconds, with a rate and the time left."""

    @abstractmethod
    def event(self, kind: str, message: str, **facts: Any) -> None: ...

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        start = last = time.monotonic()
        ready, whole, name = 0, total, label

        def advance(done: int, total: int | None = None, /, *, label: str = "") -> None:
            nonlocal ready, last, whole, name
            ready += done
            whole = total or whole
            name = label or name
            now = time.monotonic()
            if now - last < _SECONDS_BETWEEN_LINES or not whole or ready < FORETELLS * whole:
                return
            last = now
            rate = ready / (now - start)
            left = max(whole - ready, 0) / rate
            message = (
                f"{name}: {100 * ready / whole:.0f} %, {amount(rate, unit)}/s, {left:.0f} s left"
            )
            self.event("progress", message, done=ready, total=whole, unit=unit, seconds_left=left)

        yield advance

    def table(  # noqa: B027 - empty on purpose
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Nothing: lines and JSON have said it all in events."""

    def block(self, title: str, text: str) -> None:
        self.event("summary", title, lines=text.splitlines())


class LineReporter(_Lines):
    """For a log: one line per event, UTC time first."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def event(self, kind: str, message: str, **_facts: Any) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        print(f"{now} {kind}: {one_line(message)}", file=self._stream, flush=True)

    def block(self, title: str, text: str) -> None:
        lines = "\n".join(map(one_line, text.split("\n")))
        print(f"{title}:\n{lines}", file=self._stream, flush=True)


class JsonReporter(_Lines):
    """For machines: one JSON object per line with `time`, `event`, `message` and the facts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def event(self, kind: str, message: str, **facts: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = clean({"time": now, "event": kind, "message": message, **facts})
        print(json.dumps(line, default=str), file=self._stream, flush=True)

    def block(self, title: str, text: str) -> None:
        """A long one in several events: no line of a log is without end."""
        part: list[str] = []
        for line in text.splitlines():
            if part and len(json.dumps([*part, line])) > LONGEST_LINE:
                super().block(title, "\n".join(part))
                part = []
            part.append(line)
        super().block(title, "\n".join(part))
