"""The root of every error that reaches a user; lowest of the packages so that all can raise it."""

__all__ = ["DamagedLineage", "KinshipError", "LineageError", "UsageError"]


class KinshipError(Exception):
    """The job could not be done (exit 3). The message is one line: what, which, what would work."""

    exit_code = 3


class UsageError(KinshipError):
    """The user asked for something that does not exist or cannot be (exit 2)."""

    exit_code = 2


class LineageError(KinshipError):
    """The lineage cannot be opened, written or would contradict itself."""


class DamagedLineage(LineageError):
    """The lineage's file is damaged, or was deleted or replaced while it was open (exit 4)."""

    exit_code = 4
