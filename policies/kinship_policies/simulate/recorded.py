"""A landscape of what was really merged: merges on record answer, others are not known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kinship_policies.policy import Fact
from kinship_policies.simulate.landscape import (
    DEFAULT_METHOD,
    DEFAULT_PARAMETERS,
    Array,
    Merge,
    Model,
)

__all__ = ["Kinships", "Record", "Recorded", "Relations", "pair"]

Pair = tuple[str, str]
Kinships = Mapping[Pair, float | None]


def pair(a: str, b: str) -> Pair:
    return min(a, b), max(a, b)


@dataclass(frozen=True)
class Record:
    """A merge that was really made."""

    model: Model
    parents: tuple[str, ...]
    method: str = DEFAULT_METHOD
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_PARAMETERS))


class Relations:
    """Kinships on record, and no others."""

    def __init__(self, known: Kinships) -> None:
        self._known = known

    def length(self, name: str) -> float | None:  # noqa: ARG002 - others know it
        """Of a model's delta."""
        return None

    def kin(self, a: str, b: str) -> float | None:
        return 1.0 if a == b else self._known.get(pair(a, b))

    def descends(self, child: str, parents: Sequence[str]) -> None:
        """Told of every child."""


class Recorded:
    """
    Merges by recipe; of two records of one, the first. Under every seed it is the same world.

    Args:
        founders: In the population from the first generation on, whenever they came in truth.
        relations: Makes the kinships of one world.
    """

    truth = None
    varies = False
    usual_seeds = 1
    most_seeds = None

    def __init__(
        self,
        title: str,
        founders: Sequence[Model],
        records: Sequence[Record],
        relations: type[Relations],
        known: Kinships,
    ) -> None:
        self.title = title
        self._founders = tuple(sorted(founders, key=lambda model: model.name))
        self._children: dict[str, Model] = {}
        for record in records:
            recipe = _recipe(record.parents, record.method, record.parameters)
            self._children.setdefault(recipe, record.model)
        self._relations, self._known = relations, known

    def world(self, seed: int, uses: frozenset[Fact]) -> _World:  # noqa: ARG002 - all the same
        relations = self._relations(self._known)
        return _World(self._founders, self._children, relations, samples="samples" in uses)


class _World:
    def __init__(
        self,
        founders: Sequence[Model],
        children: Mapping[str, Model],
        relations: Relations,
        *,
        samples: bool,
    ) -> None:
        self._children, self._relations, self._samples = children, relations, samples
        self.founders = [self._shown(model) for model in founders]

    def merge(self, merge: Merge) -> Model | None:
        child = self._children.get(_recipe(merge.parents, merge.method, merge.parameters))
        if child is None:
            return None
        self._relations.descends(child.name, merge.parents)
        return self._shown(child)

    def kinship(self, names: Sequence[str]) -> Array:
        kins = [[self._relations.kin(a, b) for b in names] for a in names]
        # None becomes NaN.
        return np.array(kins, dtype=float).reshape(len(names), len(names))

    def layers(self, names: Sequence[str]) -> Array:
        return np.empty((0, len(names), len(names)))

    def true(self, name: str) -> float | None:  # noqa: ARG002 - there is the record only
        return None

    def _shown(self, model: Model) -> Model:
        samples = model.samples if self._samples else {}
        return replace(model, length=self._relations.length(model.name), samples=samples)


def _recipe(parents: Sequence[str], method: str, parameters: Mapping[str, Any]) -> str:
    """The same text for recipes that make the same weights."""
    symmetric = _symmetric(method, parameters)
    order = sorted(parents) if symmetric else list(parents)
    plain = {name: _number(value) for name, value in parameters.items()}
    if symmetric and method == "linear":
        plain = {"weight": "equal"}
    return json.dumps([method, order, plain], sort_keys=True, default=str)


def _symmetric(method: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the order of the parents makes no difference: all have the same share."""
    if method == "slerp":
        return bool(parameters.get("t") == 0.5)
    weight = parameters.get("weight")
    if method != "linear" or weight is None or parameters.get("normalize", True) is not True:
        return False
    weights = list(weight) if isinstance(weight, list | tuple) else [weight]
    return all(isinstance(w, int | float) and w == weights[0] != 0 for w in weights)


def _number(value: Any) -> Any:
    """1 and 1.0 are the same setting."""
    if isinstance(value, Mapping):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_number(item) for item in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole else value
