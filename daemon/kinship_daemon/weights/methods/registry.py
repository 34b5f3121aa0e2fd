"""Finds merge methods by name, ours and third parties', through one entry-point group."""

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods.method import MergeMethod

__all__ = ["GROUP", "is_elementwise", "method", "methods"]

GROUP = "kinship_daemon.methods"


def methods() -> dict[str, MergeMethod]:
    """Every installed method by name, sorted."""
    return {name: method(name) for name in _names()}


@cache
def method(name: str) -> MergeMethod:
    """
    The merge method called `name`.

    Raises:
        UsageError: There is none, or two packages provide one of that name.
    """
    # Asked for by every recipe, and each look goes through the installed packages: hence the cache.
    # A package that is seen twice (installed, and on the path) provides the same object.
    providers: dict[str, EntryPoint] = {
        point.value: point for point in entry_points(group=GROUP) if point.name == name
    }
    if not providers:
        raise UsageError(_unknown(name))
    if len(providers) > 1:
        shown = " and ".join(_provider(providers[value]) for value in sorted(providers))
        raise UsageError(f"two merge methods are called {name!r}: {shown}; uninstall one")
    (point,) = providers.values()
    found: MergeMethod = point.load()
    return found


def is_elementwise(name: str) -> bool:
    """Whether the child of this method has to be made before it can be a parent."""
    return method(name).kind == "elementwise"


def _names() -> list[str]:
    return sorted({point.name for point in entry_points(group=GROUP)})


def _unknown(name: str) -> str:
    names = _names()
    nearest = get_close_matches(name, names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    shown = ", ".join(names) or "none (is kinship-daemon installed?)"
    return f"no merge method {name!r}; installed: {shown}{hint}"


def _provider(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "an unknown package"
    return f"{point.value} from {package}"
