"""The outbox of the lineage: events to be told outside, and how far each notifier was told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from kinship_storage.records import Event
from kinship_storage.rows import record, row, stamp
from kinship_storage.store import Store

__all__ = ["KEPT", "Events"]

KEPT = 10_000  # events; older ones make room, told or not


class Events:
    """
    Rows that are written in the transaction of what they tell of, and delivered afterwards.

    A kill between the two delivers them at the next start; one between delivery and
    `mark_delivered` delivers them twice, with the same id.
    """

    _store: Store
    _now: Callable[[], datetime]

    def add_event(
        self,
        kind: str,
        message: str,
        *,
        model: str | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            kind: One word, such as `publish`.
            message: The event in words.
            model: Id of the model that it is about.
            facts: The same for machines, as JSON.
        """
        with self._store.transaction():
            number = self.last_event() + 1
            event = Event(number, kind, message, model, facts or {}, stamp(self._now()))
            self._store.insert("events", row(event))
            self._store.execute("DELETE FROM events WHERE number <= ?", [number - KEPT])

    def last_event(self) -> int:
        """Number of the newest event; 0 before the first."""
        found = self._store.query("SELECT coalesce(max(number), 0) AS number FROM events")
        return int(found[0]["number"])

    def events(self, after: int = 0, most: int = KEPT) -> list[Event]:
        """Those behind a number, in the order in which they happened."""
        found = self._store.query(
            "SELECT * FROM events WHERE number > ? ORDER BY number LIMIT ?", [after, most]
        )
        return [record(Event, values) for values in found]

    def told_since(self, kind: str, moment: datetime, about: str = "") -> bool:
        """Whether there is an event of this kind since then whose message begins like that."""
        found = self._store.rows(
            "events", "kind = ? AND created >= ?", [kind, stamp(moment)], order="number"
        )
        return any(record(Event, values).message.startswith(about) for values in found)

    def delivered(self, notifier: str) -> int:
        """
        Number of the last event that a notifier was told.

        One that is new begins with what happens from now on.
        """
        with self._store.transaction():
            new = {"notifier": notifier, "event": self.last_event()}
            self._store.insert("deliveries", new, ignore=True)
            found = self._store.row("deliveries", "notifier = ?", notifier)
        assert found is not None
        # A backup that was restored may be older than what was told.
        return min(int(found["event"]), self.last_event())

    def mark_delivered(self, notifier: str, event: int) -> None:
        self._store.replace("deliveries", {"notifier": notifier, "event": event})
