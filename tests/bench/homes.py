"""Simulated homes: what a daemon's merges answer, and how good they truly are."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kinship_policies.simulate.evolution import evolve
from kinship_policies.simulate.landscape import Array, Merge, Model, World
from kinship_policies.simulate.synthetic import Parameters, Synthetic
from kinship_policies.topk import TopKKinship

__all__ = [
    "SELECTION",
    "VALIDATION",
    "Answers",
    "Born",
    "Home",
    "all_equal",
    "equal_newcomers",
    "evolutions",
    "one_incumbent",
]

Answers = NDArray[np.float64]

# Half of the test documents of winogrande, gsm8k and truthfulqa_mc2 each.
SELECTION = (633, 659, 408)
VALIDATION = (634, 660, 409)
_ACCURACY = 0.6
_MERGES = 100
# On so many documents a child's answers differ from its parent's.
_DISCORDANCE = (0.01, 0.18)


@dataclass(frozen=True)
class Born:
    """
    A model.

    Attributes:
        true: Its mean score without the luck of documents.
        validation: Right (1) or wrong (0) answers by task; `selection` likewise, empty where the
            simulation has none and everyone is judged.
    """

    name: str
    parents: tuple[str, ...]
    true: float
    validation: tuple[Answers, ...]
    selection: tuple[Answers, ...] = ()

    @cached_property
    def score(self) -> float:
        """On the selection documents."""
        return sum(float(task.mean()) for task in self.selection) / len(self.selection)


@dataclass
class Home:
    """Everyone by name, and the merges in the order in which they are judged."""

    models: dict[str, Born] = field(default_factory=dict)
    merges: list[Born] = field(default_factory=list)

    def add(self, born: Born) -> None:
        self.models[born.name] = born
        if born.parents:
            self.merges.append(born)


def one_incumbent(seed: int) -> Home:
    """
    100 merges, each as good as the one model that is in its way, for they have no other parent.

    The hardest case: where that model is unlucky on these documents, every merge of it looks good.
    """
    rng = np.random.default_rng([seed, 1])
    home = Home()
    home.add(Born("incumbent", (), _ACCURACY, _drawn(rng, VALIDATION)))
    for number in range(_MERGES):
        parent = home.models["incumbent"].validation
        answers = tuple(_changed(rng, task, _discordance(rng)) for task in parent)
        home.add(Born(f"merge-{number}", ("incumbent",), _ACCURACY, answers))
    return home


def equal_newcomers(seed: int) -> Home:
    """100 merges of one model with newcomers; newcomers and merges are as good as it is."""
    rng = np.random.default_rng([seed, 2])
    home = Home()
    first = _drawn(rng, VALIDATION)
    home.add(Born("incumbent", (), _ACCURACY, first))
    for number in range(_MERGES):
        second = tuple(_changed(rng, task, _discordance(rng)) for task in first)
        home.add(Born(f"newcomer-{number}", (), _ACCURACY, second))
        child = tuple(_between(rng, *pair) for pair in zip(first, second, strict=True))
        parents = ("incumbent", f"newcomer-{number}")
        home.add(Born(f"merge-{number}", parents, _ACCURACY, child))
    return home


def all_equal(seed: int) -> Home:
    """100 merges in a closed circle: pairs of the five luckiest on selection, all equally good."""
    rng = np.random.default_rng([seed, 3])
    home = Home()
    ancestor = (_drawn(rng, VALIDATION), _drawn(rng, SELECTION))
    for number in range(6):
        validation, selection = (
            tuple(_changed(rng, task, 0.18) for task in part) for part in ancestor
        )
        home.add(Born(f"founder-{number}", (), _ACCURACY, validation, selection))
    for number in range(_MERGES):
        luckiest = sorted(home.models.values(), key=lambda born: -born.score)[:5]
        one, other = rng.choice(5, 2, replace=False)
        pair = (luckiest[one], luckiest[other])
        validation, selection = (
            tuple(_between(rng, *both) for both in zip(*parts, strict=True))
            for parts in ([b.validation for b in pair], [b.selection for b in pair])
        )
        names = (pair[0].name, pair[1].name)
        home.add(Born(f"merge-{number}", names, _ACCURACY, validation, selection))
    return home


def evolutions(seed: int, *, rugged: float, rounds: int = 1) -> Home:
    """
    What `topk-kinship` makes of synthetic fine-tunes; after a round the three best meet newcomers.

    Args:
        rugged: 0 for the smooth landscape.
        rounds: Evolutions in a row in one home.
    """
    documents = max(SELECTION) + max(VALIDATION)
    parameters = Parameters(founders=3 + 3 * rounds, noise_documents=documents, rugged=rugged)
    inner = Synthetic(parameters).world(seed, frozenset({"samples"}))
    home = Home()
    for founder in inner.founders:
        home.add(_born(founder, inner, ()))
    waiting = [founder.name for founder in inner.founders]
    residents, waiting = waiting[:3], waiting[3:]
    for number in range(rounds):
        residents, waiting = [*residents, *waiting[:3]], waiting[3:]
        shown = _Shown(inner, home, residents, f"round-{number}-")
        evolve("topk-kinship", TopKKinship(), shown, seed=seed, budget=40)
        everyone = sorted(home.models.values(), key=lambda born: -born.score)
        released = [b.name for b in everyone if b.name not in waiting]
        residents = released[:3]
    return home


class _Shown:
    """A world of which a policy sees the selection documents alone."""

    def __init__(self, inner: World, home: Home, founders: Sequence[str], prefix: str) -> None:
        self._inner, self._home, self._prefix = inner, home, prefix
        self.founders = [self._model(home.models[name]) for name in founders]

    def _model(self, born: Born) -> Model:
        return Model(born.name, born.score)

    def merge(self, merge: Merge) -> Model | None:
        made = self._inner.merge(replace(merge, name=self._prefix + merge.name))
        assert made is not None
        born = _born(made, self._inner, merge.parents)
        self._home.add(born)
        return self._model(born)

    def kinship(self, names: Sequence[str]) -> Array:
        return self._inner.kinship(names)

    def layers(self, names: Sequence[str]) -> Array:
        return self._inner.layers(names)

    def true(self, name: str) -> float | None:
        return self._inner.true(name)


def _born(model: Model, world: World, parents: tuple[str, ...]) -> Born:
    answers = [np.array(task) for task in model.samples.values()]
    true = world.true(model.name)
    assert true is not None
    return Born(
        model.name,
        parents,
        true,
        tuple(task[-n:] for task, n in zip(answers, VALIDATION, strict=True)),
        tuple(task[:n] for task, n in zip(answers, SELECTION, strict=True)),
    )


def _drawn(rng: np.random.Generator, sizes: Sequence[int]) -> tuple[Answers, ...]:
    return tuple((rng.random(n) < _ACCURACY).astype(float) for n in sizes)


def _discordance(rng: np.random.Generator) -> float:
    low, high = np.log(_DISCORDANCE)
    return float(np.exp(rng.uniform(low, high)))


def _changed(rng: np.random.Generator, task: Answers, discordance: float) -> Answers:
    """Other answers, as many better as worse over all draws of documents."""
    chance = np.where(task == 1, discordance / 2 / _ACCURACY, discordance / 2 / (1 - _ACCURACY))
    return np.where(rng.random(len(task)) < chance, 1 - task, task)


def _between(rng: np.random.Generator, one: Answers, other: Answers) -> Answers:
    """One of both answers, and a few that are neither's."""
    chosen = np.where(rng.random(len(one)) < 0.5, one, other)
    return _changed(rng, chosen, _DISCORDANCE[0])
