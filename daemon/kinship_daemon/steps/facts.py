"""What a policy is told: the population, its kinships, and what it decided before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from pydantic import BaseModel

from kinship_daemon.context import Context, Rows
from kinship_daemon.steps.assemblies import (
    coefficients,
    combination,
    kinship_matrix,
    pairwise_kinship,
)
from kinship_daemon.steps.rungs import partials
from kinship_daemon.steps.scores import known_means, mean_error, mean_score, scores
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.kinship import Metric, by_layer, lengths
from kinship_daemon.weights.recipe import Coefficients
from kinship_policies.policy import Decision, Fact, Matrix, Member, Past, Population
from kinship_storage.lineage import Lineage
from kinship_storage.records import Generation, Model, Partial, Score

__all__ = ["is_unchanged", "kept", "next_generation", "policy_identity", "population", "told"]


def population(context: Context) -> Population:
    """The facts for the policy: everyone admitted and scored, and their kinships."""
    uses: frozenset[Fact] = getattr(context.policy, "uses", frozenset())
    everyone = _scored(context, samples="samples" in uses)
    names = sorted(everyone)
    models = [everyone[name][0] for name in names]
    made_of = [coefficients(context, model) for model in models]
    metric = context.config.kinship.metric
    sizes = lengths(context.ledger, made_of, metric).tolist()
    stopped = partials(context)
    members = tuple(
        _member(*everyone[name], length, "samples" in uses, stopped)
        for name, length in zip(names, sizes, strict=True)
    )
    decisions = context.lineage.generations()
    before = _known_before(context, decisions)
    past = _history(context, decisions)
    # What another policy, or this one otherwise set, thought of the top is nothing to go by.
    last = decisions[-1] if decisions else None
    same = last is not None and (last.policy, last.settings) == policy_identity(context)
    decision = (
        Decision.from_json(last.decision)
        if last is not None and same and last.stop_kind != "policy failed"
        else None
    )
    return Population(
        generation=next_generation(decisions),
        members=members,
        kinship=tuple(map(tuple, kinship_matrix(context, models, metric))),
        merged=frozenset(
            (min(pair), max(pair))
            for model in context.lineage.models(kind="merge")
            for pair in combinations(model.parents, 2)
        ),
        newcomers=tuple(
            m.name for m in members if before and not m.parents and m.name not in before
        ),
        previous_top=None if decision is None else decision.top,
        saturated=0 if decision is None else decision.saturated,
        seed=context.config.seed,
        history=past,
        budget=_budget(context),
        layers=_layers(context.ledger, made_of, metric) if "layers" in uses else (),
    )


def kept(context: Context, facts: Population) -> dict[str, Any]:
    """
    What is written of the facts.

    The ledger knows every kinship and the lineage every answer: they would grow with the square of
    the models, and are not written again for every decision. `told` puts them back.
    """
    members = tuple(replace(member, samples={}) for member in facts.members)
    rest = replace(facts, members=members, kinship=(), layers=()).to_json()
    settings = context.settings.fingerprint("selection")
    return {**rest, "metric": context.config.kinship.metric, "settings": settings}


def told(
    lineage: Lineage, rows: Rows, facts: Mapping[str, Any], uses: frozenset[Fact]
) -> Population:
    """
    What a policy was told, from what was written of it.

    Raises:
        ModelError: The ledger does not know one of its models any more.
    """
    population = Population.from_json(facts)
    if population.kinship:
        return population  # an older version wrote all of it
    models = [lineage.require(member.name) for member in population.members]
    made_of = [combination(lineage, rows, model) for model in models]
    metric = facts["metric"]
    members = population.members
    if "samples" in uses:
        members = tuple(
            replace(
                member, samples=_answers(lineage.scores(m.weights or "", "selection", settings))
            )
            for settings in [facts["settings"]]
            for member, m in zip(population.members, models, strict=True)
        )
    return replace(
        population,
        members=members,
        kinship=tuple(map(tuple, pairwise_kinship(rows.ledger, made_of, metric))),
        layers=_layers(rows.ledger, made_of, metric) if "layers" in uses else (),
    )


def next_generation(decisions: Sequence[Generation]) -> int:
    """The number of the generation that the next merges will be; stops use up none."""
    return 1 + max((d.generation for d in decisions if d.generation is not None), default=0)


def is_unchanged(context: Context, then: Mapping[str, Any]) -> bool:
    """
    Whether a decision's facts still hold, as far as a stop depends on them.

    That is the budget left, the seed, the metric of kinship, and everyone's scores by task: other
    evaluation settings are a change too.
    """
    config = context.config
    chosen = (config.seed, config.kinship.metric)
    if (then.get("seed", chosen[0]), then.get("metric", chosen[1])) != chosen:
        return False
    members = {m["name"]: dict(m["tasks"]) for m in then["members"]}
    now = {
        name: {row.task: row.score for row in rows}
        for name, (_, rows) in _scored(context, samples=False).items()
    }
    return (then.get("budget"), members) == (_budget(context), now)


def _scored(context: Context, *, samples: bool) -> dict[str, tuple[Model, Sequence[Score]]]:
    """Everyone admitted that has scores under today's settings, by name."""
    known = known_means(context, "selection")
    return {
        model.id: (model, scores(context, model, "selection", samples=samples))
        for model in context.population_models("admitted")
        if model.weights in known
    }


def _known_before(context: Context, decisions: Sequence[Generation]) -> frozenset[str]:
    """
    Who was there when a policy decided last.

    One that failed, or had no budget, took up nobody: who was new to it is new still.
    """
    for decision in reversed(decisions):
        if decision.stop_kind not in {"policy failed", "budget"}:
            return context.lineage.members(decision.number)
    return frozenset()


def policy_identity(context: Context) -> tuple[str, dict[str, Any]]:
    """The policy's name and all its settings, defaults too where it tells them."""
    if isinstance(context.policy, BaseModel):
        return context.config.policy.use, context.policy.model_dump(mode="json")
    return context.config.policy.use, context.config.policy.settings


def _member(
    model: Model,
    rows: Sequence[Score],
    length: float,
    samples: bool,
    stopped: Mapping[str, Partial],
) -> Member:
    recipe: Mapping[str, Any] = model.recipe or {}
    score, stderr = mean_score(rows), mean_error(rows)
    partial = stopped.get(model.weights or "")
    if partial is not None and partial.mean is not None:
        # Of all documents, and of what is foretold beside it.
        stderr = math.hypot(stderr * math.sqrt(partial.share or 1), partial.stderr or 0)
        score = partial.mean
    return Member(
        name=model.id,
        score=score,
        tasks={row.task: row.score for row in rows},
        generation=model.generation,
        parents=model.parents,
        method=recipe.get("method"),
        parameters=recipe.get("parameters", {}),
        length=_known(length),
        samples=_answers(rows) if samples else {},
        stderr=_known(stderr),
        documents=sum(row.n for row in rows),
    )


def _answers(rows: Sequence[Score]) -> dict[str, tuple[float, ...]]:
    return {row.task: tuple(value for _, value in row.samples) for row in rows}


def _history(context: Context, decisions: Sequence[Generation]) -> tuple[Past, ...]:
    """What this policy, set as it is now, decided before."""
    children: dict[int, list[str]] = {}
    for model in context.lineage.models(kind="merge"):
        children.setdefault(model.generation, []).append(model.id)
    identity = policy_identity(context)
    found = []
    for place, decision in enumerate(decisions):
        same = (decision.policy, decision.settings) == identity
        if same and decision.stop_kind != "policy failed":
            # A stop is about the generation that it did not propose.
            generation = decision.generation or next_generation(decisions[:place])
            found.append(_past(decision, generation, children.get(generation, [])))
    return tuple(found)


def _past(generation: Generation, number: int, children: Sequence[str]) -> Past:
    decision = Decision.from_json(generation.decision)
    proposed = () if generation.generation is None else tuple(children)
    return Past(number, decision.top, decision.top_mean_kinship, proposed)


def _budget(context: Context) -> int | None:
    """Merges left of the total; what a day allows is waited for, and no reason to stop."""
    total = context.config.limits.merges_total
    if total is None:
        return None
    made = sum(n for (kind, _), n in context.lineage.count_models().items() if kind == "merge")
    return max(0, total - made)


def _layers(ledger: Ledger, made_of: Sequence[Coefficients], metric: Metric) -> tuple[Matrix, ...]:
    layers = by_layer(ledger, made_of, metric)
    return tuple(
        tuple(tuple(map(_known, row)) for row in layers[number].tolist())
        for number in sorted(n for n in layers if n is not None)
    )


def _known(value: float) -> float | None:
    return None if value != value else value  # noqa: PLR0124 - NaN
