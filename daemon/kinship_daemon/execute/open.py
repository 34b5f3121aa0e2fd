"""The executor that the config names, found through entry points."""

from __future__ import annotations

from kinship_daemon import extensions
from kinship_daemon.execute.executor import Executor
from kinship_daemon.execute.site import Workshop

__all__ = ["GROUP", "open_executor"]

GROUP = "kinship_daemon.executors"


def open_executor(name: str, workshop: Workshop) -> Executor:
    """
    The executor of that name; it starts nothing that it need not know of.

    Raises:
        UsageError: There is none, or its options are none.
        Transient: Its machines cannot be reached now.
    """
    made: Executor = extensions.find(GROUP, "executor", name)(workshop)
    return made
