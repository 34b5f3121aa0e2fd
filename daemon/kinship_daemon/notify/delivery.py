"""
The outbox is emptied: each recipient in a thread of its own, in order, at least once.

A recipient that is away, slow or broken holds nobody up: not the daemon, not the others. How far
each was told stands in the lineage, written after the delivery.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from kinship_daemon.notify.notifier import Target
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
_STALE = timedelta(days=7)  # who was away for longer is not told of what is no news any more


@contextmanager
def delivering(
    path: Path, targets: Sequence[Target], report: Reporter, now: Callable[[], datetime]
) -> Iterator[None]:
    """
    Deliver the events of a lineage that this process holds, while the block lasts.

    At the end two seconds are left for what is there; what remains is told at the next start.
    """
    threads = []
    ended = threading.Event()
    for target in targets:
        lineage = Lineage.open(path, now=now, beside=True, whole=True)
        delivery = _Delivery(lineage, target, report, now, ended)
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
    ) -> None:
        self._lineage = lineage
        self._target = target
        self._report = report
        self._now = now
        self._ended = ended
        self._last = lineage.delivered(target.name)

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
        """Some of what is new; False where nothing is."""
        events = self._lineage.events(self._last, _AT_ONCE)
        if not events:
            return False
        lost = events[0].number - self._last - 1  # they made room for others
        stale = stamp(self._now() - _STALE)
        for event in events:
            if event.kind not in self._target.kinds:
                continue
            if event.created < stale:
                lost += 1
                continue
            self._target.tell(event)
            self._note(event)
        self._note(events[-1])
        if lost:
            self._warn(f"{count(lost, 'event')} too old to be told")
        return True

    def _note(self, event: Event) -> None:
        if event.number > self._last:
            self._lineage.mark_delivered(self._target.name, event.number)
            self._last = event.number

    def _warn(self, words: str) -> None:
        self._report.event("warning", f"notifier {self._target.name}: {words}")
