"""Whose files must stay on this disk."""

from __future__ import annotations

from kinship_daemon.evaluate.settings import Settings
from kinship_storage.lineage import Lineage

__all__ = ["living"]


def living(lineage: Lineage, settings: Settings) -> set[str]:
    """
    Ids of leaves of living recipes, and of fine-tunes that cannot be had again or have no scores.

    Living are merges that are proposed, in the last decision's top, or on their way to a hub.
    """
    alive = [model.id for model in lineage.models("merge", "proposed")]
    last = lineage.last_generation()
    alive += () if last is None else last.decision.get("top") or ()
    alive += _to_publish(lineage, settings)
    needed = set(alive)
    for name in alive:
        needed |= {each.id for each in lineage.ancestors(lineage.require(name))}
    needed |= {candidate.model for candidate in lineage.candidates("admitted") if candidate.gone}
    scored = lineage.mean_scores("selection", settings.fingerprint("selection"))
    unscored = (m for m in lineage.models("finetune", "admitted") if m.weights not in scored)
    return needed.union(model.id for model in unscored)


def _to_publish(lineage: Lineage, settings: Settings) -> list[str]:
    """Merges that passed the gate and are on their way; one that may not go there is not."""
    passed = [g.model for g in lineage.gates(settings.fingerprint("validation")) if g.passed]
    models = [lineage.require(name) for name in passed if lineage.publication(name) is None]
    return [model.id for model in models if model.not_published is None]
