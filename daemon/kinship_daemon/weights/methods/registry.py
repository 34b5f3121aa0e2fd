"""Finds merge methods by name, ours and third parties'."""

from functools import cache

from kinship_daemon import extensions
from kinship_daemon.weights.methods.method import MergeMethod

__all__ = ["GROUP", "is_span", "method", "methods"]

GROUP = "kinship_daemon.methods"


def methods() -> dict[str, MergeMethod]:
    """Every installed method by name, sorted."""
    return {name: method(name) for name in extensions.names(GROUP)}


@cache
def method(name: str) -> MergeMethod:
    """
    The merge method called `name`.

    Raises:
        UsageError: There is none, or two packages provide one of that name.
    """
    # Asked for by every recipe, and each look goes through the installed packages: hence the cache.
    found: MergeMethod = extensions.find(GROUP, "merge method", name)
    return found


def is_span(name: str) -> bool:
    """Whether its child combines its parents; any other is made before it is a parent."""
    return method(name).kind == "span"
