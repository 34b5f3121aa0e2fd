"""What a policy is told: the population, its kinships, and what it decided before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from pydantic import BaseModel

from kinship_daemon.daemon import Daemon
from kinship_daemon.evaluate.records import Score
from kinship_daemon.policy_process import FAILED
from kinship_daemon.steps.assemblies import coefficients
from kinship_daemon.steps.scoring import mean_score, scores
from kinship_daemon.weights.kinship import by_layer, lengths
from kinship_daemon.weights.recipe import Coefficients
from kinship_policies.policy import Decision, Fact, Matrix, Member, Past, Population
from kinship_storage.records import Generation, Model

__all__ = ["policy_identity", "population", "standing"]


def population(d: Daemon) -> Population:
    """The facts for the policy: everyone admitted and scored, and their kinships."""
    uses: frozenset[Fact] = getattr(d.policy, "uses", frozenset())
    everyone = {
        model.id: (model, rows)
        for model in d.population_models("admitted")
        if (rows := scores(d, model, "selection"))
    }
    names = sorted(everyone)
    made_of = [coefficients(d, everyone[name][0]) for name in names]
    metric = d.config.kinship.metric
    sizes = lengths(d.ledger, made_of, metric).tolist()
    members = tuple(
        _member(*everyone[name], length, "samples" in uses)
        for name, length in zip(names, sizes, strict=True)
    )
    last = d.lineage.last_generation()
    before = _known_before(d)
    past = _history(d)
    # What another policy, or this one otherwise set, thought of the top is nothing to go by.
    same = last is not None and bool(past) and past[-1].generation == last.number
    decision = Decision.from_json(last.decision) if last is not None and same else None
    return Population(
        generation=1 if last is None else last.number + 1,
        members=members,
        kinship=_kinship_matrix(d, names),
        merged=frozenset(
            (min(pair), max(pair))
            for model in d.lineage.models(kind="merge")
            for pair in combinations(model.parents, 2)
        ),
        newcomers=tuple(
            m.name for m in members if before and not m.parents and m.name not in before
        ),
        previous_top=None if decision is None else decision.top,
        saturated=0 if decision is None else decision.saturated,
        seed=d.config.seed,
        history=past,
        budget=_budget(d),
        layers=_layers(d, made_of) if "layers" in uses else (),
    )


def standing(d: Daemon) -> tuple[int | None, dict[str, dict[str, float]]]:
    """What a stop depends on: the budget left, and everyone's scores by task."""
    everyone = {
        model.id: scores(d, model, "selection") for model in d.population_models("admitted")
    }
    scored = {
        name: {row.task: row.score for row in rows} for name, rows in everyone.items() if rows
    }
    return _budget(d), scored


def _known_before(d: Daemon) -> frozenset[str]:
    """
    Who was there when a policy decided last.

    One that failed, or had no budget, took up nobody: who was new to it is new still.
    """
    for generation in reversed(d.lineage.generations()):
        if not (generation.stop or "").startswith(FAILED) and generation.facts.get("budget") != 0:
            return frozenset(member["name"] for member in generation.facts["members"])
    return frozenset()


def policy_identity(d: Daemon) -> tuple[str, dict[str, Any]]:
    """The policy's name and all its settings, defaults too where it tells them."""
    if isinstance(d.policy, BaseModel):
        return d.config.policy.use, d.policy.model_dump(mode="json")
    return d.config.policy.use, d.config.policy.settings


def _member(model: Model, rows: Sequence[Score], length: float, samples: bool) -> Member:
    recipe: Mapping[str, Any] = model.recipe or {}
    return Member(
        name=model.id,
        score=mean_score(rows),
        tasks={row.task: row.score for row in rows},
        generation=model.generation,
        parents=model.parents,
        method=recipe.get("method"),
        parameters=recipe.get("parameters", {}),
        length=_known(length),
        samples={row.task: tuple(value for _, value in row.samples) for row in rows}
        if samples
        else {},
    )


def _history(d: Daemon) -> tuple[Past, ...]:
    """What this policy, set as it is now, decided before."""
    children: dict[int, list[str]] = {}
    for model in d.lineage.models(kind="merge"):
        children.setdefault(model.generation, []).append(model.id)
    identity = policy_identity(d)
    return tuple(
        _past(generation, children.get(generation.number, []))
        for generation in d.lineage.generations()
        if (generation.policy, generation.settings) == identity
        and not (generation.stop or "").startswith(FAILED)
    )


def _past(generation: Generation, children: Sequence[str]) -> Past:
    decision = Decision.from_json(generation.decision)
    return Past(generation.number, decision.top, decision.top_mean_kinship, tuple(children))


def _budget(d: Daemon) -> int | None:
    """Merges left of the total; what a day allows is waited for, and no reason to stop."""
    total = d.config.limits.merges_total
    return None if total is None else max(0, total - len(d.lineage.models(kind="merge")))


def _layers(d: Daemon, made_of: Sequence[Coefficients]) -> tuple[Matrix, ...]:
    layers = by_layer(d.ledger, made_of, d.config.kinship.metric)
    return tuple(
        tuple(tuple(map(_known, row)) for row in layers[number].tolist())
        for number in sorted(n for n in layers if n is not None)
    )


def _kinship_matrix(d: Daemon, names: Sequence[str]) -> Matrix:
    known = d.lineage.kinships(d.config.kinship.metric)
    return tuple(
        tuple(1.0 if a == b else known.get((min(a, b), max(a, b))) for b in names) for a in names
    )


def _known(value: float) -> float | None:
    return None if value != value else value  # noqa: PLR0124 - NaN
