"""The family: everyone in the population and every merge, with scores, verdicts and failures."""

from __future__ import annotations

from typing import Any

from kinship_daemon.web.view import View
from kinship_storage.records import Model

__all__ = ["facts"]

_MOST = 1500  # models that are drawn


def facts(view: View) -> dict[str, Any]:
    models, left_out = _drawn(view)
    return {
        "base": view.base,
        "best": view.best,
        "left_out": left_out,
        "models": [_model(view, model) for model in models],
    }


def _drawn(view: View) -> tuple[list[Model], int]:
    """Everyone but the refused without children; of too many, the best, and what they rest on."""
    everyone = {
        m.id: m
        for m in view.lineage.models(status=("admitted", "proposed", "quarantined"))
        if m.kind != "base"
    }
    for parent in {name for m in everyone.values() for name in m.parents} - everyone.keys():
        if (model := view.lineage.model(parent)) is not None:
            everyone[parent] = model
    wanted: dict[str, Model] = {}
    order = sorted(everyone.values(), key=lambda m: (-(view.score(m) or -1.0), m.generation, m.id))
    for model in order:
        line = [model]
        while line and len(wanted) < _MOST:
            each = line.pop()
            if each.id not in wanted:
                wanted[each.id] = each
                line += [everyone[name] for name in each.parents if name in everyone]
    shown = sorted(wanted.values(), key=lambda m: (m.generation, m.id))
    return shown, len(everyone) - len(shown)


def _model(view: View, model: Model) -> dict[str, Any]:
    gate = view.gates.get(model.id)
    return {
        "id": model.id,
        "kind": model.kind,
        "generation": model.generation,
        "parents": list(model.parents),
        "role": model.role,
        "status": model.status,
        "reason": model.reason,
        "score": view.score(model),
        "stopped": view.stopped(model),
        "gate": None if gate is None else ("passed" if gate.passed else "refused"),
        "published": view.repos.get(model.id),
    }
