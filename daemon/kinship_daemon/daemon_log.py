"""The daemon's own log, `logs/daemon.log`: what a terminal would have shown, kept within bounds."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from kinship_daemon.report import Advance, LineReporter, Reporter

__all__ = ["logging_to"]

_MOST_BYTES, _OLDER_FILES = 5_000_000, 3


@contextmanager
def logging_to(path: Path, report: Reporter) -> Iterator[Reporter]:
    """A reporter that also writes to a file: a line per event, UTC time first."""
    file = _RotatingFile(path)
    try:
        yield _Both(report, LineReporter(file))  # type: ignore[arg-type]  # all that `print` needs
    finally:
        file.close()


class _RotatingFile(io.TextIOBase):
    """Whole lines; three older files of 5 MB are kept beside it."""

    def __init__(self, path: Path) -> None:
        self._handler = _Quiet(
            path, maxBytes=_MOST_BYTES, backupCount=_OLDER_FILES, encoding="utf-8", delay=True
        )

    def write(self, text: str) -> int:
        if line := text.rstrip("\n"):
            self._handler.handle(logging.makeLogRecord({"msg": line}))
        return len(text)

    def close(self) -> None:
        self._handler.close()
        super().close()


class _Quiet(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nothing: a full disk is told where it matters."""


class _Both:
    def __init__(self, report: Reporter, log: Reporter) -> None:
        self._report = report
        self._log = log

    def event(self, kind: str, message: str, **facts: Any) -> None:
        self._report.event(kind, message, **facts)
        self._log.event(kind, message, **facts)

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        with (
            self._report.progress(label, total, unit) as shown,
            self._log.progress(label, total, unit) as logged,
        ):

            def advance(done: int, total: int | None = None, /, *, label: str = "") -> None:
                shown(done, total, label=label)
                logged(done, total, label=label)

            yield advance

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._report.table(title, columns, rows)
        self._log.table(title, columns, rows)

    def block(self, title: str, text: str) -> None:
        self._report.block(title, text)
        self._log.block(title, text)
