"""
Natural niches: M2N2, *Competition and Attraction Improve Model Fusion* (arXiv 2508.16204).

Models compete for documents: a document that many solve is worth little to each. A model is
mated with the one that solves what it does not. What is different here:

- A generation has several children of the same archive; the paper puts each child into it at once.
- The archive is drawn up anew for each decision, generation after generation, from the members'
  samples. Fine-tunes count as generation 0, whenever they came; of more fine-tunes than the
  archive holds, the fittest are taken in one go.
- The capacity of every document is 1, and documents of all selection tasks count alike. A score
  below 0 or unknown counts as 0.
- The split lies between two layers, not at any parameter; `gradient` says how it is written.
- Models are not initialised at random and not mutated.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.gradient import places
from kinship_policies.policy import Decision, Fact, Member, Population, Proposal
from kinship_policies.reasons import decision, hindrance, in_words, one

__all__ = ["M2N2", "attraction", "shares"]

Array = NDArray[np.float64]


class M2N2(BaseModel):
    """
    Merges the fit with those who complement them, at a random ratio that flips at a random layer.

    Attributes:
        population: How many models take part, the fittest.
        alpha: How much models compete: 0 not at all, 1 shares each document out.
        children: How many merges a generation makes.
        layers: How many layers the models have; None where that is not known.
        generations: The last generation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    uses: ClassVar[frozenset[Fact]] = frozenset({"samples"})

    population: int = Field(default=20, ge=2)
    alpha: float = Field(default=1.0, ge=0, le=10)
    children: int = Field(default=3, ge=1)
    layers: int | None = Field(default=None, ge=1)
    generations: int = Field(default=30, ge=1)

    def propose(self, population: Population) -> Decision:
        """Children of parents drawn with the seed of this generation."""
        stop = hindrance(population, self.generations)
        members, scores = _documents(population)
        if stop is None and len(members) < 2:
            stop = in_words(population, _missing(population, len(members)))
        if stop is not None:
            return decision(population, (), stop)
        archive = self._archive(np.array([member.generation for member in members]), scores)
        chosen, worth = [members[place] for place in archive], shares(scores[archive], self.alpha)
        chance = population.chance()
        merges = [self._child(population, chosen, worth, chance) for _ in range(self.children)]
        return decision(population, merges, "no children are asked for")

    def _archive(self, generations: NDArray[np.int_], scores: Array) -> list[int]:
        """Places of those who take part, after the least fit have left, one by one."""
        alive: list[int] = []
        for generation in np.unique(generations):
            alive += np.flatnonzero(generations == generation).tolist()
            if generation == 0:
                # Rounded, so that those who are alike are alike to the last bit; the first stay.
                order = np.argsort(-self._fitness(scores[alive]), kind="stable")
                alive = sorted(alive[place] for place in order[: self.population])
            while len(alive) > self.population:
                fitness = self._fitness(scores[alive])
                del alive[len(alive) - 1 - int(np.argmin(fitness[::-1]))]
        return alive

    def _fitness(self, scores: Array) -> Array:
        fitness: Array = np.round(shares(scores, self.alpha).sum(1), 9)
        return fitness

    def _child(
        self,
        population: Population,
        archive: list[Member],
        worth: Array,
        chance: np.random.Generator,
    ) -> Proposal:
        fitness = worth.sum(1)
        first = int(chance.choice(len(archive), p=_odds(fitness)))
        drawn_to = attraction(worth, first)
        others = np.arange(len(archive)) != first
        odds = _odds(drawn_to if drawn_to.any() else np.where(others, fitness, 0.0), others)
        second = int(chance.choice(len(archive), p=odds))
        ratio = round(float(chance.random()), 4)
        count = places(population, self.layers)
        split = int(chance.integers(1, count)) if count > 1 else 1
        ratios = [ratio] * split + [round(1 - ratio, 4)] * (count - split)
        a, b = archive[first].name, archive[second].name
        reason = (
            f"{one(population, a)} was drawn by its fitness {fitness[first]:.4g} of "
            f"{fitness.sum():.4g} among {len(archive)}, {one(population, b)} by its attraction "
            f"{drawn_to[second]:.4g} of {drawn_to.sum():.4g}; "
            f"ratio {ratio:g} before place {split} of {count} in depth, {1 - ratio:.4g} after"
        )
        return Proposal((a, b), "pair", reason, "slerp", {"t": ratios})


def shares(scores: Array, alpha: float) -> Array:
    """
    What each document is worth to each model, f_ij = s_ij / z_j, z_j = (sum_i s_ij)^alpha.

    Args:
        scores: At least 0, (models, documents). A document that nobody solves has z_j = 1.

    Returns:
        (models, documents); a model's fitness is its row's sum.
    """
    total = scores.sum(0)
    worth: Array = scores / np.where(total > 0, total, 1.0) ** alpha
    return worth


def attraction(worth: Array, first: int) -> Array:
    """How much of worth each model adds to the first, sum_j max(0, f_Bj - f_Aj), (models,)."""
    added: Array = np.maximum(worth - worth[first], 0).sum(1)
    return added


def _odds(weights: Array, among: NDArray[np.bool_] | None = None) -> Array:
    """Weights as probabilities; where all are 0, everybody among these is as likely."""
    if not weights.any():
        weights = np.ones(len(weights)) if among is None else among.astype(np.float64)
    odds: Array = weights / weights.sum()
    return odds


def _documents(population: Population) -> tuple[list[Member], Array]:
    """Members whose samples are those of the best who has any, and their scores, one row each."""
    best = (population[name] for name in population.best(len(population.members)))
    model = next((_shape(member) for member in best if _shape(member)), ())
    members = [member for member in population.members if model and _shape(member) == model]
    rows = [[x for task, _ in model for x in member.samples[task]] for member in members]
    scores = np.array(rows, dtype=np.float64).reshape(len(members), sum(n for _, n in model))
    return members, np.clip(np.nan_to_num(scores, nan=0.0), 0.0, None)


def _shape(member: Member) -> tuple[tuple[str, int], ...]:
    """Tasks and their numbers of documents; empty without documents."""
    return tuple((task, len(scores)) for task, scores in sorted(member.samples.items()) if scores)


def _missing(population: Population, known: int) -> str:
    return (
        f"niches need every document's score and only {known} of {len(population.members)} members "
        "have the same documents scored; evaluate with samples, or choose another policy"
    )
