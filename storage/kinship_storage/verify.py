"""Looks for contradictions within the lineage; reads all of it and changes nothing."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kinship_storage.records import Model, Score
from kinship_storage.store import Store
from kinship_storage.tables import Tables
from kinship_storage.transitions import MODELS

__all__ = ["Identity", "verify"]

Identity = Callable[[Mapping[str, Any], Sequence[str]], str]

# Relative and absolute: a mean of thousands of float64 in another order moves by far less.
_TOLERANCE = 1e-9


def verify(lineage: Tables, store: Store, identity: Identity | None) -> list[str]:
    """
    A line per problem, in the order: home, models, candidates, samples, scores, kinships,
    decisions, publications, jobs.
    """
    models = {model.id: model for model in lineage.models()}
    return [
        *_home(store),
        *_models(models, identity),
        *_candidates(lineage, models),
        *_samples(store),
        *_scores(lineage, store),
        *_kinships(store),
        *_decisions(lineage, models),
        *_publications(lineage),
        *_jobs(lineage, models),
    ]


def _home(store: Store) -> Iterator[str]:
    """What a model knows stands with the model."""
    for row in store.rows("home", order="key", select="key"):
        if row["key"].partition(":")[0] in {"folder", "size", "gated", "screen", "not_published"}:
            yield f"home: {row['key']} belongs to its model"


def _models(models: Mapping[str, Model], identity: Identity | None) -> Iterator[str]:
    for model in models.values():
        for parent in model.parents:
            if models[parent].generation >= model.generation:
                yield f"model {model.id}: its parent {parent} is not from an earlier generation"
        if (model.status in MODELS.set_aside) != (model.cause is not None):
            yield f"model {model.id}: {model.status} with cause {model.cause or 'unknown'}"
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
    parents = [models[parent].weights for parent in model.parents]
    if identity is None or None in parents or not model.weights.startswith("recipe:"):
        return
    again = identity(model.recipe, [weights for weights in parents if weights is not None])
    if again != model.weights:
        yield f"model {model.id}: its recipe gives {again}, the lineage says {model.weights}"


def _candidates(lineage: Tables, models: Mapping[str, Model]) -> Iterator[str]:
    for candidate in lineage.candidates():
        model = models[candidate.model]
        if model.kind != "finetune" or model.repo is None:
            yield f"candidate {model.id}: is a {model.kind} and came from no hub"


def _samples(store: Store) -> Iterator[str]:
    """A plan reads the same of everyone, so that one product compares them all."""
    for row in store.query(
        "SELECT plan, count(DISTINCT length(vector)) AS lengths FROM samples"
        " GROUP BY plan HAVING lengths > 1 ORDER BY plan"
    ):
        yield f"plan {row['plan']}: its vectors have {row['lengths']} lengths"


def _scores(lineage: Tables, store: Store) -> Iterator[str]:
    for row in store.query(
        "SELECT DISTINCT identity FROM scores JOIN weights ON weights.number = weights"
        " ORDER BY identity"
    ):
        for score in lineage.scores(row["identity"]):
            yield from _score(score)


def _score(score: Score) -> Iterator[str]:
    what = f"{score.split} score of {score.weights} on {score.task}"
    if score.n != len(score.samples):
        yield f"{what}: says {score.n} samples, holds {len(score.samples)}"
    if not score.samples:
        return
    mean = math.fsum(value for _, value in score.samples) / len(score.samples)
    if not math.isclose(mean, score.score, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
        yield f"{what}: says {score.score}, its samples give {mean}"


def _kinships(store: Store) -> Iterator[str]:
    for row in store.query(
        "SELECT DISTINCT identity FROM kinships JOIN weights ON weights.number IN (a, b)"
        " WHERE NOT EXISTS (SELECT 1 FROM models WHERE models.weights = weights.number)"
        " ORDER BY identity"
    ):
        yield f"kinships: no model has the weights {row['identity']}"


def _decisions(lineage: Tables, models: Mapping[str, Model]) -> Iterator[str]:
    for generation in lineage.generations():
        what = f"decision {generation.number}"
        try:
            if lineage.facts(generation.number) is None:
                yield f"{what}: the facts that it was taken on are gone"
        except (zlib.error, ValueError):
            yield f"{what}: the facts that it was taken on cannot be read"
        merges = generation.decision.get("merges", [])
        named = {parent for merge in merges for parent in merge["parents"]}
        for name in sorted((named | set(generation.decision.get("top", []))) - models.keys()):
            yield f"{what}: names {name}, which is not in the lineage"
        if generation.stop is not None and merges:
            yield f"{what}: is a stop and yet proposes merges"
        if (generation.stop is None) == (generation.generation is None):
            yield f"{what}: a stop proposes no generation, and every other decision does"


def _publications(lineage: Tables) -> Iterator[str]:
    for publication in lineage.publications():
        if not any(gate.passed for gate in lineage.gates_of(publication.model)):
            yield f"model {publication.model}: published without having passed the gate"


def _jobs(lineage: Tables, models: Mapping[str, Model]) -> Iterator[str]:
    """Of the jobs whose result this storage knows: scoring, `gate` and `publish`."""

    def scored(model: Model) -> object:
        return model.weights and lineage.scores(model.weights, samples=False)

    results: Mapping[str, Callable[[Model], object]] = {
        **dict.fromkeys(("score", "merge", "validate"), scored),
        "gate": lambda model: lineage.gates_of(model.id),
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
