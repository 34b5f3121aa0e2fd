"""
Random pairs, the baseline: what AutoMerger does (github.com/mlabonne/automerger).

AutoMerger draws two models of a leaderboard's best and a method, slerp or dare_ties, without end.
Here pairs are drawn from the whole population, its own merges included, none twice, and the
method is the configured one.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.policy import Decision, Population, Proposal
from kinship_policies.reasons import decision, hindrance, kinship_in_words, nothing_left, one

__all__ = ["RandomPairs"]


class RandomPairs(BaseModel):
    """
    Merges pairs drawn at random from those not merged before.

    Attributes:
        pairs: How many are drawn in a generation.
        generations: The last generation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    pairs: int = Field(default=3, ge=1)
    generations: int = Field(default=20, ge=1)

    def propose(self, population: Population) -> Decision:
        """Pairs drawn with the seed of this generation."""
        stop = hindrance(population, self.generations)
        if stop is not None:
            return decision(population, (), stop)
        free = population.unmerged()
        drawn = population.chance().permutation(len(free))[: self.pairs]
        merges = [_merge(population, free[place].tolist(), len(free)) for place in drawn]
        return decision(population, merges, nothing_left(population))


def _merge(population: Population, pair: list[int], free: int) -> Proposal:
    names = (population.members[place].name for place in pair)
    better, worse = population.best(2, among=names)
    reason = (
        f"drawn from {free} pairs not merged before: {one(population, better)} "
        f"and {one(population, worse)}; {kinship_in_words(population, better, worse)}"
    )
    return Proposal((better, worse), "pair", reason)
