"""
Finds policies by name and makes them from settings.

Policies are classes registered in the entry-point group `kinship_daemon.policies`, ours like
everybody else's, or named by path: `mypkg.mod:Cls`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kinship_policies.policy import Policy
from kinship_policies.presets import list_presets, load_preset
from kinship_policies.refusals import complaint, nearest
from kinship_storage.errors import UsageError

__all__ = [
    "GROUP",
    "Choice",
    "Installed",
    "choice",
    "find",
    "installed",
    "list_presets",
    "load_preset",
    "make",
]

GROUP = "kinship_daemon.policies"


@dataclass(frozen=True)
class Installed:
    """A registered policy: its name, the class's path, and who provides it (`package 1.0`)."""

    name: str
    path: str
    provider: str


def installed() -> tuple[Installed, ...]:
    """Every registered policy, sorted by name, then path; a name provided twice is there twice."""
    found = [Installed(e.name, e.value, _provider(e)) for e in entry_points(group=GROUP)]
    return tuple(sorted(found, key=lambda policy: (policy.name, policy.path, policy.provider)))


@dataclass(frozen=True)
class Choice:
    """
    A policy that somebody asked for, and its settings.

    Attributes:
        label: What to call it: the preset, the file without its ending, or the policy.
        name: As `find` takes it.
    """

    label: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def choice(argument: str) -> Choice:
    """
    What a command line's `--policy` names.

    Args:
        argument: A preset, a preset's file (.yaml or .yml), an installed policy, or a class's path
            `mypkg.mod:Cls`.

    Raises:
        UsageError: It names none of them.
    """
    file = argument.endswith((".yaml", ".yml"))
    if not file and argument not in list_presets():
        find(argument)
        return Choice(argument, argument)
    preset = dict(load_preset(argument))
    return Choice(Path(argument).stem if file else argument, preset.pop("use"), preset)


def find(name: str) -> type[Any]:
    """
    The policy's class.

    Args:
        name: A registered name, or a path `mypkg.mod:Cls`.

    Raises:
        UsageError: Unknown, provided twice, or it cannot be imported.
    """
    if ":" in name:
        return _load(EntryPoint(name=name, value=name, group=GROUP))
    policies = installed()
    named = [policy for policy in policies if policy.name == name]
    if not named:
        names = sorted({policy.name for policy in policies})
        raise UsageError(
            f"no policy {name!r}; installed: {', '.join(names) or 'none'}{nearest(name, names)}"
        )
    if len(named) > 1:
        providers = " and by ".join(f"{policy.provider} ({policy.path})" for policy in named)
        raise UsageError(
            f"policy {name!r} is provided by {providers}; "
            "uninstall one of them, or name the class by its path"
        )
    return _load(EntryPoint(name=name, value=named[0].path, group=GROUP))


def make(name: str, settings: Mapping[str, Any] | None = None) -> Policy:
    """
    The policy with these settings, the others at their defaults.

    Raises:
        UsageError: As `find`; an unknown setting (naming the nearest), a value that is out of range
            (naming the range), or a class that is no policy.
    """
    cls, given = find(name), dict(settings or {})
    mistakes = _unknown(name, given, _known(cls))
    try:
        policy = cls(**{key: value for key, value in given.items() if key not in mistakes})
    except ValidationError as error:
        told = [*mistakes.values(), f"policy {name}: {complaint(cls, error)}"]
        raise UsageError("; ".join(told)) from error
    except Exception as error:  # a stranger's code may raise anything
        told = [*mistakes.values(), f"policy {name}: {_line(error)}"]
        raise UsageError("; ".join(told)) from error
    if mistakes:
        raise UsageError("; ".join(mistakes.values()))
    if not isinstance(policy, Policy):
        raise UsageError(f"policy {name}: {cls.__name__} has no method propose(population)")
    return policy


def _known(cls: type[Any]) -> list[str] | None:
    """The names of a policy's settings; None if it takes any."""
    if issubclass(cls, BaseModel):
        return sorted(field.alias or name for name, field in cls.model_fields.items())
    parameters = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return sorted(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def _unknown(name: str, given: Mapping[str, Any], known: list[str] | None) -> dict[str, str]:
    """What to say of each setting that the policy does not have."""
    return {
        key: f"policy {name} has no setting {key!r}; "
        f"known: {', '.join(known) or 'none'}{nearest(str(key), known)}"
        for key in sorted(given, key=str)
        if known is not None and key not in known
    }


def _load(entry: EntryPoint) -> type[Any]:
    try:
        loaded = entry.load()
    except Exception as error:  # as a module's mistakes are: a SyntaxError, a NameError
        raise UsageError(
            f"policy {entry.name!r} cannot be imported from {entry.value!r} ({_line(error)}); "
            "is it installed, or on PYTHONPATH?"
        ) from error
    if not isinstance(loaded, type):
        raise UsageError(f"policy {entry.name!r}: {entry.value!r} is not a class")
    return loaded


def _line(error: Exception) -> str:
    """What was raised, in one line; its kind too where the words alone do not say."""
    words = " ".join(str(error).split())
    plain = isinstance(error, ImportError | AttributeError | TypeError | ValueError)
    return words if plain else f"{type(error).__name__}: {words}"


def _provider(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
