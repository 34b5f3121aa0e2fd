"""
What a daemon is doing just now, for who looks on from another process.

The lineage holds what happened; how far the step at hand is, and the last lines that were told, are
in a small file beside it. It may be deleted, and is never read by the daemon's own work.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kinship_daemon.foreign.shown import clean
from kinship_daemon.report import FORETELLS, Advance, Reporter

__all__ = ["recorded", "recording"]

_EVENTS = 100
_SECONDS = 1.0  # between two writings


def recorded(path: Path) -> dict[str, Any]:
    """
    What the daemon wrote last; empty if it never did, or if it cannot be read.

    `events` (the newest last), `counts` of events by kind and `faults` of the hub by kind
    since its start, `step` (label, done,
    total, unit, rate, seconds_left; None between steps), and the facts that it began with.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def recording(report: Reporter, path: Path, facts: Mapping[str, Any]) -> Iterator[Reporter]:
    """
    A reporter that also keeps the file up to date, once a second, in a thread of its own.

    Args:
        path: The file; events that it holds from before are kept.
        facts: What else it is to say, as JSON.
    """
    recorder = _Recorder(report, path, facts)
    thread = threading.Thread(target=recorder.write_on, name="activity", daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        recorder.close()
        thread.join(_SECONDS)


@dataclass(frozen=True)
class _Step:
    """
    Attributes:
        rate: Units per second since it began.
    """

    label: str
    unit: str
    done: int
    total: int | None
    rate: float | None
    seconds_left: float | None


class _Recorder:
    def __init__(self, report: Reporter, path: Path, facts: Mapping[str, Any]) -> None:
        self._report = report
        self._path = path
        self._facts = facts
        before = recorded(path).get("events")
        self._events: deque[Any] = deque(before if isinstance(before, list) else (), _EVENTS)
        self._counts: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._steps: list[Callable[[], _Step]] = []  # the innermost last
        self._lock = threading.Lock()
        self._changed, self._ended = threading.Event(), threading.Event()
        self._changed.set()

    def event(self, kind: str, message: str, **facts: Any) -> None:
        self._report.event(kind, message, **facts)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = {"time": now, "kind": kind, "message": message, "model": facts.get("model")}
        with self._lock:
            self._counts[kind] += 1
            if fault := facts.get("fault"):
                self._faults[fault] += 1
            if kind != "progress":
                self._events.append(clean(line))
        self._changed.set()

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        began, done, whole, name = time.monotonic(), 0, total, label

        def step() -> _Step:
            seconds = time.monotonic() - began
            rate = done / seconds if done and seconds > 0 else None
            left = None
            if rate is not None and whole is not None and done >= FORETELLS * whole:
                left = max(whole - done, 0) / rate
            return _Step(str(clean(name)), unit, done, whole, rate, left)

        with self._report.progress(label, total, unit) as inner:

            def advance(more: int, total: int | None = None, /, *, label: str = "") -> None:
                nonlocal done, whole, name
                done += more
                whole = whole if total is None else total
                name = label or name
                inner(more, total, label=label)
                self._changed.set()

            self._steps.append(step)
            try:
                yield advance
            finally:
                self._steps.remove(step)
                self._changed.set()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._report.table(title, columns, rows)

    def block(self, title: str, text: str) -> None:
        self._report.block(title, text)

    def write_on(self) -> None:
        while not self._ended.is_set():
            self._changed.wait()
            self._changed.clear()
            self._write()
            self._ended.wait(_SECONDS)
        self._write()

    def close(self) -> None:
        self._ended.set()
        self._changed.set()

    def _write(self) -> None:
        with self._lock:
            events, counts = list(self._events), dict(self._counts)
            faults = dict(self._faults)
        steps = list(self._steps)
        step = asdict(steps[-1]()) if steps else None
        now = {"step": step, "counts": counts, "faults": faults, "events": events}
        content = {**self._facts, **now}
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            # Not synced: after a power cut it is of no use anyway.
            partial.write_text(json.dumps(content), encoding="utf-8")
            partial.replace(self._path)
        except OSError:
            return  # a full disk is told where it matters
