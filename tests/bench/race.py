"""The race on selection, on simulated homes: what losers are asked, and who is stopped wrongly."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tests.bench.homes import Born, Home

from kinship_daemon.evaluate.race import Asked, can_hardly_reach, forecast

__all__ = ["Raced", "race"]

_RUNGS = 10


@dataclass(frozen=True)
class Raced:
    """
    Every merge of some homes against its best parent.

    Attributes:
        losers: Share of the documents that those were asked who end no better than the parent.
        winners: Share of those who end better and were stopped.
        own_mean: As `losers`, where a child's own mean alone foretells its end, as surely.
        count: Of losers.
    """

    losers: float
    winners: float
    own_mean: float
    count: int


def race(homes: Iterable[Home], width: float) -> Raced:
    losers, own, stopped = [], [], []
    for home in homes:
        for born in home.merges:
            parents = sorted((home.models[name] for name in born.parents), key=lambda b: b.score)
            goal = parents[-1].score
            asked = _asked(born, parents, goal, width)
            if born.score > goal:
                stopped.append(asked < 1)
            else:
                losers.append(asked)
                own.append(_asked_by_mean(born, goal, width))
    return Raced(_mean(losers), _mean(stopped), _mean(own), len(losers))


def _asked(born: Born, parents: list[Born], goal: float, width: float) -> float:
    """Share of the selection documents after which it is stopped; 1 for one that is not."""
    one, other = parents[0].selection, parents[-1].selection
    for rung in range(1, _RUNGS):
        share = rung / _RUNGS
        tasks = [
            Asked(answers[: round(share * len(answers))], first, second)
            for answers, first, second in zip(born.selection, one, other, strict=True)
        ]
        if can_hardly_reach(forecast(tasks), goal, width):
            return share
    return 1.0


def _asked_by_mean(born: Born, goal: float, width: float) -> float:
    """The same, where only its own answers are looked at."""
    for rung in range(1, _RUNGS):
        share = rung / _RUNGS
        seen = [answers[: round(share * len(answers))] for answers in born.selection]
        mean = sum(float(task.mean()) for task in seen) / len(seen)
        # The unseen are as uncertain as the seen; finite, so the error falls to 0 at the end.
        variances = [float(t.var()) / len(t) * (1 - share) for t in seen]
        if mean + width * np.sqrt(sum(variances)) / len(seen) < goal:
            return share
    return 1.0


def _mean(values: list[float] | list[bool]) -> float:
    return float(np.mean(values)) if values else 0.0
