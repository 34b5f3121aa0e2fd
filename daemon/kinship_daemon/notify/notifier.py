"""What a notifier is, and a reporter that tells notifiers of events."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kinship_daemon import extensions
from kinship_daemon.errors import UsageError
from kinship_daemon.report import Advance, Reporter

__all__ = ["GROUP", "Notifier", "notifier", "notifying"]

GROUP = "kinship_daemon.notifiers"

# Gets an event's kind, its message and its facts. What it raises is logged, and the event is lost.
Notifier = Callable[[str, str, Mapping[str, Any]], None]

# Events that wait for a slow notifier; more than that are not worth waiting for.
_MOST_WAITING = 1000
_GOODBYE_SECONDS = 2.0


def notifier(name: str, settings: Mapping[str, Any]) -> Notifier:
    """
    The notifier called `name`, made with its settings.

    Raises:
        UsageError: There is none, or it does not take these settings.
    """
    make = extensions.find(GROUP, "notifier", name)
    try:
        made: Notifier = make(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"notify.use.{name}: {error}") from error
    return made


@contextmanager
def notifying(
    report: Reporter, notifiers: Mapping[str, Notifier], kinds: Sequence[str]
) -> Iterator[Reporter]:
    """
    A reporter that also tells notifiers of events of these kinds, in a thread of its own.

    A notifier that fails or hangs holds nobody up. At the end it has two seconds for what waits.
    """
    if not notifiers:
        yield report
        return
    telling = _Telling(report, notifiers, frozenset(kinds))
    try:
        yield telling
    finally:
        telling.close()


class _Telling:
    def __init__(
        self, report: Reporter, notifiers: Mapping[str, Notifier], kinds: frozenset[str]
    ) -> None:
        self._report = report
        self._notifiers = notifiers
        self._kinds = kinds
        self._waiting: queue.Queue[tuple[str, str, Mapping[str, Any]] | None] = queue.Queue(
            _MOST_WAITING
        )
        self._thread = threading.Thread(target=self._tell, name="notify", daemon=True)
        self._thread.start()

    def event(self, kind: str, message: str, **facts: Any) -> None:
        self._report.event(kind, message, **facts)
        if kind in self._kinds:
            try:
                self._waiting.put_nowait((kind, message, facts))
            except queue.Full:
                self._report.event("warning", f"notifiers are too slow: not told of {message}")

    def progress(self, label: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        return self._report.progress(label, total, unit)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._report.table(title, columns, rows)

    def block(self, title: str, text: str) -> None:
        self._report.block(title, text)

    def close(self) -> None:
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_GOODBYE_SECONDS)

    def _tell(self) -> None:
        while (event := self._waiting.get()) is not None:
            for name, tell in self._notifiers.items():
                try:
                    tell(*event)
                except Exception as error:  # a stranger's code: it costs its own event
                    self._report.event(
                        "warning", f"notifier {name}: {type(error).__name__}: {error}"
                    )
