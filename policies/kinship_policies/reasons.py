"""Words for why a merge is made, or none is; shared by the policies."""

from __future__ import annotations

from collections.abc import Iterable

from kinship_policies.policy import Decision, Population, Proposal

__all__ = [
    "SHOWN",
    "decision",
    "hindrance",
    "in_words",
    "kinship_in_words",
    "nothing_left",
    "one",
    "scored",
    "spent",
]

# How many of the best a policy calls its top that has no top of its own: the k of the top-k
# policies, so that the kinship of the tops can be compared.
SHOWN = 3


def decision(population: Population, merges: Iterable[Proposal], otherwise: str) -> Decision:
    """As many of the merges as the budget allows; where none is left, a stop, `otherwise`."""
    top = population.best(SHOWN)
    kept = population.affordable(merges)
    stop = None if kept else otherwise
    return Decision(kept, top, population.mean_kinship(top), stop)


def hindrance(population: Population, generations: int | None = None) -> str | None:
    """Why nothing at all can be merged: too few models, no budget, or past the last generation."""
    if len(population.members) < 2:
        return nothing_left(population)
    if spent(population):
        return in_words(population, "the budget is spent: no more merges can be evaluated now")
    if generations is not None and population.generation > generations:
        return in_words(population, f"generation {generations} was to be the last")
    return None


def spent(population: Population) -> bool:
    """Whether the budget allows no merge."""
    return population.budget is not None and population.budget <= 0


def nothing_left(population: Population, top: tuple[str, ...] = ()) -> str:
    """Why there is nothing to merge: too few models, or all their pairs are merged."""
    if len(population.members) < 2:
        admitted = ", ".join(member.name for member in population.members) or "nobody"
        return f"nothing to merge: it takes two models and {admitted} is admitted"
    return in_words(population, "nothing left to merge: every pair was merged before", top)


def in_words(population: Population, words: str, names: tuple[str, ...] = ()) -> str:
    """The words, and in brackets these members' scores, or the best members'."""
    return f"{words} ({scored(population, names or population.best(SHOWN))})"


def one(population: Population, name: str) -> str:
    """A member and its score."""
    return f"{name} ({population[name].score:.4g})"


def scored(population: Population, names: Iterable[str]) -> str:
    """Members and their scores."""
    return ", ".join(f"{name} {population[name].score:.4g}" for name in names)


def kinship_in_words(population: Population, a: str, b: str) -> str:
    """The kinship of two members."""
    kin = population.kin(a, b)
    return "kinship (undefined)" if kin is None else f"kinship {kin:.3f}"
