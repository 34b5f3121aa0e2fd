"""The race on selection, on simulated homes: what losers are asked, and who is stopped wrongly."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tests.bench.homes import Born, Home

from kinship_daemon.evaluate.looks import LOOKS
from kinship_daemon.evaluate.race import RUNGS, Asked, Forecast, can_hardly_be_among, forecast

__all__ = ["Raced", "race"]

_BEST = 3
_SHARES = tuple(rung / LOOKS for rung in RUNGS[:-1])


@dataclass(frozen=True)
class Raced:
    """
    Every merge of some homes against all that were there before it, and founders among themselves.

    Attributes:
        losers: Share of the documents that those merges were asked who end neither among the three
            best nor above their better parent.
        winners: Share of the others who were stopped.
        everyone: Share of the documents that all merges were asked.
        own_mean: As `losers`, where a merge's own answers alone foretell its end.
        founders: As `everyone`, of founders; nobody has answered all before them.
        founders_stopped: Share of the three best founders who were stopped.
        by_parent: Losers and winners, where the better parent alone is to be beaten.
        count: Of losers.
    """

    losers: float
    winners: float
    everyone: float
    own_mean: float
    founders: float
    founders_stopped: float
    by_parent: tuple[float, float]
    count: int


def race(homes: Iterable[Home], width: float) -> Raced:
    found, own, by_parent, first = _Tally(), _Tally(), _Tally(), _Tally()
    for home in homes:
        whole = [born for born in home.models.values() if not born.parents]
        _founders(whole, width, first)
        for born in home.merges:
            parents = [home.models[name] for name in born.parents]
            better = max(parent.score for parent in parents)
            third = sorted((each.score for each in whole), reverse=True)[_BEST - 1]
            # Ahead of the third are two more: to be below it is to be below three.
            goal, known = min(better, third), _pair(parents, whole)
            asked = _asked(born, known, goal, width)
            found.add(asked, wins=born.score > goal)
            own.add(_asked(born, [], goal, width), wins=born.score > goal)
            sure = _asked(born, _pair(parents, parents), better, width)
            by_parent.add(sure, wins=born.score > better)
            if asked == 1:
                whole.append(born)
    return Raced(
        found.losers,
        found.stopped,
        found.everyone,
        own.losers,
        first.everyone,
        first.stopped,
        (by_parent.losers, by_parent.stopped),
        len(found.lost),
    )


class _Tally:
    """Shares of the documents that losers and winners were asked."""

    def __init__(self) -> None:
        self.lost: list[float] = []
        self.won: list[float] = []

    def add(self, asked: float, *, wins: bool) -> None:
        (self.won if wins else self.lost).append(asked)

    @property
    def losers(self) -> float:
        return _mean(self.lost)

    @property
    def everyone(self) -> float:
        return _mean([*self.lost, *self.won])

    @property
    def stopped(self) -> float:
        return _mean([asked < 1 for asked in self.won])


def _founders(founders: Sequence[Born], width: float, tally: _Tally) -> None:
    """They go up together; each is held against what is foretold of the others."""
    best = {b.name for b in sorted(founders, key=lambda born: -born.score)[:_BEST]}
    going, asked = list(founders), {born.name: 1.0 for born in founders}
    for share in _SHARES:
        ends = {born.name: forecast(_so_far(born, [], share)) for born in going}
        for born in [*going]:
            others = [end for name, end in ends.items() if name != born.name]
            if can_hardly_be_among(ends[born.name], others, _BEST, width):
                going.remove(born)
                asked[born.name] = share
    for born in founders:
        tally.add(asked[born.name], wins=born.name in best)


def _pair(parents: Sequence[Born], whole: Sequence[Born]) -> list[Born]:
    """Parents who have answered all, then the best who have; the better one last."""
    chosen = [parent for parent in parents if parent in whole]
    chosen += [born for born in sorted(whole, key=lambda b: -b.score) if born not in chosen]
    return sorted(chosen[:2], key=lambda born: born.score)


def _asked(born: Born, known: Sequence[Born], goal: float, width: float) -> float:
    """Share of the selection documents after which it is stopped; 1 for one that is not."""
    for share in _SHARES:
        ahead = [Forecast(goal)]
        if can_hardly_be_among(forecast(_so_far(born, known, share)), ahead, 1, width):
            return share
    return 1.0


def _so_far(born: Born, known: Sequence[Born], share: float) -> list[Asked]:
    return [
        Asked(
            answers[: round(share * len(answers))],
            len(answers),
            np.array([each.selection[task] for each in known]) if known else None,
        )
        for task, answers in enumerate(born.selection)
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
