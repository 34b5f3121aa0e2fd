"""Candidates as rows: who waits in which order, who was set aside and what opens it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kinship_daemon.explain import returns
from kinship_daemon.ranking import popularity, ranked
from kinship_storage.records import Candidate, Model, Status

__all__ = ["STATUS", "aside_rows", "waiting_rows"]

# What people call a candidate's state, and its model's status.
STATUS: Mapping[str, Status] = {
    "waiting": "seen",
    "refused": "refused",
    "quarantined": "quarantined",
    "admitted": "admitted",
}

Row = dict[str, Any]


def waiting_rows(
    candidates: Sequence[Candidate], *, novelty: float, popularity_weight: float
) -> list[Row]:
    """
    Triaged ones as they will be fetched, then the others as they will be triaged.

    Args:
        novelty: `admission.novelty`; `popularity_weight`: `admission.popularity`.
    """
    triaged = ranked(
        [each for each in candidates if each.triaged],
        novelty=novelty,
        popularity_weight=popularity_weight,
    )
    noticed = [each for each in candidates if not each.triaged]
    noticed.sort(key=lambda each: (-popularity(each), each.model))
    return [
        {"place": place, "value": each.value, **vars(each.candidate)}
        for place, each in enumerate(triaged, 1)
    ] + [{"place": None, "value": None, **vars(each)} for each in noticed]


def aside_rows(candidates: Sequence[Candidate], aside: Mapping[str, Model]) -> list[Row]:
    """
    Candidates with why they were set aside, whose fault that is, and what opens them again.

    Args:
        aside: Those that were, by id; the three are None for the others.
    """
    rows = []
    for each in candidates:
        model = aside.get(each.model)
        told = (None,) * 3 if model is None else (model.reason, model.cause, returns(model))
        why = dict(zip(("reason", "cause", "opens_again"), told, strict=True))
        rows.append({**vars(each), **why})
    return rows
