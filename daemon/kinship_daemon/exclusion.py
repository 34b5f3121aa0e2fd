"""Repos that nobody wants: patterns of the configuration, and those that `exclude` was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from kinship_daemon.hub.triage import Refusal
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["COMMAND", "SETTING", "excluded", "kept_patterns", "newly_excluded", "set_patterns"]

SETTING = "triage.exclude"
COMMAND = "exclude"  # stands in a setting's place where the command excluded it
_KEY = "exclude"
_WORDS = {SETTING: SETTING, COMMAND: "`kinship-daemon exclude`"}
_LONGEST = 200  # characters of a repo's id that are looked at: no hub allows more


def kept_patterns(lineage: Lineage) -> tuple[str, ...]:
    """What the command was given, sorted."""
    return tuple(lineage.get(_KEY) or ())


def set_patterns(lineage: Lineage, patterns: Sequence[str]) -> None:
    lineage.put(_KEY, sorted(set(patterns)))


def excluded(repo: str, configured: Sequence[str], kept: Sequence[str]) -> Refusal | None:
    """Why a repo is left alone; None if no pattern matches its id, whatever the case."""
    for setting, patterns in ((SETTING, configured), (COMMAND, kept)):
        for pattern in patterns:
            if fnmatchcase(repo[:_LONGEST].lower(), pattern.lower()):
                return Refusal(f"excluded by {_WORDS[setting]} {pattern!r}", "settings", setting)
    return None


def newly_excluded(lineage: Lineage, configured: Sequence[str]) -> Iterator[tuple[Model, Refusal]]:
    """Fine-tunes that wait or are in the population although a pattern matches by now."""
    kept = kept_patterns(lineage)
    if not configured and not kept:
        return
    for model in lineage.models("finetune", ("seen", "admitted")):
        if model.repo is not None and (found := excluded(model.repo, configured, kept)):
            yield model, found
