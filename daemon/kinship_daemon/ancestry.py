"""What a model's sample tells of its ancestry: as facts for the lineage and JSON, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch, which commands that only read a lineage do without
    from kinship_daemon.weights.sample.ancestry import Composition, Departure

__all__ = [
    "ancestry_mark",
    "ancestry_words",
    "composition_facts",
    "composition_words",
    "departure_facts",
    "departure_words",
]


def departure_facts(far: Departure) -> dict[str, Any]:
    """How far a model is from the base."""
    return {
        "likeness": _plain(far.likeness),
        "distance": _plain(far.distance),
        "matrices": far.matrices,
        "unlike": far.unlike,
        "stranger": far.stranger,
    }


def composition_facts(made: Composition) -> dict[str, Any]:
    """Which known models have a part in a model."""
    return {
        "parts": [asdict(part) for part in made.parts],
        "rest": _plain(made.rest),
        "merge": made.is_merge(),
    }


def ancestry_mark(facts: Mapping[str, Any] | None) -> str:
    """In a word or two where it is no fine-tune of the base; otherwise empty."""
    if facts is None:
        return ""
    if facts["stranger"]:
        return "no descendant"
    return "a merge" if facts["merge"] else ""


def ancestry_words(facts: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """
    All of it.

    Args:
        names: What to call a part's model; itself, where it is not there.
    """
    return f"{departure_words(facts)}; {composition_words(facts, names)}"


def composition_words(facts: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """Whom it is made of: `a merge: 0.500 ± 0.0003 A + 0.499 ± 0.0003 B; rest 0.1 %`."""
    if facts["rest"] is None:
        return "no different from the base"
    if not facts["parts"]:
        return "not made of the others"
    called = {} if names is None else names
    told = [
        f"{abs(part['coefficient']):.3f} ± {part['error']:.1g} "
        f"{called.get(part['model'], part['model'])}"
        for part in facts["parts"]
    ]
    signs = ["-" if part["coefficient"] < 0 else "+" for part in facts["parts"]]
    rest = "".join(f" {sign} {words}" for sign, words in zip(signs[1:], told[1:], strict=True))
    first = f"-{told[0]}" if signs[0] == "-" else told[0]
    kind = "a merge" if facts["merge"] else "related"
    return f"{kind}: {first}{rest}; rest {100 * facts['rest']:.1f} %"


def departure_words(facts: Mapping[str, Any]) -> str:
    """How it stands to the base: `no descendant (cosine with the base 0.002, ...)`."""
    if not facts["matrices"]:
        return "no matrix to compare with the base's"
    figures = f"cosine with the base {facts['likeness']:.3f}"
    if facts["unlike"]:
        figures += f", {facts['unlike']} of {facts['matrices']} matrices unlike its"
    return f"no descendant ({figures})" if facts["stranger"] else figures


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
