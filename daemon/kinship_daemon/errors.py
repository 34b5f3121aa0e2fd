"""The daemon's errors. The loop retries Transient, quarantines ModelError, lets bugs crash."""

from __future__ import annotations

import errno

from kinship_storage.errors import KinshipError, UsageError

__all__ = [
    "BudgetReached",
    "KinshipError",
    "ModelError",
    "Stopped",
    "Transient",
    "UsageError",
    "WorkerDied",
    "disk_words",
]

_DISK = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "make it writable, or use another --home",
    errno.EACCES: "make it readable and writable, or use another --home",
    errno.EIO: "look at the disk",
}


class ModelError(KinshipError):
    """One model is unusable (bad header, NaN, wrong shapes, harness crash): it is quarantined."""


class WorkerDied(ModelError):
    """The evaluation worker died over a model, perhaps through no fault of that model."""


class Transient(KinshipError):
    """
    The world is away for a while (hub unreachable, 5xx): worth trying again later.

    Attributes:
        retry_seconds: How long it says it will be away; None if it does not say.
    """

    def __init__(self, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class BudgetReached(KinshipError):
    """A limit of the config is used up, a day's or the disk's; work goes on when there is more."""


class Stopped(Exception):
    """The daemon was asked to stop; raised where everything done is saved."""


def disk_words(error: OSError) -> str | None:
    """One line for what a disk can do to us; None for what only a bug can cause."""
    hint = _DISK.get(error.errno or 0)
    if hint is None:
        return None
    return f"{error.filename or 'the disk'}: {error.strerror}; {hint}, then start again"
