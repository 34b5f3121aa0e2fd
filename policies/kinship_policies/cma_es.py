"""
CMA-ES over merge coefficients: *Evolutionary Optimization of Model Merging Recipes*
(arXiv 2403.13187) in parameter space, as mergekit-evolve does it, through PyPI `cma`.

The start is 1/n each with sigma 1/6, as there. What is different here:

- One coefficient per model, not per layer or tensor: evaluations are few.
- The optimiser is made anew for each decision and told every generation of before: the members'
  recorded coefficients and scores. Each generation's draws are seeded by its number.
- Coefficients of `linear` are kept within 0 and 1, and divided by their sum when merged;
  those of `task_arithmetic` are free, and scale the deltas.
- A child that was lost, or that the budget did not allow, is left out of what is told; of a
  generation with fewer than three the optimiser learns nothing.
- The best k fine-tunes are what is combined: if a newcomer is one of them, the search begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import cma  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.policy import Decision, Member, Population, Proposal
from kinship_policies.reasons import decision, hindrance, in_words, one

__all__ = ["CmaEs"]

# With fewer, cma refuses to update.
_FEWEST = 3

Weights = tuple[float, ...]


class CmaEs(BaseModel):
    """
    Searches the coefficients of one merge of the best fine-tunes.

    Attributes:
        k: How many fine-tunes are merged, the best.
        method: What the coefficients mean: shares of the models, or of their deltas.
        sigma: The first step size.
        popsize: Merges per generation; None for 4 + 3 ln k.
        generations: The last generation; the optimiser may stop before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    k: int = Field(default=3, ge=2, le=100)
    method: Literal["linear", "task_arithmetic"] = "linear"
    sigma: float = Field(default=0.1667, gt=0, le=1)
    popsize: int | None = Field(default=None, ge=4)
    generations: int = Field(default=20, ge=1)

    def propose(self, population: Population) -> Decision:
        """The optimiser's next candidates, after it was told all earlier ones."""
        stop = hindrance(population, self.generations)
        fine_tunes = (member.name for member in population.members if not member.parents)
        founders = population.best(self.k, among=fine_tunes)
        if stop is None and len(founders) < 2:
            stop = in_words(population, "a search starts from two fine-tunes, and there are fewer")
        if stop is not None:
            return decision(population, (), stop)
        search = _Search(len(founders), self.sigma, self.popsize, bounded=self.method == "linear")
        told = self._tell(search, population, founders)
        if ended := search.stop():
            words = f"the optimiser stopped after {told} merges: {ended}"
            return decision(population, (), in_words(population, words))
        candidates = search.ask(population.chance())
        merges = [
            self._merge(population, founders, weights, told, search.sigma)
            for weights in dict.fromkeys(candidates)
            if self.method != "linear" or sum(weights) > 0
        ]
        return decision(population, merges, in_words(population, "the candidates are all 0"))

    def _tell(self, search: _Search, population: Population, founders: tuple[str, ...]) -> int:
        """Replays the generations that were made; how many merges they had."""
        generations: dict[int, dict[Weights, float]] = {}
        for member in population.members:
            if member.parents == founders and member.method == self.method:
                known = generations.setdefault(member.generation, {})
                known[_weights(member)] = member.score
        for generation, known in sorted(generations.items()):
            search.tell(np.random.default_rng([population.seed, generation]), known)
        return sum(len(known) for known in generations.values())

    def _merge(
        self,
        population: Population,
        founders: tuple[str, ...],
        weights: Weights,
        told: int,
        sigma: float,
    ) -> Proposal:
        parts = ", ".join(
            f"{weight:.3g} of {one(population, name)}"
            for weight, name in zip(weights, founders, strict=True)
        )
        reason = f"coefficients drawn with step size {sigma:.3g} after {told} merges: {parts}"
        parameters = {"weight": list(weights), "normalize": self.method == "linear"}
        return Proposal(founders, "pair", reason, self.method, parameters)


class _Search:
    """cma's optimiser, each of whose draws is from the generator given."""

    def __init__(self, n: int, sigma: float, popsize: int | None, *, bounded: bool) -> None:
        self._chance = np.random.default_rng(0)
        options: dict[str, Any] = {
            "randn": lambda *shape: self._chance.standard_normal(shape),
            "seed": math.nan,  # which leaves numpy's own generator alone
            "verbose": -9,
            "bounds": [0, 1] if bounded else None,
            "popsize": popsize or 4 + int(3 * math.log(n)),
        }
        self._strategy = cma.CMAEvolutionStrategy([1 / n] * n, sigma, options)

    @property
    def sigma(self) -> float:
        return float(self._strategy.sigma)

    def ask(self, chance: np.random.Generator) -> list[Weights]:
        """Candidates, rounded as they are recorded."""
        return [_rounded(x) for x in self._ask(chance)]

    def _ask(self, chance: np.random.Generator) -> list[NDArray[np.float64]]:
        self._chance = chance
        return list(self._strategy.ask())

    def tell(self, chance: np.random.Generator, known: Mapping[Weights, float]) -> None:
        """Asks again what a generation asked, and tells its scores; higher is better."""
        told = [
            (x, -known[_rounded(x)])
            for x in self._ask(chance)
            if math.isfinite(known.get(_rounded(x), math.nan))
        ]
        if len(told) >= _FEWEST:
            self._strategy.tell([x for x, _ in told], [loss for _, loss in told])

    def stop(self) -> str:
        """Which of cma's conditions for an end are met, in words; empty for none."""
        met = self._strategy.stop()
        return ", ".join(f"{name} {value}" for name, value in sorted(met.items()))


def _rounded(x: NDArray[np.float64]) -> Weights:
    return tuple(round(float(value), 6) for value in x)


def _weights(member: Member) -> Weights:
    """The coefficients a member was made with; empty where they are not plain numbers."""
    weights = member.parameters.get("weight")
    numbers = isinstance(weights, list | tuple) and all(isinstance(w, int | float) for w in weights)
    return tuple(float(weight) for weight in weights) if numbers and weights else ()
