"""
A landscape made up: models are small vectors, merges are exact algebra, scores fall with distance.

What it is. A fine-tune is a delta of D numbers, in blocks that stand for the attention and the mlp
of a few layers, beside a much longer base. Every task has an optimum (delta) and a curvature; a
founder went a part of the way to a mixture of the tasks' optima and as far in directions of its
own. The score on a task is a logistic function of the curved squared distance to the optimum. It is
measured on n documents: each asks for more or less skill, and each has a direction in which it is
easier, so that relatives err on the same documents. Over all draws of documents a measured score is
binomial; within one draw, the luck of a model is that of its relatives.

What it can tell: whether a policy's decisions pay where merging is averaging, how it copes with
noise and with luck (measured against true scores), what it costs, what goes wrong. What it cannot:
how much real models gain. The distance is convex, so between two models there is no barrier, and
averaging takes away the noise of fine-tuning; real merges can be worse than both parents, here
mostly by their distance or by luck. `rugged` adds bumps to each task's score, smooth waves in
random directions, so that one can ask whether a result rests on that. As it stands, founders spread
wider than real ones, and no pair is worse than its parents' mean: with slope 0.05 and rugged 0.15
the spread of three (2.3 points) and the share of first pairs below that mean (39 %) are about those
of the paper's table (2.2; two of three). Founders' kinship, 0.19, is above its -0.02 to 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kinship_policies.policy import Fact
from kinship_policies.simulate.algebra import merged
from kinship_policies.simulate.landscape import Array, Merge, Model

__all__ = ["Parameters", "Synthetic"]

_GAUSS = NormalDist()
_WAVES = 32  # per task
# How much of a document's difficulty is the same for every model.
_SHARED = 0.5


class Parameters(BaseModel):
    """
    The settings of a synthetic landscape.

    Attributes:
        dims: Numbers in a delta; a multiple of 2 * layers.
        noise_documents: Per task; fewer make luckier scores.
        base_length: Of the base, where a usual delta's length is 1.
        slope: Of the logit of a task's score, in the squared distance to the task's optimum.
        rugged: Height of the bumps in the logit of each task's score; 0 for none.
        control: What the founders' deltas are instead, to ask what a gain is worth: `random`, drawn
            with the same lengths, or `rotated`, all by one rotation, so that lengths and kinships
            stay. Neither knows of the tasks: what merges of them gain is averaging.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    founders: int = Field(default=6, ge=2, le=1000)
    tasks: int = Field(default=3, ge=1, le=100)
    dims: int = Field(default=64, ge=2, le=4096)
    layers: int = Field(default=4, ge=1, le=100)
    noise_documents: int = Field(default=500, ge=1, le=100_000)
    base_length: float = Field(default=30.0, gt=0)
    slope: float = Field(default=0.8, gt=0, le=10)
    rugged: float = Field(default=0.0, ge=0, le=10)
    control: Literal["none", "random", "rotated"] = "none"

    @property
    def blocks(self) -> tuple[str, ...]:
        """Named as tensors are."""
        return tuple(
            f"model.layers.{layer}.{part}.weight"
            for layer in range(self.layers)
            for part in ("self_attn", "mlp")
        )


class Synthetic:
    """The landscape; each seed is another world."""

    truth = "without the luck of documents"
    varies = True
    usual_seeds = 20
    most_seeds = None

    def __init__(self, parameters: Parameters | None = None) -> None:
        self._parameters = parameters or Parameters()
        self._drawn: tuple[int, _Drawn] | None = None

    @property
    def title(self) -> str:
        p = self._parameters
        usual = Parameters()
        changed = "".join(
            f", {name} {getattr(p, name)}"
            for name in ("slope", "rugged", "control")
            if getattr(p, name) != getattr(usual, name)
        )
        return (
            f"synthetic: {p.founders} founders, {p.tasks} tasks of {p.noise_documents} documents, "
            f"{p.dims} dims in {p.layers} layers{changed}"
        )

    def world(self, seed: int, uses: frozenset[Fact]) -> _World:
        # Policies are compared seed by seed: what is drawn for one serves them all.
        if self._drawn is None or self._drawn[0] != seed:
            self._drawn = seed, _draw(self._parameters, seed)
        return _World(self._parameters, self._drawn[1], samples="samples" in uses)


@dataclass(frozen=True)
class _Drawn:
    """
    What a seed decides. B blocks of W numbers, the last of them along the base; F = B * W.

    Attributes:
        base: (B, W), all along the base.
        founders: Deltas (n, B, W).
        optima: (tasks, F); `curvature` the same.
        waves: (tasks, _WAVES, F), and their `phases` (tasks, _WAVES).
        hardness: (tasks, documents), of variance _SHARED; the rest of a document's difficulty for
            a model is how much its delta's direction agrees with `directions`
            (tasks * documents, F).
    """

    base: Array
    founders: Array
    optima: Array
    curvature: Array
    waves: Array
    phases: Array
    hardness: Array
    directions: NDArray[np.float32]


def _draw(p: Parameters, seed: int) -> _Drawn:
    rng = np.random.default_rng([seed, 0x5EED])
    optima = _optima(rng, p)
    # With chance of its own, so that everything else of the world stays as it is.
    deltas = _controls(np.random.default_rng([seed, 0xC0]), p, _founders(rng, p, optima))
    curvature = np.exp(rng.standard_normal((p.tasks, p.dims)))
    curvature /= curvature.mean(1, keepdims=True)
    blocks = len(p.blocks)
    base = np.zeros((blocks, p.dims // blocks + 1))
    base[:, -1] = p.base_length / np.sqrt(blocks)
    size = base.size
    return _Drawn(
        base=base,
        founders=_beside_base(deltas, blocks, 0.0).reshape(p.founders, *base.shape),
        optima=_beside_base(optima, blocks, 0.0),
        curvature=_beside_base(curvature, blocks, 1.0),
        waves=rng.normal(0, 3, (p.tasks, _WAVES, size)),
        phases=rng.uniform(0, 2 * np.pi, (p.tasks, _WAVES)),
        hardness=rng.normal(0, np.sqrt(_SHARED), (p.tasks, p.noise_documents)),
        directions=rng.standard_normal((p.tasks * p.noise_documents, size), dtype=np.float32)
        * np.float32(np.sqrt(1 - _SHARED)),
    )


def _optima(rng: np.random.Generator, p: Parameters) -> Array:
    """(tasks, dims): of length 1, and as alike as tasks are (kinship about 0.3)."""
    own = _units(rng, p.tasks, p.dims)
    common = _units(rng, 1, p.dims)
    optima = np.sqrt(0.3) * common + np.sqrt(0.7) * own
    return np.asarray(optima / np.linalg.norm(optima, axis=1, keepdims=True))


def _founders(rng: np.random.Generator, p: Parameters, optima: Array) -> Array:
    """(founders, dims): part of the way to a mixture of the tasks, and as far in their own."""
    aims = rng.dirichlet(np.full(p.tasks, 0.7), p.founders) @ optima
    aims /= np.linalg.norm(aims, axis=1, keepdims=True)
    skill = rng.uniform(0.2, 0.8, (p.founders, 1))
    lengths = np.exp(rng.normal(-0.1, 0.3, (p.founders, 1)))
    deltas = skill * aims + np.sqrt(1 - skill**2) * _units(rng, p.founders, p.dims)
    return np.asarray(lengths * deltas / np.linalg.norm(deltas, axis=1, keepdims=True))


def _controls(rng: np.random.Generator, p: Parameters, deltas: Array) -> Array:
    """Founders as they are, or those of a control arm of the same lengths, (founders, dims)."""
    if p.control == "random":
        lengths = np.linalg.norm(deltas, axis=1, keepdims=True)
        return np.asarray(lengths * _units(rng, p.founders, p.dims))
    if p.control == "rotated":
        rotation, _ = np.linalg.qr(rng.standard_normal((p.dims, p.dims)))
        return np.asarray(deltas @ rotation)
    return deltas


def _units(rng: np.random.Generator, count: int, dims: int) -> Array:
    vectors = rng.standard_normal((count, dims))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _beside_base(vectors: Array, blocks: int, along: float) -> Array:
    """(n, dims) in blocks, each with a last number along the base, flat: (n, F)."""
    split = vectors.reshape(len(vectors), blocks, -1)
    last = np.full((len(vectors), blocks, 1), along)
    return np.concatenate([split, last], 2).reshape(len(vectors), -1)


class _World:
    def __init__(self, parameters: Parameters, drawn: _Drawn, *, samples: bool) -> None:
        self._p, self._drawn, self._samples = parameters, drawn, samples
        self._blocks = parameters.blocks
        self._places: dict[str, int] = {}
        self._true: list[float] = []
        self._deltas: list[Array] = []
        # Grown by doubling; kinships are those of unit vectors, NaN for one without length.
        self._units = np.empty((32, drawn.base.size))
        self._kinship = np.empty((32, 32))
        width = len(str(parameters.founders))
        self.founders = [
            self._add(f"founder-{i:0{width}}", delta) for i, delta in enumerate(drawn.founders, 1)
        ]

    def merge(self, merge: Merge) -> Model | None:
        deltas = np.array([self._deltas[self._places[parent]] for parent in merge.parents])
        child = merged(merge.method, merge.parameters, deltas, self._drawn.base, self._blocks)
        return self._add(merge.name, child)

    def kinship(self, names: Sequence[str]) -> Array:
        places = [self._places[name] for name in names]
        return self._kinship[np.ix_(places, places)]

    def layers(self, names: Sequence[str]) -> Array:
        deltas = np.stack([self._deltas[self._places[name]] for name in names])
        split = deltas.reshape(len(names), self._p.layers, -1).swapaxes(0, 1)
        lengths = np.linalg.norm(split, axis=2, keepdims=True)
        units = split / np.where(lengths > 0, lengths, np.nan)
        return np.clip(units @ units.swapaxes(1, 2), -1, 1)

    def true(self, name: str) -> float | None:
        return self._true[self._places[name]]

    def _add(self, name: str, delta: Array) -> Model:
        flat = delta.ravel()
        length = float(np.sqrt(flat @ flat))
        unit = flat / length if length else np.full(flat.shape, np.nan)
        self._relate(len(self._deltas), unit)
        self._places[name] = len(self._deltas)
        self._deltas.append(delta)
        chances = self._chances(flat)
        self._true.append(float(chances.mean()))
        right = self._right(chances, unit)
        scores = (right.sum(1) / self._p.noise_documents).tolist()
        tasks = {f"task-{i}": score for i, score in enumerate(scores, 1)}
        return Model(name, sum(scores) / len(scores), tasks, length, self._by_task(right))

    def _relate(self, place: int, unit: Array) -> None:
        if place == len(self._units):
            self._units = np.concatenate([self._units, np.empty_like(self._units)])
            wider = np.empty((2 * place, 2 * place))
            wider[:place, :place] = self._kinship
            self._kinship = wider
        self._units[place] = unit
        row = np.clip(self._units[: place + 1] @ unit, -1, 1)
        self._kinship[place, : place + 1] = self._kinship[: place + 1, place] = row
        self._kinship[place, place] = 1.0

    def _chances(self, flat: Array) -> Array:
        """True scores, (tasks,) in (0, 1)."""
        d = self._drawn
        logits = 0.4 + self._p.slope * (1 - (d.curvature * (flat - d.optima) ** 2).sum(1))
        if self._p.rugged:
            waves = np.cos(d.waves @ flat + d.phases).sum(1) * np.sqrt(2 / _WAVES)
            logits = logits + self._p.rugged * waves
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))))

    def _right(self, chances: Array, unit: Array) -> NDArray[np.bool_]:
        """Which documents are answered rightly, (tasks, documents)."""
        d = self._drawn
        # A model without a delta has no direction, and meets no document's.
        known = np.zeros_like(unit) if np.isnan(unit[0]) else unit
        own = (d.directions @ known.astype(np.float32)).reshape(d.hardness.shape)
        skill = np.array([[_GAUSS.inv_cdf(chance)] for chance in chances.tolist()])
        return np.asarray(d.hardness + own < skill)

    def _by_task(self, right: NDArray[np.bool_]) -> dict[str, tuple[float, ...]]:
        if not self._samples:
            return {}
        return {f"task-{i}": tuple(map(float, row)) for i, row in enumerate(right, 1)}
