"""
Which merge of given parents is best: methods race first, then one coefficient after another.

A race is successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all answer the same first
documents, the better half goes on. The winner's coefficients are then changed one at a time, up
and down, in steps that become smaller; each search along one of them is a race against the best so
far. Nothing is drawn: the same answers give the same race.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kinship_daemon.weights.methods.method import MergeMethod, Parameter, needs_inputs
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe

__all__ = ["Trial", "Tuner", "first_recipe", "missing_setting"]

# How many of a search's rivals go on from one rung to the next.
_KEPT = 0.5
# Changes of a coefficient, as a share of it, from one pass over all of them to the next.
_STEPS = (0.5, 0.25, 0.125)
# What is searched along; other settings are technical, or no numbers.
_COEFFICIENTS = ("weight", "lambda", "t", "k", "density")
_STARTS: Mapping[str, float] = {"lambda": 0.5, "t": 0.5}
_SHARES = frozenset({"t", "density"})  # in [0, 1]

Measure = Callable[[Recipe, int], float]


@dataclass(frozen=True)
class Trial:
    """
    A recipe that was tried.

    Attributes:
        rung: The last that it reached.
        score: Mean over tasks on that rung's documents; -inf where it could not be made.
    """

    recipe: Recipe
    rung: int
    score: float


class Tuner:
    """
    Tries recipes within a budget.

    Args:
        measure: A recipe's score on all documents up to a rung, a number from 0.
        shares: Of the documents that each rung has answered, ascending, the last 1.
        budget: Evaluations on all documents that may be made in all; parts of one count as parts.
    """

    def __init__(self, measure: Measure, shares: Sequence[float], budget: float) -> None:
        self._measure, self._shares, self._budget = measure, shares, budget
        self._tried: dict[str, Trial] = {}
        self.spent = 0.0

    @property
    def trials(self) -> list[Trial]:
        """Those that went furthest first, then by score; what is alike as it was tried."""
        return sorted(self._tried.values(), key=lambda each: (-each.rung, -each.score))

    def cost(self, recipes: Sequence[Recipe]) -> float:
        """Evaluations of a race of these at its dearest, none of them tried before."""
        total, before, count = 0.0, 0.0, len(recipes)
        for share in self._shares:
            total += count * (share - before)
            before, count = share, math.ceil(count * _KEPT)
        return total

    def tune(self, recipes: Sequence[Recipe]) -> Trial | None:
        """
        The best found, on all documents; None if the budget does not reach for the first race.

        Coefficients are searched from the best method that has some, then from the next, for as
        long as the budget reaches.

        Args:
            recipes: One a method, as it starts.
        """
        if not self._affords(recipes):
            return None
        best = self._race(recipes, None)
        for start in self.trials:
            if best is None or not any(_places(start.recipe)) or not self._affords([start.recipe]):
                continue
            found = self._searched(self._trial(start.recipe, len(self._shares) - 1))
            if found.score > best.score:
                best = found
        return best

    def _searched(self, best: Trial) -> Trial:
        """The best found from here by changing one coefficient at a time."""
        for step in _STEPS:
            changed = True
            while changed:
                changed = False
                for place in _places(best.recipe):
                    rivals = _along(best.recipe, place, step)
                    if not self._affords(rivals):
                        return best
                    found = self._race(rivals, best)
                    if found is not None:
                        best, changed = found, True
        return best

    def _race(self, recipes: Sequence[Recipe], best: Trial | None) -> Trial | None:
        """The best of these on all documents, if it is better than the best so far."""
        found: list[Trial] = []
        going = list(recipes)
        for rung in range(len(self._shares)):
            found = [self._trial(recipe, rung) for recipe in going]
            if best is not None:
                bar = self._measure(best.recipe, rung)  # known: it answered all of them
                found = [trial for trial in found if trial.score > bar]
            # Sorting is stable: of those that are alike, the first goes on.
            found.sort(key=lambda trial: -trial.score)
            going = [trial.recipe for trial in found[: math.ceil(len(found) * _KEPT)]]
        return found[0] if found else None

    def _trial(self, recipe: Recipe, rung: int) -> Trial:
        key = recipe.identity(recipe.parents)
        trial = Trial(recipe, rung, self._measure(recipe, rung))
        before = self._tried.get(key)
        if before is None or before.rung < rung:
            self.spent += self._shares[rung] - (self._shares[before.rung] if before else 0.0)
            self._tried[key] = trial
        return trial

    def _affords(self, recipes: Sequence[Recipe]) -> bool:
        return self.spent + self.cost(recipes) <= self._budget + 1e-9


def missing_setting(merge: MergeMethod) -> str | None:
    """A setting that nobody but the user can give; None where there is none."""
    if needs_inputs(merge):
        return "texts"
    for parameter in merge.parameters:
        if parameter.default is None and _start(parameter, 2) is None:
            return parameter.name
    return None


def first_recipe(name: str, parents: Sequence[str]) -> Recipe | None:
    """A method with equal weights and its defaults; None where it takes more or fewer parents."""
    merge = method(name)
    fewest, most = merge.parents
    if len(parents) < fewest or (most is not None and len(parents) > most):
        return None
    needed = [each for each in merge.parameters if each.default is None]
    settings = {each.name: _start(each, len(parents)) for each in needed}
    # Told as they are, so that they can be searched along.
    settings |= {
        each.name: each.default
        for each in merge.parameters
        if each.name in _COEFFICIENTS and each.default is not None and not each.per_model
    }
    return Recipe(name, tuple(parents), settings)


def _start(parameter: Parameter, parents: int) -> float | list[float] | None:
    if parameter.name == "weight" and parameter.per_model:
        return [1 / parents] * parents
    return _STARTS.get(parameter.name)


def _places(recipe: Recipe) -> Iterator[tuple[str, int | None]]:
    """The coefficients of a recipe: a setting's name, and a parent's place where each has one."""
    for name in _COEFFICIENTS:
        value = recipe.parameters.get(name)
        if isinstance(value, list):
            yield from ((name, place) for place in range(len(value)))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, None


def _along(recipe: Recipe, at: tuple[str, int | None], step: float) -> list[Recipe]:
    """The recipe with one coefficient smaller and larger, by one step and by two."""
    name, place = at
    value: Any = recipe.parameters[name]
    own = float(value if place is None else value[place])
    # What is 0 is changed by as much as its neighbours, or by as much as 1.
    beside = [abs(each) for each in value] if isinstance(value, list) else []
    unit = abs(own) or (sum(beside) / len(beside) if any(beside) else 1.0)
    found = []
    for change in (-step, step, -2 * step, 2 * step):
        new = round(own + change * unit, 6)
        if name in _SHARES and not 0 <= new <= 1:
            continue
        whole = new if place is None else [*value[:place], new, *value[place + 1 :]]
        found.append(replace(recipe, parameters={**recipe.parameters, name: whole}))
    return found
