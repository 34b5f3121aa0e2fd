"""
The outbox is emptied: each recipient in a thread of its own, in order, at least once.

A recipient that is away, slow or broken holds nobody up: not the daemon, not the others. How far
each was told stands in the lineage, written after the delivery. Of what may come by the hundred,
such as quarantines of a first look, the first is told at once; what follows is put off, and told as
one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from kinship_daemon.notify.notifier import Target
from kinship_daemon.notify.settings import MANY
from kinship_daemon.reasons import by_reason, lines
from kinship_daemon.report import Reporter, count
from kinship_storage.errors import DamagedLineage, KinshipError
from kinship_storage.lineage import Lineage
from kinship_storage.records import Event
from kinship_storage.rows import stamp

__all__ = ["delivering"]

_LOOK_SECONDS = 1.0  # between two looks for news
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 3600.0  # seconds after a failure; each is twice the last
_GOODBYE_SECONDS = 2.0
_AT_ONCE = 100
_MOST_IN_DIGEST = 1000
_REASONS, _NAMES = 5, 3  # that a digest tells, and models that each names
_STALE = timedelta(days=7)  # who was away for longer is not told of what is no news any more


@contextmanager
def delivering(
    path: Path,
    targets: Sequence[Target],
    report: Reporter,
    now: Callable[[], datetime],
    digest_seconds: float = 600.0,
) -> Iterator[None]:
    """
    Deliver the events of a lineage that this process holds, while the block lasts.

    Args:
        digest_seconds: After an event of `MANY`, those of its kind that follow within this time
            are told as one.

    At the end two seconds are left for what is there; what remains is told at the next start.
    """
    threads = []
    ended = threading.Event()
    for target in targets:
        lineage = Lineage.open(path, now=now, beside=True, whole=True)
        delivery = _Delivery(lineage, target, report, now, ended, digest_seconds)
        threads.append(threading.Thread(target=delivery.run, name="notify", daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        latest = time.monotonic() + _GOODBYE_SECONDS
        for thread in threads:
            thread.join(max(0.0, latest - time.monotonic()))


class _Delivery:
    def __init__(
        self,
        lineage: Lineage,
        target: Target,
        report: Reporter,
        now: Callable[[], datetime],
        ended: threading.Event,
        digest_seconds: float,
    ) -> None:
        self._lineage = lineage
        self._target = target
        self._report = report
        self._now = now
        self._ended = ended
        self._last = lineage.delivered(target.name)
        self._seconds = digest_seconds
        self._next: dict[str, float] = {}  # by kind of `MANY`: until when it is put off
        # By kind: numbers of the first event put off, and of the last that was begun to be told.
        self._put_off: dict[str, tuple[int, int | None]] = {
            kind: (first, until) for kind, (first, until) in (lineage.get(self._key) or {}).items()
        }

    def run(self) -> None:
        with self._lineage:
            wait = _FIRST_WAIT
            while True:
                is_last = self._ended.is_set()
                try:
                    while self._tell():
                        wait = _FIRST_WAIT
                except DamagedLineage:
                    return  # the daemon ends of it, and says so
                except KinshipError as error:
                    self._warn(f"not told yet: {error}; tried again in {wait:.0f} s")
                    self._ended.wait(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
                else:
                    self._ended.wait(_LOOK_SECONDS)
                if is_last:
                    return

    def _tell(self) -> bool:
        """Some of what is new, or was put off; False where nothing is."""
        told = any(self._tell_as_one(kind) for kind in sorted(self._put_off))
        events = self._lineage.events(self._last, _AT_ONCE)
        if not events:
            return told
        for event in self._fresh(events):
            if event.kind in MANY and self._is_many(event.kind):
                self._keep(event.kind, self._put_off.get(event.kind, (event.number, None)))
                continue
            self._target.tell(event)
            self._note(event)
            self._next[event.kind] = time.monotonic() + self._seconds
        self._note(events[-1])
        return True

    def _is_many(self, kind: str) -> bool:
        """Whether one of the kind was told a while ago, or others wait to be told as one."""
        return kind in self._put_off or time.monotonic() < self._next.get(kind, -math.inf)

    def _tell_as_one(self, kind: str) -> bool:
        """All of the kind that were put off, once it is time; False where it is not."""
        if time.monotonic() < self._next.get(kind, -math.inf) and not self._ended.is_set():
            return False
        first, until = self._put_off[kind]
        there = self._lineage.events(first - 1)
        own = [each for each in there if each.kind == kind and each.number <= self._last]
        # After a failure or a kill the very same again: its id says so.
        now = [each for each in own if until is None or each.number <= until][:_MOST_IN_DIGEST]
        if now:
            self._keep(kind, (first, now[-1].number))
            self._target.tell(now[0] if len(now) == 1 else _as_one(now))
            self._next[kind] = time.monotonic() + self._seconds
        later = own[len(now) :]
        self._keep(kind, (later[0].number, None) if later else None)
        return True

    @property
    def _key(self) -> str:
        return f"put off for {self._target.name}"

    def _keep(self, kind: str, numbers: tuple[int, int | None] | None) -> None:
        """Write down who is put off, before the rest goes on."""
        if numbers == self._put_off.get(kind):
            return
        if numbers is None:
            del self._put_off[kind]
        else:
            self._put_off[kind] = numbers
        self._lineage.put(self._key, self._put_off)

    def _fresh(self, events: Sequence[Event]) -> list[Event]:
        """Those for this recipient; what made room for others, or is no news any more, is said."""
        lost = events[0].number - self._last - 1
        stale = stamp(self._now() - _STALE)
        own = [event for event in events if event.kind in self._target.kinds]
        fresh = [event for event in own if event.created >= stale]
        lost += len(own) - len(fresh)
        if lost:
            self._warn(f"{count(lost, 'event')} too old to be told")
        return fresh

    def _note(self, event: Event) -> None:
        if event.number > self._last:
            self._lineage.mark_delivered(self._target.name, event.number)
            self._last = event.number

    def _warn(self, words: str) -> None:
        self._report.event("warning", f"notifier {self._target.name}: {words}")


def _as_one(events: Sequence[Event]) -> Event:
    """Many events of one kind, by reason; the same many always have the same id."""
    last = events[-1]
    reasons = by_reason(
        (event.model or "", event.message.removeprefix(f"{event.model}: ")) for event in events
    )
    told = [line.strip() for line in lines(reasons, names=_NAMES, most=_REASONS)]
    each = [{"id": event.id, "model": event.model} for event in events]
    facts = {"count": len(events), "events": each}
    return Event(
        last.number, last.kind, f"{len(events):,}: {'; '.join(told)}", None, facts, last.created
    )
