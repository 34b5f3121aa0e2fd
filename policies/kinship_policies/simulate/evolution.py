"""Evolution by one policy in one world: propose, merge, score, until a stop or the budget."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from kinship_policies.policy import Decision, Fact, Matrix, Member, Past, Policy, Population
from kinship_policies.simulate.landscape import (
    DEFAULT_METHOD,
    DEFAULT_PARAMETERS,
    Array,
    Merge,
    Model,
    World,
)
from kinship_storage.errors import UsageError

__all__ = ["Point", "Run", "evolve", "uses"]

# A policy that has had no child for so many generations in a row gets none any more.
_BARREN = 10

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Point:
    """
    Who is best from here on.

    Attributes:
        evaluations: Children evaluated so far; 0 for a founder.
        score: As measured.
        true: Without luck; None where the landscape cannot tell.
    """

    evaluations: int
    name: str
    score: float
    true: float | None

    @property
    def worth(self) -> float:
        """The true score, or the measured one where that is all there is."""
        return self.score if self.true is None else self.true


@dataclass
class Run:
    """
    What became of one policy under one seed.

    Attributes:
        generations: As they are written to JSON, one for each decision.
        evaluations: Children evaluated; founders are scored for everyone and cost nothing.
        curve: Every time that another model measured best, the first founder first.
        unknown: Children proposed that the landscape does not know.
        error: Why the policy failed; None if it did not.
        stop: Why the run ended; None where the policy failed.
    """

    policy: str
    seed: int
    generations: list[dict[str, Any]] = field(default_factory=list)
    evaluations: int = 0
    curve: list[Point] = field(default_factory=list)
    unknown: int = 0
    error: str | None = None
    stop: str | None = None

    @property
    def best(self) -> Point | None:
        return self.curve[-1] if self.curve else None

    def to_json(self) -> dict[str, Any]:
        best = self.best
        return {
            "policy": self.policy,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "best": None if best is None else best.score,
            "best_true": None if best is None else best.true,
            "best_model": None if best is None else best.name,
            "unknown": self.unknown,
            "stop": self.stop,
            "error": self.error,
            "curve": [[p.evaluations, p.score, p.true] for p in self.curve],
            "generations": self.generations,
        }


def uses(policy: Policy) -> frozenset[Fact]:
    """The costlier facts that a policy wants to be given."""
    return frozenset(getattr(policy, "uses", ()))


def evolve(
    label: str, policy: Policy, world: World, *, seed: int, budget: int, tick: Tick | None = None
) -> Run:
    """
    Let a policy evolve a world.

    A policy that raises or proposes nonsense ends its run with an error; that is recorded, not
    raised.

    Args:
        budget: Children that may be evaluated; what a policy proposes beyond is cut.
        tick: Called with 1 after every evaluation.
    """
    return _Evolution(label, policy, world, seed, budget, tick or (lambda _done: None)).run()


class _Evolution:
    def __init__(
        self, label: str, policy: Policy, world: World, seed: int, budget: int, tick: Tick
    ) -> None:
        self._policy, self._world, self._budget, self._tick = policy, world, budget, tick
        self._uses = uses(policy)
        self._result = Run(label, seed)
        self._members: dict[str, Member] = {}
        self._merged: set[tuple[str, str]] = set()
        self._recipes: set[str] = set()
        self._history: list[Past] = []
        self._saturated = 0
        for founder in world.founders:
            self._add(founder, Member(founder.name, founder.score))
        if world.founders:
            ranked = sorted(world.founders, key=lambda model: model.name)
            self._note(max(ranked, key=lambda model: _rank(model.score)))

    def run(self) -> Run:
        barren = 0
        while self._result.stop is None and self._result.error is None:
            population = self._population()
            decided = self._decide(population)
            if decided is None:
                break
            born = self._grow(population.generation, *decided)
            barren = 0 if born else barren + 1
            if self._result.error is None:
                self._result.stop = self._ending(decided[0], barren)
        return self._result

    def _ending(self, decision: Decision, barren: int) -> str | None:
        if decision.stop is not None:
            return decision.stop
        if not decision.merges:
            return "the policy proposed nothing"
        if self._result.evaluations >= self._budget:
            return f"the budget of {self._budget} evaluations is used up"
        if barren >= _BARREN:
            return f"no child in {barren} generations: all were unknown or made before"
        return None

    def _population(self) -> Population:
        members = tuple(member for _, member in sorted(self._members.items()))
        names = [member.name for member in members]
        layers = self._world.layers(names) if "layers" in self._uses else ()
        return Population(
            generation=len(self._history) + 1,
            members=members,
            kinship=_matrix(self._world.kinship(names)),
            merged=frozenset(self._merged),
            previous_top=self._history[-1].top if self._history else None,
            saturated=self._saturated,
            seed=self._result.seed,
            history=tuple(self._history),
            budget=self._budget - self._result.evaluations,
            layers=tuple(_matrix(layer) for layer in layers),
        )

    def _decide(self, population: Population) -> tuple[Decision, list[_Child]] | None:
        """The children too that it asks for; None, and why in the run, where the policy failed."""
        try:
            decision = self._policy.propose(population)
            _check(decision, population)
            children = list(_children(population.generation, decision))
        except Exception as error:  # whatever a stranger's code raises ends its own run only
            self._result.error = _line(error)
            return None
        self._saturated = decision.saturated
        return decision, children

    def _grow(self, generation: int, decision: Decision, children: Sequence[_Child]) -> int:
        """Makes the children that a decision asks for; how many there are now more."""
        rows: list[dict[str, Any]] = []
        before = self._result.evaluations
        for child in children:
            rows.append(self._make(generation, child))
            if self._result.error is not None:
                break
        made = tuple(row["name"] for row in rows if row["outcome"] == "made")
        self._history.append(Past(generation, decision.top, decision.top_mean_kinship, made))
        self._result.generations.append(
            {
                "generation": generation,
                "merges": rows,
                "top": list(decision.top),
                "top_mean_kinship": decision.top_mean_kinship,
                "stop": decision.stop,
            }
        )
        return self._result.evaluations - before

    def _make(self, generation: int, asked: _Child) -> dict[str, Any]:
        """One child, unless it was made before, costs too much or is not known; a row of JSON."""
        merge = asked.merge
        row: dict[str, Any] = {
            "name": merge.name,
            "parents": list(merge.parents),
            "role": asked.role,
            "score": None,
            "outcome": "made",
        }
        if (merge.method, merge.parameters) != (DEFAULT_METHOD, DEFAULT_PARAMETERS):
            row["method"], row["parameters"] = merge.method, dict(merge.parameters)
        if asked.recipe in self._recipes:
            return row | {"outcome": "repeated"}
        if self._result.evaluations >= self._budget:
            return row | {"outcome": "cut"}
        try:
            child = self._world.merge(merge)
        except UsageError as error:
            self._result.error = str(error)
            return row | {"outcome": "error"}
        self._recipes.add(asked.recipe)
        # What was tried in vain was tried: as in the daemon, it is not proposed again.
        self._merged.update(combinations(sorted(merge.parents), 2))
        if child is None:
            self._result.unknown += 1
            return row | {"outcome": "unknown"}
        if child.name in self._members:
            return row | {"outcome": "repeated"}
        self._born(generation, merge, child)
        return row | {"name": child.name, "score": _or_none(child.score)}

    def _born(self, generation: int, merge: Merge, child: Model) -> None:
        member = Member(
            child.name,
            child.score,
            generation=generation,
            parents=merge.parents,
            method=merge.method,
            parameters=merge.parameters,
        )
        self._result.evaluations += 1
        self._add(child, member)
        self._note(child)
        self._tick(1)

    def _add(self, model: Model, member: Member) -> None:
        self._members[model.name] = replace(
            member, tasks=model.tasks, length=model.length, samples=model.samples
        )

    def _note(self, model: Model) -> None:
        """Keeps the curve, where this is a new best."""
        best = self._result.best
        if best is None or _rank(model.score) > _rank(best.score):
            true = self._world.true(model.name)
            point = Point(self._result.evaluations, model.name, model.score, true)
            self._result.curve.append(point)


@dataclass(frozen=True)
class _Child:
    """A merge that was asked for; `recipe` is the same for the same weights."""

    merge: Merge
    role: str
    recipe: str


def _children(generation: int, decision: Decision) -> Iterator[_Child]:
    """Every child that a decision asks for, named as the daemon names them."""
    explorations = 0
    for index, proposal in enumerate(decision.merges, 1):
        name = str(index)
        if proposal.role == "exploration":
            explorations += 1
            name = "exp" if explorations == 1 else f"exp{explorations}"
        method = proposal.method or DEFAULT_METHOD
        # The configured parameters are those of the configured method.
        under = DEFAULT_PARAMETERS if method == DEFAULT_METHOD else {}
        for step, variant in enumerate(proposal.variants(), 1):
            child = f"model-{generation}-{name}" + (f"-{step}" if proposal.sweep else "")
            parameters = {**under, **variant}
            recipe = json.dumps([method, proposal.parents, parameters], sort_keys=True)
            merge = Merge(child, proposal.parents, method, parameters)
            yield _Child(merge, proposal.role, recipe)


def _check(decision: object, population: Population) -> None:
    """Raises ValueError saying what is wrong with it."""
    if not isinstance(decision, Decision):
        raise ValueError(f"the policy answered a {type(decision).__name__}, not a Decision")
    Decision.read(json.dumps(decision.to_json(), allow_nan=False))  # it can be recorded
    names = {member.name for member in population.members}
    for proposal in decision.merges:
        if unknown := [name for name in proposal.parents if name not in names]:
            raise ValueError(
                f"the policy proposed to merge {', '.join(map(str, unknown))}, "
                "which the population does not have"
            )
        if len(set(proposal.parents)) != len(proposal.parents) or len(proposal.parents) < 2:
            raise ValueError(f"the policy proposed to merge {', '.join(proposal.parents)} alone")
    if unknown := [name for name in decision.top if name not in names]:
        raise ValueError(f"the policy's top names {', '.join(map(str, unknown))}, who is not there")


def _matrix(values: Array) -> Matrix:
    """NaN becomes None; only where there is one, for there are many matrices."""
    rows = values.tolist()
    if not math.isnan(values.sum()):
        return tuple(map(tuple, rows))
    return tuple(tuple(None if math.isnan(x) else x for x in row) for row in rows)


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _or_none(score: float) -> float | None:
    return None if math.isnan(score) else score


def _line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if type(error) is ValueError else f"{type(error).__name__}: {words}"
