"""
Learning from the lineage which merges pay: a small Bayesian regression and expected improvement.

Ours. Every merge of two that was made says what its parents' scores, their kinship and how they
complement each other came to: its gain over its better parent. From all of them a linear model is
learnt, and every pair not merged yet gets an expected score and how uncertain that is. Proposed
are the pairs of the largest expected improvement over the best of all.

The squared distance of the parents is a feature too, for what kinship and lengths say together: to
second order, the mean of two is above the mean of their scores in proportion to it. The noise of a
gain is in proportion to 1 - kinship, for a model merged with its twin can come to nothing new. The
best score is taken as it was measured, with the luck in it. `regression` says the rest.

On the demo's real models it shows no advantage over `topk-kinship`; on synthetic ones
`coefficient-gp`, which learns from all that was measured and not of pairs alone, beats it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.policy import Decision, Fact, Population, Proposal
from kinship_policies.reasons import (
    decision,
    hindrance,
    in_words,
    kinship_in_words,
    nothing_left,
    one,
)
from kinship_policies.regression import Regression, expected_improvement

__all__ = ["FEATURES", "KinshipGain", "complementarity"]

Array = NDArray[np.float64]
Places = NDArray[np.intp]

# Even twins' scores differ by the noise of evaluation.
_TWINS = 0.02

FEATURES = (
    "better parent's score",
    "worse parent's lag",
    "kinship",
    "squared distance",
    "complementarity",
)


class KinshipGain(BaseModel):
    """
    Learns from its merges which pairs gain, and proposes those that may best beat the best.

    Attributes:
        pairs: Merges per generation.
        warmup: As long as fewer merges are there to learn from, the pairs farthest apart among the
            best are merged instead.
        max_founders: Among how many of the best that is; among all when these have no pair left.
        min_improvement: Stop when no pair's expected improvement reaches this, in units of the
            score. An expectation: it does not say that there is none.
        generations: The last generation: what gains differ by without a reason that is known may
            keep the expectation up for long.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    uses: ClassVar[frozenset[Fact]] = frozenset({"samples"})

    pairs: int = Field(default=3, ge=1)
    warmup: int = Field(default=6, ge=2)
    max_founders: int = Field(default=4, ge=2)
    min_improvement: float = Field(default=0.0005, ge=0)
    generations: int = Field(default=30, ge=1)

    def propose(self, population: Population) -> Decision:
        """The most promising pairs, or why none promises enough."""
        stop = hindrance(population, self.generations)
        if stop is not None:
            return decision(population, (), stop)
        free, made, gains = population.unmerged(), *_merges(population)
        if len(gains) < self.warmup:
            return self._warm_up(population, free, len(gains))
        known = np.isfinite(population.scores[free]).all(1)
        if not known.any():
            return decision(population, (), nothing_left(population))
        return self._most_promising(population, free[known], made, gains)

    def _warm_up(self, population: Population, free: Places, learnt: int) -> Decision:
        few = population.unmerged(population.best(self.max_founders))
        free = few if len(few) else free
        kin = population.kinships[free[:, 0], free[:, 1]]
        order = np.lexsort((free[:, 1], free[:, 0], np.nan_to_num(kin, nan=math.inf)))
        words = (
            f"{learnt} merges to learn from, fewer than {self.warmup}: farthest apart of "
            f"{len(free)} pairs"
        )
        merges = [_proposal(population, free[place], words) for place in order[: self.pairs]]
        return decision(population, merges, nothing_left(population))

    def _most_promising(
        self, population: Population, free: Places, made: Places, gains: Array
    ) -> Decision:
        features = _features(population)
        regression = Regression.learn(features(made), gains, _noise(population, made))
        gain, deviation = regression.predict(features(free), _noise(population, free))
        expected = population.scores[free].max(1) + gain
        best = float(np.nanmax(population.scores))
        improvement = expected_improvement(expected, deviation, best)
        order = _first(improvement, expected, self.pairs)
        words = [
            _outlook(improvement[place], expected[place], deviation[place], best) for place in order
        ]
        if improvement[order[0]] < self.min_improvement:
            return decision(
                population, (), self._enough(population, free[order[0]], words[0], gains)
            )
        basis = f"learnt from {len(gains)} merges ({_weights(regression)})"
        merges = [
            _proposal(population, free[place], f"{text}; {basis}")
            for place, text in zip(order, words, strict=True)
            if improvement[place] >= self.min_improvement
        ]
        return decision(population, merges, "")

    def _enough(self, population: Population, pair: Places, words: str, gains: Array) -> str:
        a, b = _names(population, pair)
        return in_words(
            population,
            f"no pair promises {self.min_improvement:g}: at the most {a} and {b}, {words}; this is "
            f"what {len(gains)} merges teach, not proof that none would gain",
        )


def complementarity(population: Population) -> Array:
    """
    How much more both of two know than the better of them, (members, members).

    By documents where every member has the same: the mean over tasks of the share that at least
    one gets right, a + b - ab, less the better one's share. Otherwise by tasks: the mean of the
    higher of both scores, less the better one's mean. NaN where scores are not known.
    """
    members = population.members
    documents = _stacks([member.samples for member in members])
    if documents:
        right = [np.asarray(scores) for scores in documents]
        means = np.mean([scores.mean(1) for scores in right], axis=0)
        either = [
            scores.mean(1)[:, None] + scores.mean(1) - scores @ scores.T / scores.shape[1]
            for scores in right
        ]
    else:
        tasks = _stacks([{t: (x,) for t, x in member.tasks.items()} for member in members])
        if not tasks:
            return np.zeros((len(members), len(members)))
        means = np.mean([scores[:, 0] for scores in tasks], axis=0)
        either = [np.maximum(scores, scores.T) for scores in tasks]
    known: Array = np.mean(either, axis=0) - np.maximum(means[:, None], means)
    return known


def _stacks(scores: list[Mapping[str, tuple[float, ...]]]) -> list[Array]:
    """Per task (members, documents); empty unless all members have the same of each."""
    shapes = {tuple((task, len(row)) for task, row in sorted(each.items())) for each in scores}
    shape = next(iter(shapes)) if len(shapes) == 1 else ()
    return [np.array([each[task] for each in scores], dtype=np.float64) for task, n in shape if n]


def _features(population: Population) -> Callable[[Places], Array]:
    """The `FEATURES` of pairs of places, (pairs, 2) -> (pairs, features)."""
    scores, extra = population.scores, complementarity(population)
    lengths = np.array([member.length for member in population.members], dtype=np.float64)

    def of(pairs: Places) -> Array:
        i, j = pairs[:, 0], pairs[:, 1]
        better, worse = np.fmax(scores[i], scores[j]), np.fmin(scores[i], scores[j])
        kin, one, other = population.kinships[i, j], lengths[i], lengths[j]
        squared = one**2 + other**2 - 2 * kin * one * other
        return np.stack([better, better - worse, kin, squared, extra[i, j]], 1)

    return of


def _noise(population: Population, pairs: Places) -> Array:
    """How much a pair's gain may differ for reasons not known: 1 - kinship; 1 where unknown."""
    distances = 1 - population.kinships[pairs[:, 0], pairs[:, 1]]
    noise: Array = np.maximum(np.nan_to_num(distances, nan=1.0), _TWINS)
    return noise


def _merges(population: Population) -> tuple[Places, Array]:
    """Parents' places of every merge of two whose gain is known, (merges, 2), and the gains."""
    place = {member.name: i for i, member in enumerate(population.members)}
    made = [
        (sorted(place[parent] for parent in member.parents), member)
        for member in population.members
        if len(member.parents) == 2 and all(parent in place for parent in member.parents)
    ]
    pairs = np.array([pair for pair, _ in made], dtype=np.intp).reshape(len(made), 2)
    scores = np.array([member.score for _, member in made], dtype=np.float64)
    gains = scores - population.scores[pairs].max(1, initial=-math.inf)
    known = np.isfinite(gains)
    return pairs[known], gains[known]


def _first(improvement: Array, expected: Array, count: int) -> Places:
    """Places of the largest improvements, and of the largest expectation where these are alike."""
    # Rounded, so that pairs that are alike come in the order of their names.
    rounded = np.round(improvement, 12)
    count = min(count, len(rounded))
    least = np.partition(rounded, -count)[-count]
    near = np.flatnonzero(rounded >= least)
    order: Places = near[np.lexsort((-np.round(expected[near], 12), -rounded[near]))][:count]
    return order


def _proposal(population: Population, pair: Places, words: str) -> Proposal:
    a, b = _names(population, pair)
    kin = kinship_in_words(population, a, b)
    reason = f"{one(population, a)} and {one(population, b)}: {words}; {kin}"
    return Proposal((a, b), "pair", reason)


def _names(population: Population, pair: Places) -> tuple[str, ...]:
    """Better first."""
    return population.best(2, among=(population.members[place].name for place in pair.tolist()))


def _outlook(improvement: float, expected: float, deviation: float, best: float) -> str:
    return (
        f"expected score {expected:.4g} +- {deviation:.2g}, "
        f"expected improvement on the best ({best:.4g}) {improvement:.2g}"
    )


def _weights(regression: Regression) -> str:
    """What a deviation more of each feature adds to the gain, with its uncertainty."""
    weights, errors = regression.weights()
    return ", ".join(
        f"{name} {weight:+.2g} +- {error:.2g}"
        for name, weight, error in zip(FEATURES, weights[1:], errors[1:], strict=True)
    )
