"""One generation: who is in the population, what the policy proposes, how the children do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import BudgetReached, Transient, UsageError
from kinship_daemon.policy_process import FAILED, NOTHING_NEW, SPENT, PolicyFailed, ask
from kinship_daemon.steps.assemblies import coefficients
from kinship_daemon.steps.facts import policy_identity, population, standing
from kinship_daemon.steps.scoring import finished_today, mean_score, score, scores
from kinship_daemon.weights.methods.registry import is_elementwise
from kinship_daemon.weights.recipe import Recipe, check, combine
from kinship_policies.policy import Decision, Population, Proposal
from kinship_storage.records import Generation, Model

__all__ = [
    "converged",
    "decide",
    "grow",
    "score_everyone",
    "show_generation",
    "unfinished",
]


def score_everyone(d: Daemon) -> None:
    """
    Selection scores for everyone admitted that has none under today's settings.

    Hours of evaluation are dear: whom the quick screen found good comes first. But whoever made
    room for others comes last: to fetch them, those without scores would be in the way.
    """

    def turn(model: Model) -> tuple[bool, float]:
        away = model.recipe is None and d.lineage.get(f"folder:{model.id}") is None
        return away, -(d.lineage.get(f"screen:{model.id}") or 0.0)

    for model in sorted(d.population_models("admitted"), key=turn):
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


def converged(d: Daemon) -> str | None:
    """Why there is nothing to decide: the last decision was to stop, and nothing changed since."""
    last = d.lineage.last_generation()
    if last is None or last.stop is None or (last.policy, last.settings) != policy_identity(d):
        return None
    # With their scores: other evaluation settings are a change too.
    then = Population.from_json(last.facts)
    before = then.budget, {member.name: dict(member.tasks) for member in then.members}
    return last.stop if standing(d) == before else None


def unfinished(d: Daemon) -> bool:
    """Whether merges of the last decision are still to be made."""
    return bool(d.lineage.models(kind="merge", status="proposed"))


def decide(d: Daemon) -> Decision:
    """
    Ask the policy, and write its decision and the merges it proposes in one transaction.

    One that fails decides to stop, and says why: the daemon watches on.
    """
    facts = population(d)
    if not facts.members:
        raise Transient(
            f"no fine-tune of {d.base.id} could be admitted from {d.hub.name}; "
            "`kinship-daemon status` says why"
        )
    decision, children = _answered(d, facts)
    policy, settings = policy_identity(d)
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


def _answered(d: Daemon, facts: Population) -> tuple[Decision, list[Model]]:
    """The policy's decision and the merges that come of it; where none does, it is a stop."""
    children: list[Model] = []
    try:
        decision = ask(d.policy, facts, d.config.limits.decision_seconds)
    except PolicyFailed as error:
        return Decision((), (), None, stop=f"{FAILED}{error}"), children
    stop = NOTHING_NEW
    try:
        children = _within_budget(d, facts, _children(d, facts, decision))
    except UsageError as error:
        stop = f"{FAILED}{error}"
    if facts.budget == 0:
        stop = f"{SPENT} {d.config.limits.merges_total}"
    if not children and decision.stop is None:
        decision = replace(decision, merges=(), stop=stop)
    return decision, children


def _within_budget(d: Daemon, facts: Population, children: list[Model]) -> list[Model]:
    """The first of the merges, as many as limits.merges_total leaves, whatever was asked for."""
    if facts.budget is None or len(children) <= facts.budget:
        return children
    total = d.config.limits.merges_total
    message = f"of {len(children)} merges proposed, limits.merges_total {total} leaves"
    d.report.event("warning", f"{message} {facts.budget}")
    return children[: facts.budget]


def _children(d: Daemon, facts: Population, decision: Decision) -> list[Model]:
    """The merges that a decision asks for; those that were made before are said and left out."""
    children: list[Model] = []
    explorations = 0
    for index, proposal in enumerate(decision.merges, 1):
        explorations += proposal.role == "exploration"
        name = str(index)
        if proposal.role == "exploration":
            name = "exp" if explorations == 1 else f"exp{explorations}"
        for step, parameters in enumerate(proposal.variants(), 1):
            place = f"model-{facts.generation}-{name}" + (f"-{step}" if proposal.sweep else "")
            child = _child(d, facts, place, proposal, parameters)
            assert child.weights is not None
            known = [*d.lineage.by_weights(child.weights), *children]
            twins = [model.id for model in known if model.weights == child.weights]
            if twins:
                merged = " + ".join(child.parents)
                d.report.event("warning", f"{merged} was made before: {twins[0]}")
            else:
                children.append(child)
    return children


def _child(
    d: Daemon, facts: Population, name: str, proposal: Proposal, parameters: Mapping[str, Any]
) -> Model:
    """The merge that a proposal asks for, as a row of the lineage."""
    # Another method has parameters of its own.
    method = proposal.method or d.config.merge.method
    configured = d.config.merge.parameters if method == d.config.merge.method else {}
    recipe = Recipe(
        method=method,
        parents=proposal.parents,
        parameters={**configured, **parameters},
    )
    check(recipe, d.ledger.names)
    parents = [d.lineage.require(name) for name in proposal.parents]
    if not is_elementwise(method):
        # What only shows with the parents at hand, such as weights that sum to 0, is refused too.
        combine(d.ledger, recipe, [coefficients(d, parent) for parent in parents])
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
