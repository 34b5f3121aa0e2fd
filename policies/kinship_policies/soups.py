"""
Model soups (arXiv 2203.05482): plain means of fine-tunes, the baselines of every merge policy.

`Soup` is the uniform soup: one merge, one evaluation. `GreedySoup` adds fine-tunes one by one, the
best first, and keeps those with which the soup is no worse; it starts anew where a newcomer
changes the order.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.policy import Decision, Population, Proposal
from kinship_policies.reasons import decision, hindrance, in_words, one

__all__ = ["GreedySoup", "Soup"]

_METHOD = "linear"
_UNIFORM = {"weight": 1.0}


class Soup(BaseModel):
    """
    Merges all fine-tunes to their mean, once; again with newcomers.

    Attributes:
        models: How many fine-tunes, the best; None for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    models: int | None = Field(default=None, ge=2)

    def propose(self, population: Population) -> Decision:
        """The soup, or that it is made."""
        stop = hindrance(population)
        if stop is not None:
            return decision(population, (), stop)
        chosen = _fine_tunes(population, self.models)
        asked = any(past.merges for past in population.history) and not population.newcomers
        if len(chosen) < 2 or asked or _soup_of(population, chosen) is not None:
            words = f"done: the soup of {len(chosen)} fine-tunes is made"
            if len(chosen) < 2:
                words = "a soup takes two fine-tunes"
            return decision(population, (), in_words(population, words))
        reason = f"the mean of {len(chosen)} fine-tunes, {one(population, chosen[0])} the best"
        return decision(population, [_proposal(chosen, reason)], "")


class GreedySoup(BaseModel):
    """
    Adds fine-tunes to a soup, the best first, as long as it does not get worse.

    Attributes:
        models: How many fine-tunes have a turn, the best; None for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    models: int | None = Field(default=None, ge=2)

    def propose(self, population: Population) -> Decision:
        """The soup with the next fine-tune, or that all had their turn."""
        stop = hindrance(population)
        if stop is not None:
            return decision(population, (), stop)
        chosen = _fine_tunes(population, self.models)
        soup, taken = chosen[0] if chosen else "", list(chosen[:1])
        for name in chosen[1:]:
            made = _soup_of(population, [*taken, name])
            if made is None and not all(population.was_merged(each, name) for each in taken):
                reason = f"adds {one(population, name)} to the soup of {len(taken)}"
                reason = f"{reason}, {one(population, soup)}"
                return decision(population, [_proposal([*taken, name], reason)], "")
            # Where nothing came of it, it had its turn all the same.
            if made is not None and not population.scores_above(soup, made):
                soup, taken = made, [*taken, name]
        words = f"done: all {len(chosen)} fine-tunes had their turn, {len(taken)} are in the soup"
        return decision(population, (), in_words(population, words))


def _fine_tunes(population: Population, models: int | None) -> tuple[str, ...]:
    """The best of them, best first."""
    names = [member.name for member in population.members if not member.parents]
    return population.best(len(names) if models is None else models, among=names)


def _soup_of(population: Population, names: Sequence[str]) -> str | None:
    """The plain mean of exactly these, if it was made."""
    wanted = sorted(names)
    found = (
        member.name
        for member in population.members
        if member.method == _METHOD
        and dict(member.parameters) == _UNIFORM
        and sorted(member.parents) == wanted
    )
    return next(found, None)


def _proposal(names: Sequence[str], reason: str) -> Proposal:
    return Proposal(tuple(names), "pair", reason, _METHOD, _UNIFORM)
