"""How surely a sample tells who was merged from whom, at a real model's size."""

import random
import time
from collections.abc import Mapping

import torch
from tests.bench.bench import Bench
from tests.bench.models import config, shapes
from tests.bench.table import Row, verdict
from torch import Tensor

from kinship_daemon.weights.header import TensorInfo
from kinship_daemon.weights.sample.ancestry import composition
from kinship_daemon.weights.sample.plan import Plan, plan
from kinship_daemon.weights.sample.sketch import sketch
from kinship_daemon.weights.sample.take import Sample

__all__ = ["ancestry"]

_FRACTION = 0.002
_MODELS, _MERGES, _OTHERS = 12, 200, 300
_DEVIATION, _OWN, _COMMON = 0.02, 0.0018, 0.0009  # of the base, a fine-tune, and what all share
_BAR, _ALARMS = 0.02, 0.01


class _Family:
    """The sampled numbers of twelve fine-tunes, saved in bfloat16; nothing else of them is made."""

    def __init__(self, parameters: float) -> None:
        named = shapes(config(parameters))
        tensors = {name: TensorInfo(name, "BF16", shape, "f", 0) for name, shape in named.items()}
        self.plan: Plan = plan(tensors, fraction=_FRACTION)
        self._base = self.drawn(0, _DEVIATION).bfloat16().float()
        self.common = self.drawn(1, _COMMON)
        self.deltas = {
            f"m{n:02}": self.saved(self.common + self.drawn(100 + n, _OWN)) for n in range(_MODELS)
        }

    def drawn(self, seed: int, deviation: float) -> Tensor:
        chance = torch.Generator().manual_seed(seed)
        return deviation * torch.randn(self.plan.elements, generator=chance)

    def saved(self, delta: Tensor) -> Tensor:
        """What of a delta is left when the model is saved in bfloat16, as models are."""
        return (self._base + delta).bfloat16().float() - self._base

    def mixed(self, weights: Mapping[str, float]) -> Tensor:
        total = torch.zeros(self.plan.elements)
        for name, weight in weights.items():
            total.add_(self.deltas[name], alpha=weight)
        return total

    def vector(self, delta: Tensor) -> bytes:
        return sketch(Sample(self.plan, self.saved(delta)))


def ancestry(bench: Bench) -> list[Row]:
    """Random merges taken apart again, and what is no merge."""
    bench.progress.runs("who was merged from whom")
    family = _Family(bench.parameters)
    known = {name: sketch(Sample(family.plan, d)) for name, d in family.deltas.items()}
    return [_merges(family, known), _alarms(family, known)]


def _merges(family: _Family, known: Mapping[str, bytes]) -> Row:
    chance = random.Random(5)
    off, strangers, told, seconds = 0.0, 0, 0, 0.0
    for _ in range(_MERGES):
        parents = chance.sample(sorted(known), chance.randint(2, 4))
        raw = [chance.random() for _ in parents]
        total = sum(raw) / chance.choice([1.0, 1.0, 1.5])  # also task arithmetic above 1
        truth = {name: weight / total for name, weight in zip(parents, raw, strict=True)}
        vector = family.vector(family.mixed(truth))
        start = time.perf_counter()
        found = composition(vector, known)
        seconds += time.perf_counter() - start
        named = {part.model: part.coefficient for part in found.parts}
        off = max(off, *(abs(named.get(name, 0.0) - weight) for name, weight in truth.items()))
        strangers += len(named.keys() - truth.keys())
        told += found.is_merge()
    return Row(
        f"{_MERGES} merges of 2 to 4 of {_MODELS}, from {_FRACTION:.1%} of the weights",
        f"coefficients within {off:.4f}; {told} called merges; {strangers} parts of no parent",
        ratio=f"{1000 * seconds / _MERGES:.0f} ms each",
        bar=f"within {_BAR}, none of no parent",
        verdict=verdict(off < _BAR, strangers == 0),
        facts={"off": off, "called": told, "strangers": strangers},
    )


def _alarms(family: _Family, known: Mapping[str, bytes]) -> Row:
    """Siblings, further fine-tunes of a known model, and scaled copies of one."""
    chance = random.Random(6)
    alarms = 0
    for number in range(_OTHERS):
        own = family.common + family.drawn(1000 + number, _OWN)
        parent = family.deltas[chance.choice(sorted(known))]
        size = chance.uniform(0.05, 1.0)
        made = (own, parent + size * own, size * parent)[number % 3]
        alarms += composition(family.vector(made), known).is_merge()
    return Row(
        f"{_OTHERS} that are no merges, likewise",
        f"{alarms} called a merge",
        bar=f"below {_ALARMS:.0%}",
        verdict=verdict(alarms < _ALARMS * _OTHERS),
        facts={"alarms": alarms},
    )
