"""
One evaluation worker for all tests of a process that ask the same: to start one takes seconds.

A test file asks for it with `pytestmark = pytest.mark.usefixtures("shared_worker")`.
"""

import threading
from pathlib import Path
from typing import Any

from kinship_daemon.evaluate.evaluator import Evaluator, open_evaluator
from kinship_daemon.evaluate.settings import Settings


class Lent:
    """A worker that stays when its borrower is done."""

    def __init__(self, kept: Evaluator) -> None:
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def close(self) -> None:
        """It goes back to the shelf as it is."""


class Shelf:
    """Holds the worker that was asked for last; two would want twice the memory."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "evaluate.log"
        self._asked: Settings | None = None
        self._kept: Evaluator | None = None

    def lend(
        self,
        settings: Settings,
        *,
        log: Path,  # noqa: ARG002 - they share one
        stop: threading.Event | None = None,  # noqa: ARG002 - nobody's stop ends it
    ) -> Lent:
        kept = self._kept
        if kept is None or settings not in (self._asked, kept.settings):
            self.close()
            kept = self._kept = open_evaluator(settings, log=self._log)
            self._asked = settings
        return Lent(kept)

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = self._asked = None
