"""The part of the lineage that makes the work resumable: one row per step, keyed by its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from kinship_storage.errors import LineageError
from kinship_storage.records import Job, JobStatus
from kinship_storage.rows import record, stamp
from kinship_storage.store import Store

__all__ = ["Jobs"]


class Jobs:
    """
    Steps of the work: pending -> running -> done | failed | quarantined.

    A kill leaves a step `running`; `recover` makes it pending again at the next start. What a step
    produces and its `done` are one transaction (`finish`), so that it happened or it did not.
    """

    _store: Store
    _now: Callable[[], datetime]

    def enqueue(self, key: str, kind: str, model: str | None = None) -> Job:
        """A pending job; one that is there already stays as it is."""
        with self._store.transaction():
            known = self.job(key)
            if known is not None:
                return known
            values = {"key": key, "kind": kind, "model": model, "status": "pending", "attempts": 0}
            self._store.insert("jobs", values)
            return self.require_job(key)

    def start(self, key: str, kind: str, model: str | None = None) -> Job:
        """
        Marks the job running, one attempt more, committed before this returns.

        A `done` or `quarantined` job is returned untouched: look at the status of what comes back.

        Raises:
            LineageError: Called within a transaction, which would take the commit back on a kill.
        """
        if self._store.in_transaction:
            raise LineageError(f"job {key} cannot start within a transaction; start it before")
        with self._store.transaction():
            job = self.enqueue(key, kind, model)
            if job.status in ("done", "quarantined"):
                return job
            return self._set(
                key,
                status="running",
                attempts=job.attempts + 1,
                reason=None,
                started=stamp(self._now()),
                finished=None,
            )

    @contextmanager
    def finish(self, key: str) -> Iterator[None]:
        """
        Everything written inside and the job's `done`, in one transaction; keep slow work outside.

        An exception rolls all of it back and leaves the job running.

        Raises:
            LineageError: The job is not running.
        """
        with self._store.transaction():
            job = self.require_job(key)
            if job.status != "running":
                raise LineageError(f"job {key} is {job.status}, not running; start it first")
            yield
            self._set(key, status="done", finished=stamp(self._now()))

    def fail(self, key: str, reason: str, quarantined: bool = False) -> Job:
        """
        The job did not succeed: `failed` may be started again, `quarantined` never is.

        A done job may fail afterwards, when what it left is gone or turns out to be bad.

        Raises:
            LineageError: No such job.
        """
        with self._store.transaction():
            self.require_job(key)
            status: JobStatus = "quarantined" if quarantined else "failed"
            return self._set(key, status=status, reason=reason, finished=stamp(self._now()))

    def job(self, key: str) -> Job | None:
        found = self._store.row("jobs", "key = ?", key)
        return None if found is None else record(Job, found)

    def require_job(self, key: str) -> Job:
        """The job; LineageError where there is none of that key."""
        found = self.job(key)
        if found is None:
            raise LineageError(f"no job {key!r} in {self._store.path}; start it first")
        return found

    def jobs(self, status: JobStatus | None = None, kind: str | None = None) -> list[Job]:
        """In the order they were enqueued."""
        given = {"status": status, "kind": kind}
        wanted = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in wanted) or None
        found = self._store.rows("jobs", where, list(wanted.values()), order="number")
        return [record(Job, values) for values in found]

    def count_jobs(self) -> dict[JobStatus, int]:
        """How many there are of each status."""
        found = self._store.query("SELECT status, count(*) AS number FROM jobs GROUP BY status")
        return {values["status"]: values["number"] for values in found}

    def recover(self) -> int:
        """
        Makes pending what a kill left running, and says how many.

        Only for who holds the home's lock, at its start.
        """
        return self._store.execute("UPDATE jobs SET status = 'pending' WHERE status = 'running'")

    def _set(self, key: str, **changes: object) -> Job:
        sets = ", ".join(f"{name} = ?" for name in changes)
        self._store.execute(
            f"UPDATE jobs SET {sets} WHERE key = ?",  # noqa: S608  # names are this file's own
            [*changes.values(), key],
        )
        return self.require_job(key)
