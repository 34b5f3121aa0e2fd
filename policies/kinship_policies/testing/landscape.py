"""A small world for policies to evolve in, made of points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from kinship_policies.policy import Decision, Fact, Member, Past, Policy, Population

__all__ = ["ConformanceError", "Landscape", "Vector", "evolve", "hold"]

Vector = tuple[float, ...]

_DOCUMENTS = 16


class ConformanceError(AssertionError):
    """A policy broke a rule that the daemon relies on."""


class Landscape:
    """
    A small world to evolve in: models are points, a merge is a mean of its parents.

    The mean is weighted where the recipe says how: by slerp's t, weights, or lambda; settings that
    change over the depth count by their mean. There are 16 documents, right near their own optimum.

    Args:
        founders: Name -> delta from the base; scores are minus the squared distance to `optimum`.
    """

    def __init__(self, founders: Mapping[str, Vector], optimum: Vector) -> None:
        self._optimum = optimum
        self._deltas: dict[str, Vector] = {}
        self._members: dict[str, Member] = {}
        for name, delta in sorted(founders.items()):
            self.add(name, delta)

    def add(
        self,
        name: str,
        delta: Vector,
        generation: int = 0,
        parents: Iterable[str] = (),
        method: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """A fine-tune, or with its parents and recipe a merge."""
        score = -_distance(delta, self._optimum)
        self._deltas[name] = delta
        self._members[name] = Member(
            name=name,
            score=score,
            tasks={"task": score},
            generation=generation,
            parents=tuple(parents),
            method=method,
            parameters=dict(parameters or {}),
            length=math.hypot(*delta),
            stderr=0.1,
            documents=_DOCUMENTS,
        )

    def merge(
        self,
        parents: tuple[str, ...],
        generation: int,
        method: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> str:
        """Adds the child and returns its name."""
        name = f"g{generation}-{len(self._members)}"
        shares = _shares(len(parents), method, parameters or {})
        columns = zip(*(self._deltas[parent] for parent in parents), strict=True)
        delta = tuple(sum(x * s for x, s in zip(c, shares, strict=True)) for c in columns)
        self.add(name, delta, generation, parents, method or "mean", parameters)
        return name

    def population(
        self,
        generation: int,
        previous: Decision | None,
        newcomers: Iterable[str],
        uses: frozenset[Fact] = frozenset(),
        history: Iterable[Past] = (),
        budget: int | None = None,
    ) -> Population:
        """Everyone as a policy that uses these facts sees them; the kinship is the cosine."""
        members = tuple(member for _, member in sorted(self._members.items()))
        merged = [pair for m in members for pair in combinations(sorted(m.parents), 2)]
        deltas = [self._deltas[member.name] for member in members]
        if "samples" in uses:
            members = tuple(
                replace(member, samples={"task": self._documents(delta)})
                for member, delta in zip(members, deltas, strict=True)
            )
        layers = zip(*deltas, strict=True) if "layers" in uses else ()
        return Population(
            generation=generation,
            members=members,
            kinship=_cosines(deltas),
            merged=frozenset((a, b) for a, b in merged),
            newcomers=tuple(sorted(newcomers)),
            previous_top=None if previous is None else previous.top,
            saturated=0 if previous is None else previous.saturated,
            history=tuple(history),
            budget=budget,
            layers=tuple(_cosines([(x,) for x in layer]) for layer in layers),
        )

    def _documents(self, delta: Vector) -> tuple[float, ...]:
        optima = (
            tuple(o + 0.5 * math.cos(3 * j + i) for i, o in enumerate(self._optimum))
            for j in range(_DOCUMENTS)
        )
        return tuple(float(_distance(delta, optimum) < 0.6) for optimum in optima)


def _distance(delta: Vector, optimum: Vector) -> float:
    return sum((x - o) ** 2 for x, o in zip(delta, optimum, strict=True))


def _cosines(deltas: list[Vector]) -> tuple[tuple[float | None, ...], ...]:
    points = np.array(deltas, dtype=np.float64).reshape(len(deltas), -1)
    norms = np.sqrt((points**2).sum(1))
    units = points / np.where(norms > 0, norms, np.nan)[:, None]
    # Not as a matrix product: a cosine must not depend on who else is there.
    rows = [(units * unit).sum(1).tolist() for unit in units]
    return tuple(tuple(None if math.isnan(x) else x for x in row) for row in rows)


def _shares(parents: int, method: str | None, parameters: Mapping[str, Any]) -> list[float]:
    """Each parent's part in a child."""
    scale = _mean(parameters.get("lambda", 1.0))
    if method == "extrapolation":
        if parents != 2:
            raise ConformanceError(f"extrapolation goes from one parent to another, not {parents}")
        return [1 + scale, -scale]
    if "t" in parameters:
        return [1 - _mean(parameters["t"]), _mean(parameters["t"])]
    each = parameters.get("weight", 1.0)
    if not isinstance(each, list | tuple):
        each = [each] * parents  # one setting for all
    weights = [_mean(weight) for weight in each]
    # Weights that cancel out have no mean: as they stand, they give a difference.
    total = sum(weights) or 1.0
    return [scale * weight / total for weight in weights]


def _mean(setting: Any) -> float:
    if isinstance(setting, Mapping):
        return _mean(setting["value"])
    if isinstance(setting, list | tuple):
        return sum(_mean(each) for each in setting) / len(setting)
    return float(setting)


def evolve(
    policy: Policy,
    landscape: Landscape,
    generations: int = 8,
    arrivals: Mapping[str, Vector] | None = None,
    budget: int | None = None,
) -> Iterator[tuple[Population, Decision]]:
    """
    Each generation's population and the policy's decision on it, until it stops.

    Args:
        policy: Asked once a generation; what it proposes is merged into the landscape.
        landscape: Holds the founders, in the end also the merges.
        generations: At most so many.
        arrivals: Fine-tunes that are admitted when the policy has stopped for the first time.
        budget: How many merges there may be in each generation.
    """
    previous: Decision | None = None
    waiting, newcomers, history = dict(arrivals or {}), list[str](), list[Past]()
    for generation in range(1, generations + 1):
        population = landscape.population(
            generation, previous, newcomers, _uses(policy), history, budget
        )
        previous = policy.propose(population)
        yield population, previous
        if previous.stop is not None and not waiting:
            return
        names = {member.name for member in population.members}
        children = []
        for merge in previous.merges:
            known = names.issuperset(merge.parents)
            hold(known, f"merges {merge.parents}, who are not all there", population)
            children += [
                landscape.merge(merge.parents, generation, merge.method, parameters)
                for parameters in merge.variants()
            ]
        past = Past(generation, previous.top, previous.top_mean_kinship, tuple(children))
        history.append(past)
        newcomers = []
        if previous.stop is not None:
            newcomers = sorted(waiting)
            while waiting:
                landscape.add(*waiting.popitem())


def _uses(policy: Policy) -> frozenset[Fact]:
    return getattr(policy, "uses", frozenset())


def hold(rule: bool, words: str, population: Population) -> None:
    """Complain of a policy that did these words, unless it kept the rule."""
    if not rule:
        names = ", ".join(member.name for member in population.members) or "nobody"
        raise ConformanceError(f"generation {population.generation} of {names}: the policy {words}")
