"""Under which licence a merge may be published, from the licences of all its ancestors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kinship_daemon.foreign.shown import shown

__all__ = ["Terms", "declared", "hub_fields", "most_restrictive", "normalise"]


class _Level(IntEnum):
    """How much a licence asks of what is made from the model."""

    PERMISSIVE = 0  # credit at most: the child may carry another licence
    BINDING = 1  # its own terms go on to the child
    NON_COMMERCIAL = 2
    NO_DERIVATIVES = 3
    UNKNOWN = 4


# From the least to the most restrictive. The ids are the Hub's, unless marked with '*'.
_TABLE: tuple[tuple[_Level, str], ...] = (
    (_Level.PERMISSIVE, "cc0-1.0 unlicense wtfpl pddl mit isc zlib ncsa postgresql"),
    (_Level.PERMISSIVE, "bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear afl-3.0 ecl-2.0"),
    (_Level.PERMISSIVE, "apache-2.0 artistic-2.0 cdla-permissive-1.0 cdla-permissive-2.0 odc-by"),
    (_Level.PERMISSIVE, "openmdw-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0"),
    (_Level.BINDING, "mpl-2.0 lgpl lgpl-2.1 lgpl-3.0 cc-by-sa-3.0 cc-by-sa-4.0"),
    (_Level.BINDING, "gpl gpl-2.0 gpl-3.0 agpl-3.0 openrail openrail++ bigscience-openrail-m"),
    (_Level.BINDING, "creativeml-openrail-m bigcode-openrail-m bigscience-bloom-rail-1.0"),
    (_Level.BINDING, "gemma llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 *qwen *deepseek"),
    (_Level.NON_COMMERCIAL, "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0"),
    (_Level.NON_COMMERCIAL, "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0"),
    (_Level.NON_COMMERCIAL, "fair-noncommercial-research-license apple-amlr h-research"),
    (_Level.NON_COMMERCIAL, "intel-research *qwen-research *mrl *mnpl *llama1"),
    (_Level.NO_DERIVATIVES, "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0"),
)
_LEVELS = {name.lstrip("*"): level for level, names in _TABLE for name in names.split()}
_RANK = {name: rank for rank, name in enumerate(_LEVELS)}
_ON_HUB = {name for _, names in _TABLE for name in names.split() if not name.startswith("*")}

_SPELLINGS = {
    "apache": "apache-2.0",
    "apache2": "apache-2.0",
    "apache2.0": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
    "cc-by-nc": "cc-by-nc-4.0",
    "cc-by-nc-4": "cc-by-nc-4.0",
    "gpl3": "gpl-3.0",
    "gpl-3": "gpl-3.0",
    "agpl3": "agpl-3.0",
    "llama-2": "llama2",
    "llama-3": "llama3",
    "llama-3.1": "llama3.1",
    "llama-3.2": "llama3.2",
    "llama-3.3": "llama3.3",
    "llama-4": "llama4",
    "mit-license": "mit",
    "tongyi-qianwen": "qwen",
    "qwen-license": "qwen",
    "tongyi-qianwen-research": "qwen-research",
}
_UNKNOWN = "unknown"
_LONGEST = 100  # characters of a name that a stranger gives
_NOTHING = {"", "none", "null", "other", "unknown", "n/a"}


@dataclass(frozen=True)
class Terms:
    """
    The outcome: what a child may be published under.

    Attributes:
        licence: A name; "unknown" if that is allowed by name. None when blocked.
        blocked: Why it may not be published; None when it may.
    """

    licence: str | None
    blocked: str | None


def declared(card: Mapping[str, Any]) -> str | None:
    """The licence that a card declares, normalised; None if it declares none, or two."""
    value = card.get("license")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value == "other":
        value = card.get("license_name")
    return normalise(shown(value, _LONGEST)) if isinstance(value, str) else None


def normalise(text: str | None) -> str | None:
    """One spelling per licence, lower case; None if it says nothing."""
    name = re.sub(r"[\s_]+", "-", (text or "").strip().lower())
    return None if name in _NOTHING else _SPELLINGS.get(name, name)


def most_restrictive(licences: Mapping[str, str | None], allow: Collection[str] = ()) -> Terms:
    """
    The licence of a child of all these models, or why it may not be published.

    The rule: every ancestor's terms hold. Permissive licences go under any other. One licence
    that binds derived models (copyleft, Llama, Gemma, ...) passes to the child. Unknown,
    non-commercial and no-derivatives licences block, and so do two different binding ones,
    since the child cannot carry both. A licence that the user allows by name does not block;
    the child still gets the most restrictive of all. This is bookkeeping, not legal advice.

    Args:
        licences: Licence by model, of every ancestor with the base; None where unknown.
        allow: Licences that do not block, "unknown" for none.
    """
    allowed = {normalise(name) or _UNKNOWN for name in allow}
    holders: dict[str, str] = {}
    for model, licence in sorted(licences.items()):
        holders.setdefault(normalise(licence) or _UNKNOWN, model)
    ranked = sorted(holders, key=_strictness)
    doubtful = [name for name in ranked if name not in allowed]
    for name in reversed(doubtful):
        if (level := _level(name)) > _Level.BINDING:
            return Terms(None, f"{_WHY[level].format(model=holders[name], name=name)}; {_HOW}")
    binding = [name for name in doubtful if _level(name) == _Level.BINDING]
    if len(binding) > 1:
        both = " and ".join(f"{name} ({holders[name]})" for name in binding[-2:])
        return Terms(None, f"{both} both bind what is made from them; {_HOW}")
    return Terms(ranked[-1] if ranked else _UNKNOWN, None)


_HOW = "publish.allow_licenses can allow it by name"
_WHY = {
    _Level.NON_COMMERCIAL: "{model} is non-commercial ({name})",
    _Level.NO_DERIVATIVES: "{model} allows no derivatives ({name})",
    _Level.UNKNOWN: "the licence of {model} is not known ({name})",
}


def hub_fields(licence: str) -> dict[str, str]:
    """A licence as front matter: the Hub knows some by id and takes the others as `other`."""
    if licence in _ON_HUB or licence == _UNKNOWN:
        return {"license": licence}
    return {"license": "other", "license_name": licence}


def _level(name: str) -> _Level:
    if name in _LEVELS:
        return _LEVELS[name]
    if re.search(r"(^|-)nd(-|$)|no-?deriv", name):
        return _Level.NO_DERIVATIVES
    if re.search(r"(^|-)nc(-|$)|non-?commercial|research", name):
        return _Level.NON_COMMERCIAL
    return _Level.UNKNOWN


def _strictness(name: str) -> tuple[int, int, str]:
    """Sorts from the least to the most restrictive; ties by name."""
    return _level(name), _RANK.get(name, len(_RANK)), name
