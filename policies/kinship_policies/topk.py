"""
The two policies of *Exploring Model Kinship for Merging Large Language Models*
(arXiv 2410.12613 v3, Algorithm 1): merge the k best with each other, with or without exploration.

What is read otherwise, or added: the paper's text has k pairs of the k best, its algorithm all
C(k, 2), as here (at k = 3 the same). A partner for exploration that was merged with the best before
gives way to the next. `max_founders`, `patience` and `extrapolate` are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.policy import Decision, Population, Proposal
from kinship_policies.reasons import (
    hindrance,
    kinship_in_words,
    nothing_left,
    one,
    scored,
    spent,
)

__all__ = ["TopKGreedy", "TopKKinship"]

Pair = tuple[str, str]


class TopKGreedy(BaseModel):
    """
    Merges every pair of the k best, until the k best stay the same.

    Attributes:
        k: How many of the best are merged with each other.
        max_founders: How many fine-tunes the first generation pairs, and how many newcomers a later
            one takes up.
        early_stop: Stop when the mean pairwise kinship of the k best exceeds this (pcc or cosine,
            in [-1, 1]); None never does. It never forbids a single pair.
        patience: For how many decisions in a row it must.
        extrapolate: Where evolution would stop, first propose a + extrapolate * (a - b): a is the
            best, if it is a merge, and b its worse parent, if a is better (ExPO, arXiv 2404.16792,
            where b is what a was trained from). Once for each such pair; None never does.

    Where the budget does not allow all merges of a generation, exploration comes first: the pairs
    that are left open keep the generations after it from being taken for converged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    k: int = Field(default=3, ge=2)
    max_founders: int = Field(default=4, ge=2)
    early_stop: float | None = Field(default=None, ge=-1, le=1)
    patience: int = Field(default=1, ge=1)
    extrapolate: float | None = Field(default=None, gt=0, le=2)

    @property
    def keeps(self) -> int:
        """Scores of the others only put founders and newcomers in order."""
        return self.k

    def propose(self, population: Population) -> Decision:
        """The next generation's merges, or why evolution stops here."""
        if len(population.members) > 1 and spent(population):
            return self._wait(population)
        # Until there were two to merge, nothing has begun. Merges without a previous top are those
        # of another policy, which are gone on from.
        first = not population.merged and len(population.previous_top or ()) < 2
        founders = self._founders(population) if first else ()
        # The best of those that are paired, so that an unchanged top was surely merged throughout.
        top = population.best(self.k, among=founders if first else None)
        mean = population.mean_kinship(top)
        saturated = 0 if first else self._saturated(population, mean)
        stop = None if first else self._stop(population, top, mean, saturated)
        merges: list[Proposal] = []
        if stop is None:
            merges = (
                list(_pairs(population, founders, "founders"))
                if first
                else self._later(population, top)
            )
            stop = None if merges else nothing_left(population, top)
        if stop is not None:
            merges = self._beyond(population, stop)
        kept = _within_budget(population, merges)
        return Decision(kept, top, mean, None if kept else stop, saturated)

    def _wait(self, population: Population) -> Decision:
        """Nothing can be decided: what was chosen before stands."""
        top = _present(population, population.previous_top or ())
        mean, stop = population.mean_kinship(top), hindrance(population)
        return Decision((), top, mean, stop, population.saturated)

    def _beyond(self, population: Population, stop: str) -> list[Proposal]:
        """The step past the best and away from its worse parent, if there is one not yet made."""
        if self.extrapolate is None or not population.members:
            return []
        best = population[population.best(1)[0]]
        parents = population.best(len(best.parents), among=_present(population, best.parents))
        if not parents or not best.score > population[parents[-1]].score:
            return []
        pair = (best.name, parents[-1])
        made = (m.parents for m in population.members if m.method == "extrapolation")
        if pair in made:
            return []
        reason = (
            f"extrapolates: on from {one(population, pair[0])}, away from its worse parent "
            f"{one(population, pair[1])}, by {self.extrapolate:g} of the way; otherwise {stop}"
        )
        parameters = {"lambda": self.extrapolate}
        return [Proposal(pair, "exploration", reason, "extrapolation", parameters)]

    def _founders(self, population: Population) -> tuple[str, ...]:
        """The best, then always the one that is farthest from those chosen (lowest kinship)."""
        waiting = list(population.best(len(population.members)))  # so that ties go to the better
        chosen = waiting[:1]
        del waiting[:1]
        while waiting and len(chosen) < self.max_founders:
            farthest = min(waiting, key=lambda name: _nearness(population, name, chosen))
            waiting.remove(farthest)
            chosen.append(farthest)
        return population.best(len(chosen), among=chosen)

    def _saturated(self, population: Population, mean: float | None) -> int:
        if self.early_stop is None or mean is None or mean <= self.early_stop:
            return 0
        return population.saturated + 1

    def _stop(
        self, population: Population, top: tuple[str, ...], mean: float | None, saturated: int
    ) -> str | None:
        if population.newcomers:
            return None
        same_top = set(top) == set(population.previous_top or ())
        settled = same_top and not any(_pairs(population, top, "best"))
        if settled and not self._has_to_explore(population):
            same = f"converged: the {len(top)} best are the same as before"
            return f"{same} ({scored(population, top)})"
        if mean is not None and saturated >= self.patience:
            times = "" if saturated == 1 else f" for {saturated} decisions in a row"
            return (
                f"early stop: the mean kinship of the {len(top)} best is {mean:.3f}, "
                f"above {self.early_stop:g}{times} ({scored(population, top)})"
            )
        return None

    def _has_to_explore(self, population: Population) -> bool:  # noqa: ARG002
        """Whether it would be too early to stop although the top stayed the same."""
        return False

    def _later(self, population: Population, top: tuple[str, ...]) -> list[Proposal]:
        """From generation 2 on: the pairs of the top, then each newcomer with all of the top."""
        merges = list(_pairs(population, top, f"{len(top)} best"))
        taken = {_key(*merge.parents) for merge in merges}
        for newcomer in population.best(self.max_founders, among=population.newcomers):
            for other in top:
                if other == newcomer or _key(newcomer, other) in taken:
                    continue
                if not population.was_merged(newcomer, other):
                    taken.add(_key(newcomer, other))
                    merges.append(_welcome(population, newcomer, other, len(top)))
        return merges


class TopKKinship(TopKGreedy):
    """
    Merges every pair of the k best, and the best with a distant relative.

    Attributes:
        explore: From generation 2 on, the best is also merged with the member of the whole
            population that has the `lowest` kinship to it (the paper's v3 and its tables), the
            `highest` (v1's pseudo-code), or with `none`.
    """

    early_stop: float | None = Field(default=0.9, ge=-1, le=1)
    explore: Literal["lowest", "highest", "none"] = "lowest"

    def _later(self, population: Population, top: tuple[str, ...]) -> list[Proposal]:
        merges = super()._later(population, top)
        exploration = self._explore(population, {_key(*merge.parents) for merge in merges})
        return merges if exploration is None else [*merges, exploration]

    def _has_to_explore(self, population: Population) -> bool:
        """
        Only the founders' pairs have been made: the paper's loop begins after these, with an empty
        previous top, so that it explores at least once though no pair enters the top.
        """
        made = [past.merges for past in population.history if past.merges]
        if self.explore == "none" or len(made) != 1:
            return False
        return all(member.name in made[0] for member in population.members if member.parents)

    def _explore(self, population: Population, taken: set[Pair]) -> Proposal | None:
        if self.explore == "none" or not population.members:
            return None
        best = population.best(1)[0]
        # Whoever would rank first but is merged with the best already gives way to the next.
        free = [
            member.name
            for member in population.members
            if member.name != best
            and not population.was_merged(best, member.name)
            and _key(best, member.name) not in taken
        ]
        if not free:
            return None
        sign = -1.0 if self.explore == "highest" else 1.0
        partner = min(free, key=lambda name: (*_distance(population.kin(best, name), sign), name))
        kin = kinship_in_words(population, best, partner)
        reason = (
            f"explores: of the {len(free)} left to merge with the best, {one(population, best)}, "
            f"{one(population, partner)} has the {self.explore} {kin}"
        )
        return Proposal((best, partner), "exploration", reason)


def _pairs(population: Population, names: Iterable[str], group: str) -> Iterator[Proposal]:
    """Every pair that was not merged before; `names` best first."""
    for a, b in combinations(names, 2):
        if not population.was_merged(a, b):
            reason = (
                f"{one(population, a)} and {one(population, b)} are among the {group} "
                f"and were not merged before; {kinship_in_words(population, a, b)}"
            )
            yield Proposal((a, b), "pair", reason)


def _within_budget(population: Population, merges: list[Proposal]) -> tuple[Proposal, ...]:
    kept = population.affordable(merges)
    if len(kept) == len(merges):
        return kept
    return population.affordable(sorted(merges, key=lambda merge: merge.role == "pair"))


def _present(population: Population, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in population)


def _welcome(population: Population, newcomer: str, other: str, k: int) -> Proposal:
    reason = (
        f"newcomer {one(population, newcomer)} with {one(population, other)}, "
        f"one of the {k} best; {kinship_in_words(population, newcomer, other)}"
    )
    better, worse = population.best(2, among=(newcomer, other))
    return Proposal((better, worse), "pair", reason)


def _nearness(population: Population, name: str, chosen: Iterable[str]) -> tuple[bool, float]:
    """Kinship to the nearest of those chosen; undefined ranks last."""
    known = [kin for other in chosen if (kin := population.kin(name, other)) is not None]
    return not known, max(known, default=0.0)


def _distance(kin: float | None, sign: float) -> tuple[bool, float]:
    """Sorts by kinship; undefined ranks last either way."""
    return kin is None, 0.0 if kin is None else sign * kin


def _key(a: str, b: str) -> Pair:
    return min(a, b), max(a, b)
