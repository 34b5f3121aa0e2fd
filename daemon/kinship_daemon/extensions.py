"""Finds what is plugged in by name, ours and third parties', through entry-point groups."""

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from kinship_daemon.errors import UsageError

__all__ = ["find", "names"]


def names(group: str) -> list[str]:
    """Names of all that is installed in a group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def find(group: str, noun: str, name: str) -> Any:
    """
    The object called `name` in a group.

    Args:
        noun: What it is, for messages: "merge method".

    Raises:
        UsageError: There is none, two packages provide one of that name, or it cannot be imported.
    """
    # A package that is seen twice (installed, and on the path) provides the same object.
    providers: dict[str, EntryPoint] = {
        point.value: point for point in entry_points(group=group) if point.name == name
    }
    if not providers:
        raise UsageError(_unknown(group, noun, name))
    if len(providers) > 1:
        shown = " and ".join(_provider(providers[value]) for value in sorted(providers))
        raise UsageError(f"two {noun}s are called {name!r}: {shown}; uninstall one")
    (point,) = providers.values()
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{noun} {name!r} ({_provider(point)}) cannot be used: {error}") from error


def _unknown(group: str, noun: str, name: str) -> str:
    known = names(group)
    nearest = get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    shown = ", ".join(known) or "none (is kinship-daemon installed?)"
    return f"no {noun} {name!r}; installed: {shown}{hint}"


def _provider(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "an unknown package"
    return f"{point.value} from {package}"
