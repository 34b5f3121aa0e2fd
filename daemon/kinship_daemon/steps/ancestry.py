"""Whether a candidate descends from the base, and of which known models it was merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinship_daemon.ancestry import (
    ancestry_mark,
    ancestry_words,
    composition_facts,
    composition_words,
    departure_facts,
    departure_words,
)
from kinship_daemon.context import Context
from kinship_daemon.hub.triage import Refusal, by_rule
from kinship_daemon.steps.novelty import vectors
from kinship_daemon.weights.sample.ancestry import Departure, composition

__all__ = ["ancestry", "ancestry_again", "ancestry_objection", "ancestry_remark"]

# Vectors read at a time, and how many of the most alike may have a part: a merge is more like its
# parents than like their kin.
_BATCH, _ALIKE = 256, 64


def ancestry(context: Context, model: str, vector: bytes, far: Departure) -> dict[str, Any] | None:
    """What a candidate's sample tells; None with `triage.ancestry: ignore`."""
    if context.config.triage.ancestry == "ignore":
        return None
    return {**departure_facts(far), **_composition(context, model, vector)}


def ancestry_again(
    context: Context, model: str, vector: bytes | None, before: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """
    The same against those who are known by now: a parent may have come after its child.

    Args:
        vector: None where it was not sampled under the present plan: then nothing new is known.
        before: What triage found; how far it is from the base stays.
    """
    if before is None or context.config.triage.ancestry == "ignore":
        return None
    return {**before, **({} if vector is None else _composition(context, model, vector))}


def ancestry_objection(context: Context, facts: Mapping[str, Any] | None) -> Refusal | None:
    """Why it is refused with `triage.ancestry: refuse`."""
    if facts is None or context.config.triage.ancestry != "refuse":
        return None
    if facts["stranger"]:
        return by_rule(departure_words(facts), "triage.ancestry")
    if facts["merge"] and not context.config.triage.allow_merges:
        return by_rule(composition_words(facts), "triage.allow_merges")
    return None


def ancestry_remark(facts: Mapping[str, Any] | None) -> str | None:
    """What is worth a warning of one that is not refused."""
    return ancestry_words(facts) if facts is not None and ancestry_mark(facts) else None


def _composition(context: Context, model: str, vector: bytes) -> dict[str, Any]:
    """Of whom it is made, of the fine-tunes that are admitted or wait."""
    assert context.sampler is not None  # or it had no vector
    outlines = context.sampler.outlines
    names = context.lineage.sampled_models(context.sampler.plan.identity, "admitted", "seen")
    others = [name for name in names if name != model]
    unknown = outlines.unknown(others)
    for first in range(0, len(unknown), _BATCH):
        outlines.add(vectors(context, unknown[first : first + _BATCH]))
    known = vectors(context, outlines.most_alike(vector, others, _ALIKE))
    return composition_facts(composition(vector, known))
