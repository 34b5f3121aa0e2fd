"""
What every policy must keep, as checks that anybody can run on theirs::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_policy(check):
        check(MyPolicy())

Each check takes a policy and raises `ConformanceError`, an AssertionError, saying what it did and
where. Needs no test framework.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations

from kinship_policies.policy import Decision, Member, Policy, Population

__all__ = ["CHECKS", "ConformanceError", "Landscape", "conforms", "evolve"]

Vector = tuple[float, ...]


class ConformanceError(AssertionError):
    """A policy broke a rule that the daemon relies on."""


class Landscape:
    """
    A small world to evolve in: models are points, a merge is the mean of its parents.

    Args:
        founders: Name -> delta from the base; scores are minus the squared distance to `optimum`.
    """

    def __init__(self, founders: Mapping[str, Vector], optimum: Vector) -> None:
        self._optimum = optimum
        self._deltas: dict[str, Vector] = {}
        self._members: dict[str, Member] = {}
        for name, delta in sorted(founders.items()):
            self.add(name, delta)

    def add(
        self, name: str, delta: Vector, generation: int = 0, parents: Iterable[str] = ()
    ) -> None:
        """A fine-tune, or with its parents a merge."""
        score = -sum((x - o) ** 2 for x, o in zip(delta, self._optimum, strict=True))
        self._deltas[name] = delta
        self._members[name] = Member(name, score, {"task": score}, generation, tuple(parents))

    def merge(self, parents: tuple[str, ...], generation: int) -> str:
        """Adds the child and returns its name."""
        name = f"g{generation}-{len(self._members)}"
        columns = zip(*(self._deltas[parent] for parent in parents), strict=True)
        self.add(name, tuple(sum(c) / len(parents) for c in columns), generation, parents)
        return name

    def population(
        self, generation: int, previous: Decision | None, newcomers: Iterable[str]
    ) -> Population:
        """Everyone as a policy sees them; the kinship is the cosine."""
        members = tuple(member for _, member in sorted(self._members.items()))
        merged = [pair for m in members for pair in combinations(sorted(m.parents), 2)]
        return Population(
            generation=generation,
            members=members,
            kinship=tuple(tuple(self._cosine(a.name, b.name) for b in members) for a in members),
            merged=frozenset((a, b) for a, b in merged),
            newcomers=tuple(sorted(newcomers)),
            previous_top=None if previous is None else previous.top,
            saturated=0 if previous is None else previous.saturated,
        )

    def _cosine(self, a: str, b: str) -> float | None:
        x, y = self._deltas[a], self._deltas[b]
        norms = math.hypot(*x) * math.hypot(*y)
        return sum(p * q for p, q in zip(x, y, strict=True)) / norms if norms else None


def evolve(
    policy: Policy,
    landscape: Landscape,
    generations: int = 8,
    arrivals: Mapping[str, Vector] | None = None,
) -> Iterator[tuple[Population, Decision]]:
    """
    Each generation's population and the policy's decision on it, until it stops.

    Args:
        policy: Asked once a generation; what it proposes is merged into the landscape.
        landscape: Holds the founders, in the end also the merges.
        generations: At most so many.
        arrivals: Fine-tunes that are admitted when the policy has stopped for the first time.
    """
    previous: Decision | None = None
    waiting, newcomers = dict(arrivals or {}), list[str]()
    for generation in range(1, generations + 1):
        population = landscape.population(generation, previous, newcomers)
        previous = policy.propose(population)
        yield population, previous
        if previous.stop is not None and not waiting:
            return
        names = {member.name for member in population.members}
        for merge in previous.merges:
            known = names.issuperset(merge.parents)
            _hold(known, f"merges {merge.parents}, who are not all there", population)
            landscape.merge(merge.parents, generation)
        newcomers = []
        if previous.stop is not None:
            newcomers = sorted(waiting)
            while waiting:
                landscape.add(*waiting.popitem())


def conforms(policy: Policy) -> None:
    """Runs every check."""
    for check in CHECKS:
        check(policy)


def decides_the_same_twice(policy: Policy) -> None:
    """The same population gives the same decision, also when read back from JSON."""
    for population in _populations(policy):
        once = policy.propose(population)
        _hold(policy.propose(population) == once, "decided otherwise the second time", population)
        facts = json.loads(json.dumps(population.to_json(), allow_nan=False))
        replayed = policy.propose(Population.from_json(facts))
        _hold(replayed == once, "decided otherwise on the recorded facts", population)


def decides_in_json(policy: Policy) -> None:
    """A decision can be recorded: it survives JSON as it is."""
    for population in _populations(policy):
        decision = policy.propose(population)
        again = Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False)))
        _hold(again == decision, "its decision is not the same after JSON", population)


def proposes_members_only(policy: Policy) -> None:
    """Every merge has two or more different parents, all of them in the population."""
    for population in _populations(policy):
        names = {member.name for member in population.members}
        decision = policy.propose(population)
        for merge in decision.merges:
            different = len(set(merge.parents)) == len(merge.parents) >= 2
            _hold(different, f"merges {merge.parents}", population)
            _hold(names.issuperset(merge.parents), f"merges {merge.parents}", population)
        _hold(names.issuperset(decision.top), f"its top is {decision.top}", population)


def repeats_no_pair(policy: Policy) -> None:
    """No two models are merged twice in the same way: not in one decision, not over generations."""
    for population in _populations(policy):
        seen: set[tuple[str, ...]] = set()
        for merge in policy.propose(population).merges:
            if merge.method is not None or merge.parameters:
                continue  # another recipe for the same pair is another merge
            pair = tuple(sorted(merge.parents))
            _hold(pair not in seen, f"proposes {pair} twice", population)
            old = len(pair) == 2 and population.was_merged(*pair)
            _hold(not old, f"proposes {pair} again", population)
            seen.add(pair)


def says_why(policy: Policy) -> None:
    """Every merge has its reason in words; without merges there is a reason to stop."""
    for population in _populations(policy):
        decision = policy.propose(population)
        for merge in decision.merges:
            _hold(bool(merge.reason.strip()), f"gives no reason for {merge.parents}", population)
        stopped = bool(decision.stop and decision.stop.strip())
        _hold(stopped != bool(decision.merges), "must either merge or say why it stops", population)


def breaks_ties_by_name(policy: Policy) -> None:
    """Where all are alike, the top comes in the order of the names."""
    population = _flat("abcdef")
    top = policy.propose(population).top
    _hold(list(top) == sorted(top), f"its top is {top}", population)


def survives_the_smallest(policy: Policy) -> None:
    """Nobody or a single member: there is nothing to merge, and it says so."""
    for names in ("", "a"):
        population = _flat(names)
        decision = policy.propose(population)
        stopped = decision.stop is not None and not decision.merges
        _hold(stopped, "does not stop where nothing can be merged", population)


def survives_the_unknown(policy: Policy) -> None:
    """Scores that are NaN and kinships that are undefined are facts of life."""
    policy.propose(_flat("abcd", score=math.nan, kinship=None))
    policy.propose(_flat("abcd", kinship=None))


CHECKS: tuple[Callable[[Policy], None], ...] = (
    proposes_members_only,
    decides_the_same_twice,
    decides_in_json,
    repeats_no_pair,
    says_why,
    breaks_ties_by_name,
    survives_the_smallest,
    survives_the_unknown,
)

# Two close relatives, one opposite, one apart; the optimum lies between them, so merging pays.
_FOUNDERS = {
    "a": (1.0, 0.0, 0.0),
    "b": (0.9, 0.3, 0.0),
    "c": (-0.5, 0.2, 0.6),
    "d": (0.0, 1.0, 0.2),
}


def _populations(policy: Policy) -> Iterator[Population]:
    yield _flat("abcdef")
    yield _flat("ab")
    yield _flat("abcd", score=math.nan, kinship=None)
    yield _flat("abcd", merged=(("a", "b"), ("a", "c"), ("b", "c")))
    landscape = Landscape(_FOUNDERS, optimum=(0.3, 0.4, 0.2))
    for population, _ in evolve(policy, landscape, arrivals={"e": (0.2, 0.1, 0.9)}):
        yield population


def _flat(
    names: str,
    score: float = 0.5,
    kinship: float | None = 0.25,
    merged: Iterable[tuple[str, str]] = (),
) -> Population:
    """All alike; in generation 1, or 2 where some pairs were merged."""
    members = tuple(Member(name, score, {"task": score}) for name in names)
    return Population(
        generation=2 if merged else 1,
        members=members,
        kinship=tuple(tuple(1.0 if a is b else kinship for b in members) for a in members),
        merged=frozenset(merged),
        previous_top=tuple(reversed(names)) if merged else None,
    )


def _hold(rule: bool, words: str, population: Population) -> None:
    if not rule:
        names = ", ".join(member.name for member in population.members) or "nobody"
        raise ConformanceError(f"generation {population.generation} of {names}: the policy {words}")
