"""The rules that the daemon relies on, each as a check of a policy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kinship_policies.policy import Decision, Member, Policy, Population
from kinship_policies.testing.landscape import Landscape, evolve, hold

__all__ = ["CHECKS", "conforms"]


def conforms(policy: Policy) -> None:
    """Runs every check."""
    for check in CHECKS:
        check(policy)


def decides_the_same_twice(policy: Policy) -> None:
    """
    The same population gives the same decision, in whatever order populations come, also when
    read back from JSON: nothing is remembered, and chance is only that of the seed.
    """
    asked = [(population, policy.propose(population)) for population in _populations(policy)]
    for population, once in reversed(asked):
        hold(policy.propose(population) == once, "decided otherwise the second time", population)
        facts = json.loads(json.dumps(population.to_json(), allow_nan=False))
        replayed = policy.propose(Population.from_json(facts))
        hold(replayed == once, "decided otherwise on the recorded facts", population)


def decides_in_json(policy: Policy) -> None:
    """A decision can be recorded: it survives JSON as it is."""
    for population in _populations(policy):
        decision = policy.propose(population)
        again = Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False)))
        hold(again == decision, "its decision is not the same after JSON", population)


def proposes_members_only(policy: Policy) -> None:
    """Every merge has two or more different parents, all of them in the population."""
    for population in _populations(policy):
        _holds_members_only(population, policy.propose(population))


def repeats_no_pair(policy: Policy) -> None:
    """
    Nothing is merged twice in the same way: not in one decision, not over generations.

    For the configured method a pair is merged once. With another method or parameters it is
    another merge, which must not be that of a member.
    """
    for population in _populations(policy):
        seen: set[str] = {_recipe(m.parents, m.method, m.parameters) for m in population.members}
        for merge in policy.propose(population).merges:
            pair = tuple(sorted(merge.parents))
            plain = merge.method is None and not any(merge.variants())
            old = plain and len(pair) == 2 and population.was_merged(*pair)
            hold(not old, f"proposes {pair} again", population)
            for parameters in merge.variants():
                recipe = _recipe(pair if plain else merge.parents, merge.method, parameters)
                hold(recipe not in seen, f"proposes {recipe} twice", population)
                seen.add(recipe)


def keeps_to_the_budget(policy: Policy) -> None:
    """No more children than may be evaluated, each step of a sweep being one; with none, a stop."""
    for population in _populations(policy):
        for budget in (0, 1, 2, 5):
            given = replace(population, budget=budget)
            decision = policy.propose(given)
            asked = sum(len(merge.variants()) for merge in decision.merges)
            hold(asked <= budget, f"asks for {asked} merges, {budget} are allowed", population)
            _holds_reasons(given, decision)


def says_why(policy: Policy) -> None:
    """Every merge has its reason in words; without merges there is a reason to stop."""
    for population in _populations(policy):
        _holds_reasons(population, policy.propose(population))


def breaks_ties_by_name(policy: Policy) -> None:
    """
    Where all are alike, the top comes in the order of the names, and nothing but that order counts.

    So with other names in the same order the same places are merged. It holds for policies that
    draw as well: they draw places, and with the same seed the same ones.
    """
    for samples in ((), (1.0, 0.0, 1.0)):
        first, second = _flat("abcdef", samples=samples), _flat("mnopqr", samples=samples)
        decision = policy.propose(first)
        hold(list(decision.top) == sorted(decision.top), f"its top is {decision.top}", first)
        same = _placed(first, decision) == _placed(second, policy.propose(second))
        hold(same, "decides otherwise when the names are others in the same order", first)


def survives_the_smallest(policy: Policy) -> None:
    """Nobody or a single member: there is nothing to merge, and it says so."""
    for names in ("", "a"):
        for score in (0.5, math.nan):
            population = _flat(names, score)
            decision = policy.propose(population)
            stopped = decision.stop is not None and not decision.merges
            hold(stopped, "does not stop where nothing can be merged", population)


def survives_the_unknown(policy: Policy) -> None:
    """Scores that are NaN and kinships that are undefined are facts of life."""
    for score, kinship in ((math.nan, None), (math.nan, 0.25), (0.5, None)):
        for samples in ((), (math.nan, 1.0)):
            population = _flat("abcd", score, kinship, samples=samples)
            decision = policy.propose(population)
            _holds_members_only(population, decision)
            _holds_reasons(population, decision)


def survives_missing_facts(policy: Policy) -> None:
    """Lengths, samples, layers, history and recipes may not be known: then it does without."""
    for population in _populations(policy):
        bare = replace(
            population,
            members=tuple(_bare(member) for member in population.members),
            history=(),
            layers=(),
        )
        decision = policy.propose(bare)
        _holds_members_only(bare, decision)
        _holds_reasons(bare, decision)


def survives_partial_scores(policy: Policy) -> None:
    """What it says it keeps is a number, and whoever was not asked everything may be chosen."""
    keeps = getattr(policy, "keeps", 1)
    population = _flat("abcdef")
    hold(isinstance(keeps, int) and keeps > 0, f"keeps {keeps!r} of the best", population)
    members = tuple(
        replace(
            m,
            score=m.score - 0.1 * (m.name > "c"),
            stderr=0.05,
            documents=8 if m.name > "c" else 16,
        )
        for m in population.members
    )
    partial = replace(population, members=members)
    decision = policy.propose(partial)
    _holds_members_only(partial, decision)
    _holds_reasons(partial, decision)


def finishes(policy: Policy) -> None:
    """It stops by itself within 60 generations on a small landscape, or it knows a last one."""
    landscape = Landscape(_FOUNDERS, optimum=_OPTIMUM)
    *_, (population, decision) = evolve(policy, landscape, generations=60)
    if decision.stop is None:
        decision = policy.propose(replace(population, generation=10**9))
    hold(decision.stop is not None, "has no end", population)


CHECKS: tuple[Callable[[Policy], None], ...] = (
    proposes_members_only,
    decides_the_same_twice,
    decides_in_json,
    repeats_no_pair,
    keeps_to_the_budget,
    says_why,
    breaks_ties_by_name,
    survives_the_smallest,
    survives_the_unknown,
    survives_missing_facts,
    survives_partial_scores,
    finishes,
)

# Two close relatives, one opposite, one apart; the optimum lies between them, so merging pays.
_FOUNDERS = {
    "a": (1.0, 0.0, 0.0),
    "b": (0.9, 0.3, 0.0),
    "c": (-0.5, 0.2, 0.6),
    "d": (0.0, 1.0, 0.2),
}
_OPTIMUM = (0.3, 0.4, 0.2)


def _populations(policy: Policy) -> Iterator[Population]:
    yield _flat("abcdef")
    yield _flat("abcdef", samples=(1.0, 0.0, 1.0))
    yield _flat("ab")
    yield _flat("abcd", score=math.nan, kinship=None)
    yield _flat("abcd", merged=(("a", "b"), ("a", "c"), ("b", "c")))
    for budget in (None, 2):
        landscape = Landscape(_FOUNDERS, optimum=_OPTIMUM)
        arrivals = {"e": (0.2, 0.1, 0.9)}
        for population, _ in evolve(policy, landscape, arrivals=arrivals, budget=budget):
            yield population


def _flat(
    names: str,
    score: float = 0.5,
    kinship: float | None = 0.25,
    merged: Iterable[tuple[str, str]] = (),
    samples: tuple[float, ...] = (),
) -> Population:
    """All alike; in generation 1, or 2 where some pairs were merged."""
    known = {"task": samples} if samples else {}
    members = tuple(Member(name, score, {"task": score}, samples=known) for name in names)
    return Population(
        generation=2 if merged else 1,
        members=members,
        kinship=tuple(tuple(1.0 if a is b else kinship for b in members) for a in members),
        merged=frozenset(merged),
        previous_top=tuple(reversed(names)) if merged else None,
    )


def _bare(member: Member) -> Member:
    known = replace(member, samples={}, method=None, parameters={})
    return replace(known, length=None, stderr=None, documents=None)


def _recipe(parents: Iterable[str], method: str | None, parameters: Mapping[str, Any]) -> str:
    return json.dumps([list(parents), method, parameters], sort_keys=True)


def _placed(population: Population, decision: Decision) -> object:
    """A decision with places for names, and without words."""
    place = {member.name: i for i, member in enumerate(population.members)}
    merges = [
        ([place[p] for p in m.parents], m.role, m.method, list(m.variants()))
        for m in decision.merges
    ]
    return merges, [place[name] for name in decision.top], decision.stop is None


def _holds_members_only(population: Population, decision: Decision) -> None:
    names = {member.name for member in population.members}
    for merge in decision.merges:
        different = len(set(merge.parents)) == len(merge.parents) >= 2
        hold(different, f"merges {merge.parents}", population)
        hold(names.issuperset(merge.parents), f"merges {merge.parents}", population)
    hold(names.issuperset(decision.top), f"its top is {decision.top}", population)


def _holds_reasons(population: Population, decision: Decision) -> None:
    for merge in decision.merges:
        hold(bool(merge.reason.strip()), f"gives no reason for {merge.parents}", population)
    stopped = bool(decision.stop and decision.stop.strip())
    hold(stopped != bool(decision.merges), "must either merge or say why it stops", population)
