"""The part of the lineage that makes the work resumable: one row per step, keyed by its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from kinship_storage.errors import LineageError
from kinship_storage.records import Cause, Job, JobStatus
from kinship_storage.rows import cells, moment, record, row, stamp
from kinship_storage.store import Json, Store, dumps
from kinship_storage.transitions import JOBS, JobEvent

__all__ = ["Jobs", "job_key"]


def job_key(kind: str, inputs: Mapping[str, Any]) -> str:
    """Sha256 (hex) of kind and inputs as canonical JSON: the same work has the same key."""
    return hashlib.sha256(dumps([kind, inputs]).encode()).hexdigest()


class Jobs:
    """
    Steps of the work; their life cycle is `transitions.JOBS`.

    Every method that changes a job raises a LineageError if there is no job of that key, or if its
    state does not have the event. A kill leaves a job `running`; `recover` makes it pending again.
    """

    _store: Store
    _now: Callable[[], datetime]

    def submit(self, kind: str, inputs: Mapping[str, Any], model: str | None = None) -> Job:
        """A pending job; one that is there already stays as it is."""
        job = Job(job_key(kind, inputs), kind, inputs, model, "pending")
        with self._store.transaction():
            known = self.job(job.key)
            if known is not None:
                return known
            self._store.insert("jobs", row(job))
            return self.require_job(job.key)

    def start(self, key: str) -> Job:
        """
        Marks the job running, one attempt more, committed before this returns.

        Raises:
            LineageError: Its wait is not over, or this is called within a transaction, which would
                take the commit back on a kill.
        """
        if self._store.in_transaction:
            raise LineageError(f"job {key} cannot start within a transaction; start it before")
        with self._store.transaction():
            job, now = self.require_job(key), stamp(self._now())
            if job.status == "waiting" and job.due is not None and job.due > now:
                raise LineageError(f"job {key} waits until {job.due}; `retry` it to start it now")
            attempts = job.attempts + 1
            return self._move(job, "start", attempts=attempts, started=now, finished=None)

    @contextmanager
    def finish(self, key: str) -> Iterator[None]:
        """
        Everything written inside and the job's `done`, in one transaction; keep slow work outside.

        An exception rolls all of it back and leaves the job running.
        """
        with self._store.transaction():
            job = self.require_job(key)
            JOBS.after(key, job.status, "finish")
            yield
            self._end(job, "finish")

    def wait(self, key: str, reason: str, due: datetime | None) -> Job:
        """The world was in its way: it can start again from `due` on; None for at once."""
        with self._store.transaction():
            after = None if due is None else stamp(due)
            return self._end(self.require_job(key), "wait", "world", reason, due=after)

    def fail(self, key: str, cause: Cause, reason: str) -> Job:
        """
        The job cannot succeed as things are.

        Raises:
            LineageError: The cause is `world`: such a job waits.
        """
        if cause not in JOBS.causes["fail"]:
            raise LineageError(f"job {key} cannot fail because of the {cause}; let it wait")
        with self._store.transaction():
            return self._end(self.require_job(key), "fail", cause, reason)

    def interrupt(self, key: str) -> Job:
        """It was asked to stop, and can start again."""
        with self._store.transaction():
            return self._end(self.require_job(key), "interrupt")

    def lose(self, key: str) -> Job:
        """What it left is gone: it can start again."""
        with self._store.transaction():
            return self._move(self.require_job(key), "lose")

    def retry_jobs(self, model: str, causes: Collection[Cause] | None = None) -> int:
        """Lets every waiting or failed job of the model start again, and says how many."""
        with self._store.transaction():
            stuck = [
                job
                for status in JOBS.set_aside
                for job in self.jobs(status, model=model)
                if causes is None or job.cause in causes
            ]
            for job in stuck:
                self._move(job, "retry")
        return len(stuck)

    def retry(self, key: str) -> Job:
        """What waits or failed can start now."""
        with self._store.transaction():
            return self._move(self.require_job(key), "retry")

    def job(self, key: str) -> Job | None:
        found = self._store.row("jobs", "key = ?", key)
        return None if found is None else record(Job, found)

    def require_job(self, key: str) -> Job:
        """The job; LineageError where there is none of that key."""
        found = self.job(key)
        if found is None:
            raise LineageError(f"no job {key!r} in {self._store.path}; submit it first")
        return found

    def jobs(
        self, status: JobStatus | None = None, kind: str | None = None, model: str | None = None
    ) -> list[Job]:
        """In the order they were submitted."""
        given = {"status": status, "kind": kind, "model": model}
        wanted = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in wanted) or None
        found = self._store.rows("jobs", where, list(wanted.values()), order="number")
        return [record(Job, values) for values in found]

    def count_jobs(self) -> dict[JobStatus, int]:
        """How many there are of each status."""
        found = self._store.query("SELECT status, count(*) AS number FROM jobs GROUP BY status")
        return {values["status"]: values["number"] for values in found}

    def count_jobs_by_kind(self) -> dict[tuple[str, JobStatus], int]:
        """How many there are of each kind and status."""
        found = self._store.query(
            "SELECT kind, status, count(*) AS number FROM jobs GROUP BY kind, status"
        )
        return {(values["kind"], values["status"]): values["number"] for values in found}

    def work_seconds(self) -> dict[str, float]:
        """Time at work by kind, over all attempts that were not killed."""
        found = self._store.query(
            "SELECT kind, sum(seconds) AS seconds FROM jobs GROUP BY kind ORDER BY kind"
        )
        return {values["kind"]: values["seconds"] for values in found}

    def last_finished(self, kind: str) -> datetime | None:
        """When a job of this kind was done last; None before the first."""
        found = self._store.query(
            "SELECT max(finished) AS finished FROM jobs WHERE kind = ? AND status = 'done'", [kind]
        )
        return None if found[0]["finished"] is None else moment(found[0]["finished"])

    def recover(self) -> int:
        """
        Makes pending what a kill left running, and says how many; every wait is over.

        Only for who holds the home's lock, at its start.
        """
        with self._store.transaction():
            self._store.execute("UPDATE jobs SET due = NULL WHERE status = 'waiting'")
            killed = self.jobs("running")
            for job in killed:
                self._move(job, "interrupt")
        return len(killed)

    def _end(
        self,
        job: Job,
        event: JobEvent,
        cause: Cause | None = None,
        reason: str | None = None,
        **changes: Json,
    ) -> Job:
        """An event that ends an attempt, or comes before the first."""
        now = self._now()
        if job.status == "running" and job.started is not None:
            # Starts are cut to seconds, and so is this end: the sum is right over many.
            spent = (moment(stamp(now)) - moment(job.started)).total_seconds()
            changes["seconds"] = job.seconds + max(0.0, spent)
        if event != "interrupt":
            changes["finished"] = stamp(now)
        return self._move(job, event, cause=cause, reason=reason, **changes)

    def _move(self, job: Job, event: JobEvent, **changes: Json) -> Job:
        status = JOBS.after(job.key, job.status, event)
        cleared = {"cause": None, "reason": None, "due": None}
        sets = cells(Job, {**cleared, **changes, "status": status})
        self._store.execute(
            f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in sets)} WHERE key = ?",  # noqa: S608  # names are this file's own
            [*sets.values(), job.key],
        )
        return self.require_job(job.key)
