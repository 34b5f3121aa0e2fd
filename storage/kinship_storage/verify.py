"""Looks for contradictions within the lineage; reads all of it and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kinship_storage.records import Model, ScoreRow
from kinship_storage.store import Store

if TYPE_CHECKING:
    from kinship_storage.lineage import Lineage

__all__ = ["Identity", "verify"]

Identity = Callable[[Mapping[str, Any], Sequence[str]], str]

# Relative and absolute: a mean of thousands of float64 in another order moves by far less.
_TOLERANCE = 1e-9


def verify(lineage: Lineage, store: Store, identity: Identity | None) -> list[str]:
    """
    A line per problem, in the order: file, models, candidates, samples, scores, decisions,
    publications, jobs.
    """
    models = {model.id: model for model in lineage.models()}
    return [
        *_file(store),
        *_models(models, identity),
        *_candidates(lineage, models),
        *_samples(store),
        *_scores(lineage, store),
        *_decisions(lineage, models),
        *_publications(lineage),
        *_jobs(lineage, models),
    ]


def _file(store: Store) -> Iterator[str]:
    for row in store.query("PRAGMA integrity_check"):
        if row["integrity_check"] != "ok":
            yield f"{store.path} is damaged: {row['integrity_check']}"
    for row in store.query("PRAGMA foreign_key_check"):
        yield f"{row['table']}: row {row['rowid']} refers to a row of {row['parent']} that is gone"


def _models(models: Mapping[str, Model], identity: Identity | None) -> Iterator[str]:
    for model in models.values():
        missing = [parent for parent in model.parents if parent not in models]
        for parent in missing:
            yield f"model {model.id}: its parent {parent} is not in the lineage"
        for parent in model.parents:
            if parent not in missing and models[parent].generation >= model.generation:
                yield f"model {model.id}: its parent {parent} is not from an earlier generation"
        if model.kind == "merge":
            yield from _merge(model, models, identity)
        elif model.status == "admitted" and model.weights is None:
            yield f"model {model.id}: admitted without its weights' identity"


def _merge(model: Model, models: Mapping[str, Model], identity: Identity | None) -> Iterator[str]:
    if model.recipe is None or not model.parents:
        yield f"model {model.id}: a merge without its recipe or its parents"
        return
    if model.weights is None:
        if model.status == "admitted":
            yield f"model {model.id}: a merge without its recipe's identity"
        return
    parents = [models[p].weights if p in models else None for p in model.parents]
    if identity is None or None in parents or not model.weights.startswith("recipe:"):
        return
    again = identity(model.recipe, [weights for weights in parents if weights is not None])
    if again != model.weights:
        yield f"model {model.id}: its recipe gives {again}, the lineage says {model.weights}"


def _candidates(lineage: Lineage, models: Mapping[str, Model]) -> Iterator[str]:
    for candidate in lineage.candidates():
        model = models[candidate.model]
        if model.kind not in ("finetune", "adapter") or model.repo is None:
            yield f"candidate {model.id}: is a {model.kind} and came from no hub"


def _samples(store: Store) -> Iterator[str]:
    """A plan reads the same of everyone, so that one product compares them all."""
    for row in store.query(
        "SELECT plan, count(DISTINCT length(vector)) AS lengths FROM samples"
        " GROUP BY plan HAVING lengths > 1 ORDER BY plan"
    ):
        yield f"plan {row['plan']}: its vectors have {row['lengths']} lengths"


def _scores(lineage: Lineage, store: Store) -> Iterator[str]:
    for row in store.query("SELECT DISTINCT weights FROM scores ORDER BY weights"):
        for score in lineage.scores(row["weights"]):
            yield from _score(score)


def _score(score: ScoreRow) -> Iterator[str]:
    what = f"{score.split} score of {score.weights} on {score.task}"
    if score.n != len(score.samples):
        yield f"{what}: says {score.n} samples, holds {len(score.samples)}"
    if not score.samples:
        return
    mean = math.fsum(value for _, value in score.samples) / len(score.samples)
    if not math.isclose(mean, score.score, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
        yield f"{what}: says {score.score}, its samples give {mean}"


def _decisions(lineage: Lineage, models: Mapping[str, Model]) -> Iterator[str]:
    for generation in lineage.generations():
        merges = generation.decision.get("merges", [])
        named = {parent for merge in merges for parent in merge["parents"]}
        for name in sorted((named | set(generation.decision.get("top", []))) - models.keys()):
            yield f"generation {generation.number}: names {name}, which is not in the lineage"
        if generation.stop is not None and merges:
            yield f"generation {generation.number}: is a stop and yet proposes merges"


def _publications(lineage: Lineage) -> Iterator[str]:
    for publication in lineage.publications():
        gate = lineage.gate(publication.model)
        if gate is None or not gate.passed:
            yield f"model {publication.model}: published without having passed the gate"


def _jobs(lineage: Lineage, models: Mapping[str, Model]) -> Iterator[str]:
    """Of the jobs whose result this storage knows: scoring, `gate` and `publish`."""

    def scored(model: Model) -> object:
        return model.weights and lineage.scores(model.weights)

    results: Mapping[str, Callable[[Model], object]] = {
        **dict.fromkeys(("score", "merge", "validate"), scored),
        "gate": lambda model: lineage.gate(model.id),
        "publish": lambda model: lineage.publication(model.id),
    }
    for job in lineage.jobs("done"):
        if job.model is None:
            continue
        model = models.get(job.model)
        if model is None:
            yield f"job {job.key}: done, but its model {job.model} is not in the lineage"
        elif job.kind in results and not results[job.kind](model):
            yield f"job {job.key}: done, but what it was to leave is not in the lineage"
