"""
Folding in: the merging recipe of *Model-GLUE* (arXiv 2410.05357).

Models are clustered, ordered, and folded one by one into the first of the cluster; each time the
coefficient is searched, and the model is kept only where it helps. What is different here:

- Clusters are of kinship, of deltas; the source's are of the cosine of whole weights, by which
  fine-tunes of one base nearly all are one cluster. As there, a model joins the first cluster
  whose first, its best, it is near to.
- The source lets a router choose between clusters; that is another architecture. Here what the
  clusters have come to is folded once more, in the same way, into the best of them.
- The coefficient is slerp's t, over the same grid; the source interpolates linearly. A model that
  changes nothing is not kept; there it is.
- Clusters are worked on at the same time, one step of each in a generation.
- A newcomer among the best takes its place in the order; what comes after it is folded anew.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.policy import Decision, Population, Proposal
from kinship_policies.reasons import decision, hindrance, in_words, kinship_in_words, one

__all__ = ["ModelGlue", "clusters"]

# The source's grid, the middle first: a budget that cuts the sweep leaves the likeliest.
_GRID = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.1, 0.9)


class ModelGlue(BaseModel):
    """
    Folds fine-tunes into one model, one by one, and keeps what helps; then stops.

    Attributes:
        models: How many fine-tunes take part, the best.
        threshold: A model is of a cluster when its kinship to the cluster's best is above this.
        order: The best comes first; then by `score`, or always the one of the highest `kinship`
            to what was folded so far.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    models: int = Field(default=6, ge=2)
    threshold: float = Field(default=0.95, ge=-1, le=1)
    order: Literal["score", "kinship"] = "score"

    def propose(self, population: Population) -> Decision:
        """The next step of every cluster; when all are done, of the clusters among each other."""
        stop = hindrance(population)
        if stop is not None:
            return decision(population, (), stop)
        founders = (member.name for member in population.members if not member.parents)
        chosen = population.best(self.models, among=founders)
        if not chosen:
            words = "folding starts from fine-tunes, and there are none"
            return decision(population, (), in_words(population, words))
        folded = [self._fold(population, c) for c in clusters(population, chosen, self.threshold)]
        steps = [step for _, step in folded if step is not None]
        if steps:
            return decision(population, steps, "")
        glued, last = self._fold(population, tuple(name for name, _ in folded))
        done = in_words(population, _done(population, glued, len(chosen), len(folded)))
        return decision(population, () if last is None else (last,), done)

    def _fold(self, population: Population, names: tuple[str, ...]) -> tuple[str, Proposal | None]:
        """What the models have come to, and the next step, or None when all had their turn."""
        glued, *waiting = population.best(len(names), among=names)
        while waiting:
            name = waiting[0] if self.order == "score" else _nearest(population, glued, waiting)
            if not population.was_merged(glued, name):
                return glued, _step(population, glued, name)
            waiting.remove(name)
            glued = _better(population, glued, name)
        return glued, None


def clusters(
    population: Population, names: tuple[str, ...], threshold: float
) -> list[tuple[str, ...]]:
    """Names, best first, in groups of those whose kinship to a group's first is above threshold."""
    found: list[list[str]] = []
    for name in names:
        near = (c for c in found if _near(population, c[0], name) > threshold)
        group = next(near, None)
        if group is None:
            found.append([name])
        else:
            group.append(name)
    return [tuple(group) for group in found]


def _nearest(population: Population, glued: str, waiting: list[str]) -> str:
    """The first of those of the highest kinship; they wait best first."""
    return max(waiting, key=lambda name: _near(population, glued, name))


def _near(population: Population, a: str, b: str) -> float:
    """Their kinship; below all others where it is undefined."""
    kin = population.kin(a, b)
    return -math.inf if kin is None else kin


def _step(population: Population, glued: str, name: str) -> Proposal:
    reason = (
        f"folds {one(population, name)} into {one(population, glued)}, trying {len(_GRID)} "
        f"coefficients; {kinship_in_words(population, glued, name)}"
    )
    sweep = tuple({"t": t} for t in _GRID)
    return Proposal((glued, name), "pair", reason, "slerp", sweep=sweep)


def _better(population: Population, glued: str, name: str) -> str:
    """The best child of the two if it is better than what was glued so far."""
    parents = {glued, name}
    children = (m.name for m in population.members if set(m.parents) == parents)
    best, *_ = (*population.best(1, among=children), glued)
    return best if population.scores_above(best, glued) else glued


def _done(population: Population, glued: str, models: int, groups: int) -> str:
    return (
        f"done: all {models} fine-tunes in {groups} clusters had their turn, "
        f"and came to {one(population, glued)}"
    )
