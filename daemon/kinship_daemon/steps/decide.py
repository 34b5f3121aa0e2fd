"""A decision of the policy: which merges the next generation is made of, or why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from kinship_daemon.context import Context
from kinship_daemon.errors import Transient, UsageError
from kinship_daemon.policy_process import PolicyDied, PolicyFailed, ask
from kinship_daemon.report import count
from kinship_daemon.steps.assemblies import METRICS, coefficients, kinship_matrix
from kinship_daemon.steps.facts import is_unchanged, kept, policy_identity, population
from kinship_daemon.steps.score import unscored
from kinship_daemon.steps.step import Step, Work
from kinship_daemon.weights.methods.registry import is_span
from kinship_daemon.weights.recipe import Recipe, check, combine
from kinship_policies.policy import Decision, Population, Proposal
from kinship_storage.lineage import Lineage
from kinship_storage.records import Generation, Model, StopKind
from kinship_storage.rows import stamp

__all__ = ["STEP", "converged"]

_NOTHING_NEW = "the policy proposed nothing new"
_FAILED = "the policy failed"

# (metric, weights, weights, value) of a pair that the decision rests on.
Kinship = tuple[str, str, str, float | None]


@dataclass(frozen=True)
class Decided:
    """A decision, what it rested on, and what comes of it."""

    generation: Generation
    facts: Mapping[str, Any]
    children: tuple[Model, ...]
    kinships: tuple[Kinship, ...]
    remarks: tuple[str, ...]


def converged(context: Context) -> Generation | None:
    """
    The stop that still holds: the last decision, where nothing changed since.

    That a policy failed holds no longer than the process: its code may be mended.
    """
    last = context.lineage.last_generation()
    if last is None or last.stop is None:
        return None
    if (last.policy, last.settings) != policy_identity(context):
        return None
    if last.stop_kind == "policy failed" and last.created < stamp(context.began):
        return None
    then = context.lineage.facts(last.number)
    return last if then is not None and is_unchanged(context, then) else None


def _plan(context: Context) -> Iterator[Work]:
    """When everyone in use has been scored, and there is something new since the last stop."""
    if unscored(context) or converged(context) is not None:
        return
    policy, settings = policy_identity(context)
    last = context.lineage.last_generation()
    inputs = {
        "after": 0 if last is None else last.number,
        "policy": policy,
        "settings": settings,
        "evaluation": context.settings.fingerprint("selection"),
        "seed": context.config.seed,
    }
    yield Work(inputs)


def _run(context: Context, work: Work) -> Decided:
    facts = population(context)
    if not facts.members:
        if not context.lineage.candidates():
            raise Transient(
                f"no repo of {context.hub.name} declares base_model {context.base.id}, "
                "written exactly so"
            )
        raise Transient(
            f"no fine-tune of {context.base.id} could be admitted from {context.hub.name}; "
            "`kinship-daemon candidates` says why"
        )
    decision, children, stop_kind, remarks = _answered(context, facts)
    generation = Generation(
        number=work.inputs["after"] + 1,
        generation=facts.generation if children else None,
        policy=work.inputs["policy"],
        settings=work.inputs["settings"],
        seed=facts.seed,
        decision=decision.to_json(),
        stop=decision.stop,
        stop_kind=stop_kind,
    )
    return Decided(
        generation=generation,
        facts=kept(context, facts),
        children=tuple(children),
        kinships=tuple(_kinships(context, decision)),
        remarks=tuple(remarks),
    )


def _commit(lineage: Lineage, _work: Work, decided: Decided) -> None:
    lineage.add_generation(decided.generation, decided.facts)
    for metric in METRICS:
        pairs = [(a, b, value) for of, a, b, value in decided.kinships if of == metric]
        lineage.add_kinships(metric, pairs)
    for child in decided.children:
        lineage.add_model(child)


def _tell(context: Context, _work: Work, decided: Decided) -> None:
    say = context.report.event
    for remark in decided.remarks:
        say("warning", remark)
    generation = decided.generation
    decision = Decision.from_json(generation.decision)
    if generation.stop is not None:
        kind = "converged" if generation.stop_kind == "converged" else "stopped"
        say(kind, generation.stop, stop=generation.stop_kind, decision=generation.number)
        return
    kin = decision.top_mean_kinship
    words = "" if kin is None else f", mean kinship {kin:.2f}"
    merges = count(len(decided.children), "merge")
    number = generation.generation
    say(
        "decide",
        f"generation {number}: {merges}; top {', '.join(decision.top)}{words}",
        generation=number,
        merges=[list(child.parents) for child in decided.children],
    )


STEP = Step("decide", "policy", _plan, _run, _commit, _tell)


def _answered(
    context: Context, facts: Population
) -> tuple[Decision, list[Model], StopKind | None, list[str]]:
    """The policy's decision and the merges that come of it; where none does, it is a stop."""
    remarks: list[str] = []
    try:
        seconds = context.config.limits.decision_seconds
        decision = ask(context.policy, facts, seconds, context.stop)
    except PolicyDied as error:
        raise Transient(f"the policy is asked again: {error}") from error
    except PolicyFailed as error:
        return Decision((), (), None, stop=f"{_FAILED}: {error}"), [], "policy failed", remarks
    kind: StopKind = "converged" if decision.stop is not None else "nothing new"
    stop = _NOTHING_NEW
    children: list[Model] = []
    try:
        children = _children(context, facts, decision, remarks)
        children = _within_budget(context, facts, children, remarks)
    except UsageError as error:
        stop, kind = f"{_FAILED}: {error}", "policy failed"
    if facts.budget == 0:
        total = context.config.limits.merges_total
        stop, kind = f"no more merges are allowed: limits.merges_total {total}", "budget"
    if children:
        if decision.stop is not None:
            remarks.append(f"it proposed merges, so it is not taken to stop: {decision.stop}")
        return replace(decision, stop=None), children, None, remarks
    if decision.stop is None:
        decision = replace(decision, merges=(), stop=stop)
    return decision, [], kind, remarks


def _within_budget(
    context: Context, facts: Population, children: list[Model], remarks: list[str]
) -> list[Model]:
    """The first of the merges, as many as limits.merges_total leaves, whatever was asked for."""
    if facts.budget is None or len(children) <= facts.budget:
        return children
    total = context.config.limits.merges_total
    message = f"of {count(len(children), 'merge')} proposed, limits.merges_total {total} leaves"
    remarks.append(f"{message} {facts.budget}")
    return children[: facts.budget]


def _children(
    context: Context, facts: Population, decision: Decision, remarks: list[str]
) -> list[Model]:
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
            child = _child(context, facts, place, proposal, parameters)
            assert child.weights is not None
            known = [*context.lineage.by_weights(child.weights), *children]
            same = [model.id for model in known if model.weights == child.weights]
            if same:
                remarks.append(f"{' + '.join(child.parents)} was made before: {same[0]}")
            else:
                children.append(child)
    return children


def _child(
    context: Context,
    facts: Population,
    name: str,
    proposal: Proposal,
    parameters: Mapping[str, Any],
) -> Model:
    """The merge that a proposal asks for, as a row of the lineage."""
    chosen = context.config.merge
    # Another method has parameters of its own.
    method = proposal.method or chosen.method
    configured = chosen.parameters if method == chosen.method else {}
    recipe = Recipe(
        method=method, parents=proposal.parents, parameters={**configured, **parameters}
    )
    check(recipe, context.ledger.names)
    parents = [context.lineage.require(name) for name in proposal.parents]
    if is_span(method):
        # What only shows with the parents at hand, such as weights that sum to 0, is refused too.
        combine(context.ledger, recipe, [coefficients(context, parent) for parent in parents])
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


def _kinships(context: Context, decision: Decision) -> Iterator[Kinship]:
    """Every pair that the decision names: parents of one merge, and within the top."""
    pairs = {
        (min(pair), max(pair))
        for names in (*(proposal.parents for proposal in decision.merges), decision.top)
        for pair in combinations(names, 2)
    }
    names = sorted({name for pair in pairs for name in pair})
    models = [context.lineage.require(name) for name in names]
    places = {name: place for place, name in enumerate(names)}
    for metric in METRICS:
        values = kinship_matrix(context, models, metric)
        for a, b in sorted(pairs):
            one, other = models[places[a]].weights or "", models[places[b]].weights or ""
            yield metric, one, other, values[places[a]][places[b]]
