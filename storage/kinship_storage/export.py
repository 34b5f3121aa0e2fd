"""The lineage as one JSON document, the contract of `kinship-daemon lineage --format json`."""

from __future__ import annotations

from typing import Any

from kinship_storage.records import Candidate, Gate, Generation, Model, Partial
from kinship_storage.store import Store
from kinship_storage.tables import Tables

__all__ = ["export"]

Scores = dict[str, dict[str, Any]]  # task -> {score, stderr, n}


def export(lineage: Tables, store: Store) -> dict[str, Any]:
    """
    Base, models (sorted by generation and id), candidates (sorted by id), decisions (in order) and
    the best model.

    Scores are those under the home's settings, the fact `settings`: {split: fingerprint}. A split
    that it does not name shows its latest score of each task.
    """
    models, best = lineage.models(), lineage.best()
    settings = lineage.get("settings") or {}
    scores, means = (
        _scores(store, settings),
        lineage.mean_scores("selection", settings.get("selection")),
    )
    partials = lineage.partials(settings.get("selection", ""))
    by_id = {model.id: model for model in models}
    published = {p.model: p.repo for p in lineage.publications()}
    verdicts = {gate.model: gate for gate in lineage.judgements()}  # the last of each
    base = next((model.name for model in models if model.kind == "base"), lineage.get("base"))
    return {
        "base": base,
        "models": [
            {
                **_model(model, scores.get(model.weights or "", {}), published.get(model.id)),
                "score": means.get(model.weights or ""),
                "stopped_after": _share(partials.get(model.weights or "")),
                "gate": _gate(verdicts.get(model.id)),
            }
            for model in models
        ],
        "candidates": [
            _candidate(candidate, by_id[candidate.model]) for candidate in lineage.candidates()
        ],
        "generations": [_generation(generation) for generation in lineage.generations()],
        "best": None if best is None else dict(vars(best)),
    }


def _scores(store: Store, settings: dict[str, str]) -> dict[str, dict[str, Scores]]:
    """By weights, split and task; without the samples, which are most of the file."""
    found: dict[str, dict[str, Scores]] = {}
    for row in store.query(
        "SELECT identity AS weights, split, task, settings, score, stderr, n FROM scores"
        " JOIN weights ON weights.number = weights ORDER BY scores.number"
    ):
        if row["settings"] != settings.get(row["split"], row["settings"]):
            continue
        tasks = found.setdefault(row["weights"], {}).setdefault(row["split"], {})
        tasks[row["task"]] = {name: row[name] for name in ("score", "stderr", "n")}
    return found


def _model(model: Model, scores: dict[str, Scores], published: str | None) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.name,
        "kind": model.kind,
        "generation": model.generation,
        "parents": list(model.parents),
        "recipe": model.recipe,
        "selection": dict(sorted(scores.get("selection", {}).items())),
        "validation": dict(sorted(scores.get("validation", {}).items())),
        "published": published,
        "status": model.status,
        "cause": model.cause,
        "setting": model.setting,
        "gated": model.gated,
        "size": model.size,
    }


def _share(partial: Partial | None) -> float | None:
    return None if partial is None else partial.share


def _gate(verdict: Gate | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    names = ("test", "passed", "against", "gain", "low", "high", "n", "p", "alpha")
    return {name: getattr(verdict, name) for name in names}


def _candidate(candidate: Candidate, model: Model) -> dict[str, Any]:
    """What the hub and triage say, and what became of it; what was sampled stays behind."""
    said = dict(vars(candidate))
    return {
        "id": said.pop("model"),
        "repo": model.repo,
        "revision": model.revision,
        "status": model.status,
        "reason": model.reason,
        **said,
    }


def _generation(generation: Generation) -> dict[str, Any]:
    decision = generation.decision
    return {
        "decision": generation.number,
        "generation": generation.generation,
        "proposals": decision.get("merges", []),
        "top": decision.get("top", []),
        "top_mean_kinship": decision.get("top_mean_kinship"),
        "stop": generation.stop,
        "stop_kind": generation.stop_kind,
    }
