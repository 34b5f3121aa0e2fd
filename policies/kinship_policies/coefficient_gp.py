"""
Searches all weighted sums of the fine-tunes by what every model measured so far says of them.

Ours. A merge by task arithmetic is a point in the space that `coefficient_space` spans by kinships
and lengths; `gaussian_process` learns each task's score there, from fine-tunes and merges of any
method. Proposed is the point of the largest expected improvement (Jones, Schonlau and Welch,
*Efficient Global Optimization of Expensive Black-Box Functions*, 1998), as task arithmetic of 2 to
8 parents whose weights need not sum to 1. It improves on the model of the best expectation, not on
the one that measured best, which may be lucky.

The cost of a merge is its evaluation, and all answer the same documents: expected improvement per
evaluation ranks as that per second would. Seconds themselves are no facts for a policy, whose
decisions must not depend on the machine.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.coefficient_space import Promise, Space
from kinship_policies.policy import Decision, Fact, Population, Proposal
from kinship_policies.reasons import decision, hindrance, in_words

__all__ = ["CoefficientGP"]


class CoefficientGP(BaseModel):
    """
    Proposes the weighted sums of fine-tunes that may best beat the best.

    Attributes:
        merges: Per generation. One by one teaches most; more keep several workers busy, the later
            ones chosen as if the earlier ones had done as expected.
        max_founders: How many fine-tunes may be in a merge, the best of all.
        max_parents: Of a merge; by way of earlier merges it may have more fine-tunes in it.
        min_improvement: Stop when no merge's expected improvement reaches this, in units of the
            score: what makes an evaluation worth it.
        generations: The last generation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    uses: ClassVar[frozenset[Fact]] = frozenset({"samples"})

    merges: int = Field(default=1, ge=1)
    max_founders: int = Field(default=32, ge=2)
    max_parents: int = Field(default=8, ge=2)
    min_improvement: float = Field(default=0.0005, ge=0)
    generations: int = Field(default=100, ge=1)

    def propose(self, population: Population) -> Decision:
        """The most promising merges, or why none promises enough."""
        stop = hindrance(population, self.generations)
        if stop is not None:
            return decision(population, (), stop)
        space = Space.of(population, self.max_founders)
        if space is None:
            words = "nothing to learn from: fewer than two fine-tunes have a score"
            return decision(population, (), in_words(population, words))
        merges: list[Proposal] = []
        while len(merges) < min(self.merges, population.budget or self.merges):
            promise = space.search(population.chance(len(merges)), self.max_parents)
            if promise is None or promise.improvement < self.min_improvement:
                break
            merges.append(_proposal(population, space, promise))
            space = space.believing(promise)
        return decision(population, merges, "" if merges else self._enough(population, promise))

    def _enough(self, population: Population, promise: Promise | None) -> str:
        most = "the most promising were made before"
        if promise is not None:
            most = f"at the most {promise.improvement:.2g}"
        words = (
            f"no merge promises {self.min_improvement:g}: {most}; this is what "
            f"{len(population.members)} models teach, not proof that none would gain"
        )
        return in_words(population, words)


def _proposal(population: Population, space: Space, promise: Promise) -> Proposal:
    """The best parent first: its tokenizer is carried on."""
    parents = population.best(len(promise.weights), among=promise.weights)
    reason = (
        f"expected score {promise.mean:.4g} +- {promise.deviation:.2g}, expected improvement on "
        f"the best expectation ({space.best:.4g}) {promise.improvement:.2g}; learnt from "
        f"{len(space.points)} models"
    )
    weights = {"weight": [promise.weights[name] for name in parents]}
    return Proposal(parents, "pair", reason, "task_arithmetic", weights)
