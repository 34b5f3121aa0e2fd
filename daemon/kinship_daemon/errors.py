"""The daemon's errors. The loop retries Transient, quarantines ModelError, lets bugs crash."""

from kinship_storage.errors import KinshipError, UsageError

__all__ = ["KinshipError", "ModelError", "Transient", "UsageError"]


class ModelError(KinshipError):
    """One model is unusable (bad header, NaN, wrong shapes, harness crash): it is quarantined."""


class Transient(KinshipError):
    """The world is away for a while (hub unreachable, 5xx): worth trying again later."""
