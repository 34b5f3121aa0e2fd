"""
The space of all weighted sums of the fine-tunes, and the search for its most promising point.

With the fine-tunes' inner products G = Q L Q^T (kinship times both lengths), coefficients c are the
point x = L^1/2 Q^T c: distances there are those of weights. A merge lies where its inner products
with the fine-tunes put it, whatever made it; what of it is outside their span is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from kinship_policies.gaussian_process import Process
from kinship_policies.policy import Member, Population
from kinship_policies.regression import expected_improvement

__all__ = ["Promise", "Space"]

Array = NDArray[np.float64]
Places = NDArray[np.intp]

# Of a member whose answers were not told.
_DOCUMENTS = 100
# A weight beyond these is far from all that was measured, and below the last it is none.
_BOUNDS, _LEAST = (-0.5, 1.5), 0.02
# Points drawn at random, and how many of the best of them are climbed from.
_DRAWS, _STARTS = 256, 4
_STEPS, _STEP = 30, 1e-4
# Fine-tunes that are this share of the longest direction or less in another's span are in it.
_RANK = 1e-6


@dataclass(frozen=True)
class Promise:
    """
    A merge that may be made.

    Attributes:
        weights: By parent's name, of two or more.
        point: (dims,).
        mean: Expected score, `deviation` how surely.
        improvement: Expected, on the best expectation of all models measured.
    """

    weights: Mapping[str, float]
    point: Array
    mean: float
    deviation: float
    improvement: float


@dataclass(frozen=True)
class Space:
    """
    Measured models as points.

    Attributes:
        members: Those with a score, m of them.
        fine: Places of the fine-tunes that span it.
        points: (m or more, dims): the rows after the members' are children believed in.
        scores: In [0, 1] by task, (rows of points, tasks); in the score's own unit they are
            shift + scale * scores.
        documents: Answered, the same shape.
        made: Weights by parent of every merge by task arithmetic, made or believed in.
    """

    members: tuple[Member, ...]
    fine: Places
    points: Array
    scores: Array
    documents: Array
    shift: float
    scale: float
    made: tuple[Mapping[str, float], ...]

    @classmethod
    def of(cls, population: Population, founders: int) -> Space | None:
        """The span of so many fine-tunes, the best; None with fewer than two that have a score."""
        places = np.flatnonzero(np.isfinite(population.scores))
        members = tuple(population.members[place] for place in places)
        names = [member.name for member in members if not member.parents]
        best = set(population.best(founders, among=names))
        fine = np.array([i for i, m in enumerate(members) if m.name in best], dtype=np.intp)
        if len(fine) < 2:
            return None
        scores, documents = _measured(members)
        shift, scale = 0.0, 1.0
        if scores.min() < 0 or scores.max() > 1:  # percent, or no share at all
            span = float(np.ptp(scores)) or 1.0
            shift, scale = float(scores.min()) - span, 3 * span
        points = _points(population, places, fine)
        made = tuple(_made_with(m) for m in members if m.method == "task_arithmetic")
        return cls(members, fine, points, (scores - shift) / scale, documents, shift, scale, made)

    def believing(self, promise: Promise) -> Space:
        """As if this merge had been measured, and did as expected."""
        point = promise.point[None]
        return replace(
            self,
            points=np.concatenate([self.points, point]),
            scores=np.concatenate([self.scores, self._process.by_task(point)]),
            documents=np.concatenate([self.documents, self.documents[-1:]]),
            made=(*self.made, promise.weights),
        )

    def search(self, chance: np.random.Generator, most: int) -> Promise | None:
        """The merge of at most so many parents of the largest expected improvement, if any."""
        found = [
            promise
            for parents, weights in self._starts(chance, most)
            if (promise := self._promise(parents, self._climb(weights, self.points[parents])))
        ]
        return max(found, key=lambda each: round(each.improvement, 12), default=None)

    @cached_property
    def best(self) -> float:
        """The highest expectation of all models measured, in the score's own unit."""
        return self.shift + self.scale * self._best

    @cached_property
    def _process(self) -> Process:
        return Process.learn(self.points, self.scores, self.documents)

    @cached_property
    def _best(self) -> float:
        return float(self._process.predict(self.points)[0].max())

    def _improvement(self, points: Array) -> Array:
        return expected_improvement(*self._process.predict(points), self._best)

    def _starts(self, chance: np.random.Generator, most: int) -> Iterator[tuple[Places, Array]]:
        """Parents, places in `members`, and weights to climb from."""
        fine, basis = self.fine, self.points[self.fine]
        measured = self.points[: len(self.members)]
        # Of each member over the fine-tunes, (members, fine-tunes).
        made_of = measured @ np.linalg.pinv(basis)
        best = _descending(self._process.predict(measured)[0])[:_STARTS]
        drawn = _drawn(chance, made_of[best])
        for place in _descending(self._improvement(drawn @ basis))[:_STARTS]:
            whole = drawn[place]
            if len(fine) <= most:
                yield fine, whole
                continue
            whole = self._climb(whole, basis)
            sizes = np.linalg.norm(basis, axis=1)
            chosen = _descending(np.abs(whole) * sizes)[:most]
            yield fine[chosen], whole[chosen]
            # A good merge stands for many fine-tunes at once.
            for child in (each for each in best if self.members[each].parents):
                rest = whole - made_of[child]
                chosen = _descending(np.abs(rest) * sizes)[: most - 1]
                yield np.array([child, *fine[chosen]]), np.array([1.0, *rest[chosen]])

    def _climb(self, weights: Array, basis: Array) -> Array:
        """Weights of a larger expected improvement, from these on."""
        steps = _STEP * np.vstack([np.zeros(len(weights)), np.eye(len(weights))])

        def descent(weights: Array) -> tuple[float, Array]:
            # Its logarithm, for far from the best the improvement itself is flat.
            values = -np.log(self._improvement((weights + steps) @ basis) + 1e-12)
            return float(values[0]), (values[1:] - values[0]) / _STEP

        result = minimize(
            descent,
            np.clip(weights, *_BOUNDS),
            jac=True,
            method="L-BFGS-B",
            bounds=[_BOUNDS] * len(weights),
            options={"maxiter": _STEPS},
        )
        return np.asarray(result.x)

    def _promise(self, parents: Places, weights: Array) -> Promise | None:
        """None where one parent alone is left, or the merge was made before."""
        kept = np.abs(weights) >= _LEAST
        parents, weights = parents[kept], np.round(weights[kept], 3)
        named = {
            self.members[place].name: weight
            for place, weight in zip(parents, weights.tolist(), strict=True)
        }
        if len(named) < 2 or named in self.made:
            return None
        point = weights @ self.points[parents]
        mean, deviation = self._process.predict(point[None])
        return Promise(
            named,
            point,
            self.shift + self.scale * float(mean[0]),
            self.scale * float(deviation[0]),
            self.scale * float(self._improvement(point[None])[0]),
        )


def _points(population: Population, places: Places, fine: Places) -> Array:
    """(members, dims), in units of the fine-tunes' root mean square length."""
    known = np.array([population.members[place].length for place in places], dtype=np.float64)
    square = float(np.mean(known[fine] ** 2))
    unit = math.sqrt(square) if square > 0 else 1.0  # lengths may be unknown, or all 0
    lengths = np.nan_to_num(known / unit, nan=1.0)
    kinship = population.kinships[np.ix_(places, places)]
    inner = np.nan_to_num(kinship) * np.outer(lengths, lengths)
    if not np.nan_to_num(kinship).diagonal().any():  # the metric is a distance
        squares = lengths**2
        inner = (squares[:, None] + squares - np.nan_to_num(kinship / unit) ** 2) / 2
    np.fill_diagonal(inner, lengths**2)
    values, vectors = np.linalg.eigh(inner[np.ix_(fine, fine)])
    kept = values > max(_RANK * values[-1], 0.0)
    return np.asarray(inner[:, fine] @ vectors[:, kept] / np.sqrt(values[kept]))


def _measured(members: Sequence[Member]) -> tuple[Array, Array]:
    """Scores and how many documents were answered, (members, tasks); one task if they differ."""
    tasks = sorted(set.intersection(*(set(member.tasks) for member in members)))
    scores = np.array([[member.tasks[task] for task in tasks] for member in members])
    if not scores.size or not np.isfinite(scores).all():
        return np.array([[member.score] for member in members]), np.full((len(members), 1), 100.0)
    counts = [[len(member.samples.get(t, ())) or _DOCUMENTS for t in tasks] for member in members]
    return scores, np.array(counts, dtype=np.float64)


def _drawn(chance: np.random.Generator, best: Array) -> Array:
    """Coefficients to try, (draws, fine-tunes): mixtures of any scale, and some near the best."""
    half, n = _DRAWS // 2, best.shape[1]
    mixtures = chance.dirichlet(np.ones(n), half) * chance.uniform(0.5, 2.0, (half, 1))
    near = np.repeat(best, half // len(best), 0)
    near = near + 0.15 * chance.uniform(size=(len(near), 1)) * chance.normal(size=near.shape)
    return np.asarray(np.clip(np.concatenate([mixtures, near, best]), *_BOUNDS))


def _descending(values: Array) -> Places:
    """Places of the largest first; of those that are alike, in their order."""
    places: Places = np.argsort(-np.round(values, 12), kind="stable")
    return places


def _made_with(member: Member) -> dict[str, float]:
    """The weights of a merge by parent; none where they are not plain numbers."""
    weights = member.parameters.get("weight")
    if not isinstance(weights, list | tuple) or len(weights) != len(member.parents):
        return {}
    return dict(zip(member.parents, weights, strict=True))
