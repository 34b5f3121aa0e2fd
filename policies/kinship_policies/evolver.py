"""
Differential evolution of models: Evolver, *Knowledge Fusion By Evolving Weights of Language
Models* (arXiv 2406.12208).

Every individual is crossed with a mate, x = (1 - F) x_i + F x_r on a random mask, and stays
unless the child is better. What is different here:

- The mask is drawn per kind of module and group of layers, not per element, so that a child stays
  a linear combination per tensor. `gradient` says how sharp the groups' edges are.
- All of a generation are judged at once; there a child takes its parent's place before the next
  individual is crossed.
- The mate is always random, or always the best; the authors' code draws which of the two.
- An individual is a fine-tune, and later whoever took its place: the best of its line. Losers stay
  in the population; they do not take part.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.gradient import places, staircase
from kinship_policies.policy import Decision, Population, Proposal
from kinship_policies.reasons import decision, hindrance, in_words, one

__all__ = ["KINDS", "Evolver"]

# Parts of tensors' names in the common architectures, the first that fits decides; whatever fits
# none of them (embeddings, the head, other architectures' modules) is one kind more.
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm")

# Where there are few crosses to draw from, they may all be made.
_DRAWS = 20


class Evolver(BaseModel):
    """
    Crosses every individual with a mate, and goes on with the better of parent and child.

    Attributes:
        population: How many individuals there are: lines of the best fine-tunes.
        factor: F, how far a crossed part moves to the mate.
        rate: CR, how likely each part is crossed; at least one is.
        mate: `random`, or the `best` individual (the best itself takes the next best).
        groups: Into how many groups of layers the mask is divided.
        layers: How many layers the models have; None where that is not known.
        generations: The last generation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    population: int = Field(default=6, ge=2)
    factor: float = Field(default=0.5, gt=0, le=1)
    rate: float = Field(default=0.5, gt=0, le=1)
    mate: Literal["random", "best"] = "random"
    groups: int = Field(default=4, ge=1, le=64)
    layers: int | None = Field(default=None, ge=1)
    generations: int = Field(default=15, ge=1)

    def propose(self, population: Population) -> Decision:
        """A child for every individual, the best first, drawn with the seed of this generation."""
        stop = hindrance(population, self.generations)
        individuals = _individuals(population, self.population)
        if stop is None and len(individuals) < 2:
            stop = in_words(population, "evolution starts from two fine-tunes, and there are fewer")
        if stop is not None:
            return decision(population, (), stop)
        ranked = population.best(len(individuals), among=individuals)
        chance = population.chance()
        children = [self._child(population, name, ranked, chance) for name in ranked]
        merges = [child for child in children if child is not None]
        done = in_words(population, "every cross that was drawn was made before", ranked)
        return decision(population, merges, done)

    def _child(
        self,
        population: Population,
        name: str,
        ranked: tuple[str, ...],
        chance: np.random.Generator,
    ) -> Proposal | None:
        """A cross that was not made before; None if so many draws find none."""
        others = [other for other in ranked if other != name]
        made = [m for m in population.members if m.method == "linear" and m.parents[:1] == (name,)]
        for _ in range(_DRAWS):
            mate = others[int(chance.integers(len(others))) if self.mate == "random" else 0]
            mask = chance.random((len(KINDS) + 1, self.groups)) < self.rate
            forced = tuple(chance.integers(mask.shape))
            mask[forced] |= not mask.any()
            child = self._cross(population, name, mate, mask)
            known = (m.parents == child.parents and m.parameters == child.parameters for m in made)
            if not any(known):
                return child
        return None

    def _cross(
        self, population: Population, name: str, mate: str, mask: NDArray[np.bool_]
    ) -> Proposal:
        count = places(population, self.layers)
        reason = (
            f"{one(population, name)} crossed with {one(population, mate)}, its {self.mate} mate, "
            f"in {mask.sum()} of {mask.size} parts by {self.factor:g}"
        )
        weight = [self._weight(mask, count, of_mate=of_mate) for of_mate in (False, True)]
        return Proposal((name, mate), "pair", reason, "linear", {"weight": weight})

    def _weight(
        self, mask: NDArray[np.bool_], count: int, *, of_mate: bool
    ) -> list[dict[str, Any]]:
        """One parent's weights: a condition per kind of module, each over the groups of layers."""
        inside, outside = (self.factor, 0.0) if of_mate else (1 - self.factor, 1.0)
        conditions = []
        for kind, row in zip((*KINDS, None), mask, strict=True):
            value = staircase([inside if crossed else outside for crossed in row], count)
            conditions.append(
                {"value": value} if kind is None else {"filter": kind, "value": value}
            )
        return conditions


def _individuals(population: Population, count: int) -> list[str]:
    """Who stands for the best fine-tunes: each itself, or the last child that beat its parent."""
    founders = population.best(count, among=(m.name for m in population.members if not m.parents))
    children: dict[str, list[str]] = {}
    for member in sorted(population.members, key=lambda m: (m.generation, m.name)):
        if member.method == "linear" and len(member.parents) == 2:
            children.setdefault(member.parents[0], []).append(member.name)
    return [_last(population, name, children) for name in founders]


def _last(population: Population, name: str, children: dict[str, list[str]]) -> str:
    better: str | None = name
    while better is not None:
        name = better
        beaten = (c for c in children.get(name, ()) if population.scores_above(c, name))
        better = next(beaten, None)
    return name
