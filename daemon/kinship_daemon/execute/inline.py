"""Everything in this process, one job at a time, in `submit` itself: for tests and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kinship_daemon.execute.executor import Job, Tell
from kinship_daemon.execute.site import LocalSite, Workshop, outcome

__all__ = ["Inline"]


class Inline:
    """
    Does each job in the thread that submits it; evaluation as ever in the evaluator's own process.

    Args:
        workshop: What it needs of this machine.
    """

    slots = 0
    has_machines = False

    def __init__(self, workshop: Workshop) -> None:
        self._site = LocalSite(workshop)

    def submit(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        """As `Executor.submit`."""
        with self._site.at(job, folders, tell):
            report = outcome(job, self._site)
        if report is not None:
            tell(report)

    def cancel(self, key: str, attempt: int) -> None:
        """As `Executor.cancel`; the job at work ends when it next tells how far it is."""
        self._site.cancel(key, attempt)

    def describe(self) -> list[str]:
        return ["this process: one job at a time"]

    def close(self) -> None:
        self._site.close()
