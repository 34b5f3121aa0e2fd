"""
SoCE, a soup of category experts (*Souper-Model*, arXiv 2511.13254).

1. Tasks whose scores go together over the fine-tunes ask for one skill. Those that have a partner
   with which they are weakly correlated (Pearson's r) count.
2. Of each such task the best fine-tune is the expert.
3. The experts' mean is weighted in every way in steps of 0.1, from 0.1 to 0.9, and equally; all are
   evaluated, the best is the soup.

The paper's own text could not be read, only accounts of it: from which r on a correlation is weak
is not in them, and so ours, as is the most experts (four have 85 weightings).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.policy import Decision, Member, Population, Proposal
from kinship_policies.reasons import decision, hindrance, in_words

__all__ = ["CategorySoup"]

_METHOD = "linear"
_STEPS = 10  # a tenth each, and nobody has none


class CategorySoup(BaseModel):
    """
    Merges the experts of weakly correlated tasks, with every weighting in tenths.

    Attributes:
        weak: Tasks correlate weakly below this Pearson's r, -1 to 1.
        models: The most experts; those of more tasks come first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weak: float = Field(default=0.5, ge=-1, le=1)
    models: int = Field(default=4, ge=2, le=_STEPS)

    def propose(self, population: Population) -> Decision:
        """The weightings that were not tried yet, the equal one first; or that there are none."""
        stop = hindrance(population)
        if stop is not None:
            return decision(population, (), stop)
        tasks, experts = self._experts(population)
        if len(experts) < 2:
            words = "done: no two tasks have different experts and weakly correlated scores"
            return decision(population, (), in_words(population, words))
        tried = [member.parameters for member in population.members if member.parents == experts]
        left = [weights for weights in _weightings(len(experts)) if weights not in tried]
        came_to_nothing = bool(population.history) and not population.history[-1].merges
        if not left or (came_to_nothing and not population.newcomers):
            words = f"done: the soup of {len(experts)} experts was weighted in all ways"
            return decision(population, (), in_words(population, words))
        reason = f"the experts of {', '.join(tasks)}, whose scores are weakly correlated"
        merge = Proposal(experts, "pair", reason, _METHOD, sweep=tuple(left))
        return decision(population, [merge], "")

    def _experts(self, population: Population) -> tuple[list[str], tuple[str, ...]]:
        """The tasks that count, and their experts, those of most tasks first."""
        leaves = [member for member in population.members if not member.parents]
        tasks = sorted({task for leaf in leaves for task in leaf.tasks})
        leaves = [leaf for leaf in leaves if all(_known(leaf, task) for task in tasks)]
        if len(leaves) < 2 or len(tasks) < 2:
            return [], ()
        scores = np.array([[leaf.tasks[task] for leaf in leaves] for task in tasks])
        spread = scores.std(1) > 0
        counted = [task for task, varies in zip(tasks, spread, strict=True) if varies]
        if len(counted) < 2:
            return [], ()
        weakly = np.corrcoef(scores[spread]) < self.weak
        counted = [task for task, row in zip(counted, weakly, strict=True) if bool(row.any())]
        best = [max(leaves, key=lambda leaf: (leaf.tasks[task], leaf.score)) for task in counted]
        names = [leaf.name for leaf in best]
        order = sorted({*names}, key=lambda name: (-names.count(name), name))
        return counted, tuple(order[: self.models])


def _known(leaf: Member, task: str) -> bool:
    return task in leaf.tasks and not np.isnan(leaf.tasks[task])


def _weightings(count: int) -> Iterator[Mapping[str, Any]]:
    """All weights in tenths that sum to 1, none of them 0; the equal one first."""
    equal = {"weight": [1 / count] * count}
    yield equal
    for parts in _parts(_STEPS, count):
        weights = {"weight": [part / _STEPS for part in parts]}
        if weights != equal:
            yield weights


def _parts(total: int, count: int) -> Iterator[Sequence[int]]:
    if count == 1:
        yield [total]
        return
    for first in range(total - count + 1, 0, -1):
        yield from ([first, *rest] for rest in _parts(total - first, count - 1))
