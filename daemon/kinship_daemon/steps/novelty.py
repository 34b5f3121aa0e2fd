"""How far a candidate is from everyone admitted, by samples."""

from __future__ import annotations

import math
from collections.abc import Collection

from kinship_daemon.context import Context
from kinship_daemon.weights.sample.sketch import compare

__all__ = ["novelties_beside", "novelty", "vectors"]


def novelty(context: Context, vector: bytes) -> tuple[float, float] | tuple[None, None]:
    """
    One minus a vector's highest kinship to the admitted fine-tunes, and its standard error.

    None where there is no kinship, as of a model that does not differ from the base.
    """
    admitted = [model.id for model in context.lineage.models("finetune", "admitted")]
    known = vectors(context, admitted)
    if not known:
        return 1.0, 0.0
    near = compare(vector, list(known.values()), context.config.kinship.metric)
    value, place = near.value.nan_to_num(-math.inf).max(0)
    if value == -math.inf:
        return None, None
    return 1.0 - float(value), float(near.error[place].nan_to_num(0.0))


def novelties_beside(context: Context, vector: bytes) -> dict[str, tuple[float, float]]:
    """
    New novelties, with their errors, of those who wait and are kin to one that is admitted now.

    Only of those who become less novel by it.
    """
    waiting = {c.model: c for c in context.lineage.candidates("seen", triaged=True)}
    known = vectors(context, waiting)
    if not known:
        return {}
    near = compare(vector, list(known.values()), context.config.kinship.metric)
    errors = near.error.nan_to_num(0.0).tolist()
    found = {}
    for name, value, error in zip(known, near.value.tolist(), errors, strict=True):
        before = waiting[name].novelty
        if not math.isnan(value) and (before is None or 1.0 - value < before):
            found[name] = (1.0 - value, error)
    return found


def vectors(context: Context, names: Collection[str]) -> dict[str, bytes]:
    """Compact vectors under the present plan of those that have one, in the order of names."""
    if context.sampler is None:
        return {}
    found = context.lineage.sampled(context.sampler.plan.identity, names)
    return {name: found[name] for name in sorted(found)}
