"""One generation: who is in the population, what the policy proposes, how the children do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from pydantic import BaseModel

from kinship_daemon.daemon import BudgetReached, Daemon
from kinship_daemon.errors import KinshipError, Transient
from kinship_daemon.steps.scoring import finished_today, mean_score, score, scores
from kinship_daemon.weights.recipe import Recipe, check
from kinship_policies.policy import Decision, Member, Population, Proposal
from kinship_storage.records import Generation, Model

__all__ = [
    "converged",
    "decide",
    "grow",
    "population",
    "score_everyone",
    "show_generation",
    "unfinished",
]


def score_everyone(d: Daemon) -> None:
    """Selection scores for everyone admitted that has none under today's settings."""
    for model in d.population_models("admitted"):
        score(d, model, "selection", "score")


def grow(d: Daemon) -> list[Model]:
    """Make and score every merge that was proposed; each ends admitted or quarantined."""
    proposed = d.lineage.models(kind="merge", status="proposed")
    for model in proposed:
        made = len(finished_today(d, "merge"))
        if made >= d.config.limits.merges_per_day:
            raise BudgetReached(
                f"limits.merges_per_day {made} reached; the next day (UTC) has its own"
            )
        if score(d, model, "selection", "merge"):
            d.lineage.update_model(model.id, status="admitted")
            _announce_child(d, model)
    return proposed


def population(d: Daemon) -> Population:
    """The facts for the policy: everyone admitted and scored, and their kinships."""
    everyone = [(model, scores(d, model, "selection")) for model in d.population_models("admitted")]
    members = tuple(
        Member(
            name=model.id,
            score=mean_score(rows),
            tasks={row.task: row.score for row in rows},
            generation=model.generation,
            parents=model.parents,
        )
        for model, rows in sorted(everyone, key=lambda pair: pair[0].id)
        if rows
    )
    names = [member.name for member in members]
    last = _last(d)
    before = set() if last is None else {m["name"] for m in last.facts["members"]}
    # What another policy, or this one otherwise set, thought of the top is nothing to go by.
    same = last is not None and (last.policy, last.settings) == _policy_identity(d)
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
        newcomers=tuple(m.name for m in members if last and not m.parents and m.name not in before),
        previous_top=None if decision is None else decision.top,
        saturated=0 if decision is None else decision.saturated,
        seed=d.config.seed,
    )


def converged(d: Daemon) -> str | None:
    """Why there is nothing to decide: the last decision was to stop, and nothing changed since."""
    last = _last(d)
    if last is None or last.stop is None or (last.policy, last.settings) != _policy_identity(d):
        return None
    # With their scores: other evaluation settings are a change too.
    then = Population.from_json(last.facts)
    return last.stop if population(d).members == then.members else None


def unfinished(d: Daemon) -> bool:
    """Whether merges of the last decision are still to be made."""
    return bool(d.lineage.models(kind="merge", status="proposed"))


def decide(d: Daemon) -> Decision:
    """Ask the policy, and write its decision and the merges it proposes in one transaction."""
    facts = population(d)
    if not facts.members:
        raise Transient(
            f"no fine-tune of {d.base.id} could be admitted from {d.hub.name}; "
            "`kinship-daemon status` says why"
        )
    decision = d.policy.propose(facts)
    children = _children(d, facts, decision)
    if not children and decision.stop is None:
        decision = replace(decision, merges=(), stop="the policy proposed nothing new")
    policy, settings = _policy_identity(d)
    row = Generation(
        number=facts.generation,
        policy=policy,
        settings=settings,
        seed=facts.seed,
        facts=facts.to_json(),
        decision=decision.to_json(),
        stop=decision.stop,
    )

    def record(_: None) -> None:
        d.lineage.add_generation(row)
        for child in children:
            d.lineage.add_model(child)

    d.step("decide", f"decide:{facts.generation}", None, lambda: None, record)
    _announce(d, facts, decision)
    return decision


def _children(d: Daemon, facts: Population, decision: Decision) -> list[Model]:
    """The merges that a decision asks for; those that were made before are said and left out."""
    children: list[Model] = []
    explorations = 0
    for index, proposal in enumerate(decision.merges, 1):
        explorations += proposal.role == "exploration"
        name = str(index)
        if proposal.role == "exploration":
            name = "exp" if explorations == 1 else f"exp{explorations}"
        child = _child(d, facts, f"model-{facts.generation}-{name}", proposal)
        assert child.weights is not None
        known = [*d.lineage.by_weights(child.weights), *children]
        twins = [model.id for model in known if model.weights == child.weights]
        if twins:
            d.report.event("warning", f"{' + '.join(child.parents)} was made before: {twins[0]}")
        else:
            children.append(child)
    return children


def _child(d: Daemon, facts: Population, name: str, proposal: Proposal) -> Model:
    """The merge that a proposal asks for, as a row of the lineage."""
    known = {member.name for member in facts.members}
    if unknown := [name for name in proposal.parents if name not in known]:
        raise KinshipError(
            f"policy {d.config.policy.use} proposed to merge {', '.join(unknown)}, "
            "which the population does not have"
        )
    recipe = Recipe(
        method=proposal.method or d.config.merge.method,
        parents=proposal.parents,
        parameters={**d.config.merge.parameters, **proposal.parameters},
    )
    check(recipe, d.ledger.names)
    parents = [d.lineage.require(name) for name in proposal.parents]
    return Model(
        id=name,
        kind="merge",
        status="proposed",
        generation=facts.generation,
        weights=recipe.identity([parent.weights or "" for parent in parents]),
        parameters=parents[0].parameters,
        role=proposal.role,
        why=proposal.reason,
        recipe=recipe.to_json(),
        parents=proposal.parents,
    )


def _announce(d: Daemon, facts: Population, decision: Decision) -> None:
    if decision.stop is not None:
        d.report.event("converged", decision.stop, generation=facts.generation)
        return
    kin = (
        ""
        if decision.top_mean_kinship is None
        else f", mean kinship {decision.top_mean_kinship:.2f}"
    )
    d.report.event(
        "decide",
        f"generation {facts.generation}: {len(decision.merges)} merges; "
        f"top {', '.join(decision.top)}{kin}",
        generation=facts.generation,
        merges=[list(p.parents) for p in decision.merges],
    )


def show_generation(d: Daemon, children: Sequence[Model]) -> None:
    """A table of a generation just made; nothing if none was."""
    if not children:
        return
    rows = []
    for child in children:
        kin = d.lineage.kinship(d.config.kinship.metric, *child.parents[:2])
        value, gain = _gain(d, child)
        gate = d.lineage.gate(child.id)
        rows.append(
            [
                child.id,
                " + ".join(child.parents),
                child.role or "",
                "-" if kin is None else f"{kin:.3f}",
                f"{value:.4f}",
                f"{gain:+.4f}",
                "-" if gate is None else f"{gate.gain:+.4f} [{gate.low:+.4f}, {gate.high:+.4f}]",
                "yes" if d.lineage.publication(child.id) else "",
            ]
        )
    columns = ["model", "parents", "role", "kinship", "score", "gain", "validation", "published"]
    d.report.table(f"generation {children[0].generation}", columns, rows)


def _gain(d: Daemon, child: Model) -> tuple[float, float]:
    """Selection score, and by how much it is above the best parent's."""
    value = mean_score(scores(d, child, "selection"))
    parents = [d.lineage.require(name) for name in child.parents]
    return value, value - max(mean_score(scores(d, parent, "selection")) for parent in parents)


def _announce_child(d: Daemon, child: Model) -> None:
    value, gain = _gain(d, child)
    message = f"{child.id} = {' + '.join(child.parents)}: {value:.4f} ({gain:+.4f})"
    d.report.event("merge", message, model=child.id, score=value, gain=gain)


def _last(d: Daemon) -> Generation | None:
    return d.lineage.last_generation()


def _policy_identity(d: Daemon) -> tuple[str, dict[str, Any]]:
    """The policy's name and all its settings, defaults too where it tells them."""
    if isinstance(d.policy, BaseModel):
        return d.config.policy.use, d.policy.model_dump(mode="json")
    return d.config.policy.use, d.config.policy.settings


def _kinship_matrix(d: Daemon, names: Sequence[str]) -> tuple[tuple[float | None, ...], ...]:
    known = d.lineage.kinships(d.config.kinship.metric)
    return tuple(
        tuple(1.0 if a == b else known.get((min(a, b), max(a, b))) for b in names) for a in names
    )
