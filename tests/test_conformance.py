"""The suite that third parties run: it passes what is sound and catches each fault by its name."""

import random

import pytest

from kinship_policies.policy import Decision, Proposal
from kinship_policies.registry import make
from kinship_policies.testing import CHECKS, ConformanceError, Landscape, conforms, evolve


class Sound:
    """Merges the two best that were not merged before."""

    def propose(self, population):
        names = population.best(len(population.members))
        free = [
            (a, b)
            for i, a in enumerate(names)
            for b in names[i + 1 :]
            if not population.was_merged(a, b)
        ]
        if not free:
            return Decision((), names[:2], None, "all are merged")
        return Decision((Proposal(free[0], "pair", "the best two"),), names[:2], None)


class Dice(Sound):
    """Draws without the seed."""

    def propose(self, population):
        return Decision((), population.best(1), random.random(), "no")


class Repeats(Sound):
    def propose(self, population):
        names = population.best(2)
        if len(names) < 2:
            return Decision((), names, None, "too few")
        return Decision((Proposal(names, "pair", "again"),), names, None)


class Stranger(Sound):
    def propose(self, population):
        parents = (*population.best(1), "nobody")
        return Decision((Proposal(parents, "pair", "why"),), (), None)


class Backwards(Sound):
    def propose(self, population):
        names = tuple(member.name for member in reversed(population.members))
        return Decision((), names, None, "no")


class Silent(Sound):
    def propose(self, population):
        return Decision((), population.best(1), None)


class Fragile(Sound):
    def propose(self, population):
        best = population.best(2)
        return Decision((), best, population.kin(*best) * 2, "no")


class Unwritable(Sound):
    def propose(self, population):
        return Decision((), population.best(1), float("nan"), "no")


def faults(policy):
    found = set()
    for check in CHECKS:
        try:
            check(policy)
        except Exception as error:
            found.add((check.__name__, type(error)))
    return found


def test_a_sound_policy_passes():
    conforms(Sound())
    conforms(make("topk-kinship", {"k": 2, "explore": "highest", "early_stop": None}))


@pytest.mark.parametrize(
    ("policy", "check"),
    [
        (Dice(), "decides_the_same_twice"),
        (Repeats(), "repeats_no_pair"),
        (Stranger(), "proposes_members_only"),
        (Stranger(), "survives_the_smallest"),
        (Backwards(), "breaks_ties_by_name"),
        (Silent(), "says_why"),
    ],
)
def test_a_fault_is_caught_by_its_check(policy, check):
    assert (check, ConformanceError) in faults(policy)
    with pytest.raises(ConformanceError, match=r"generation \d of .*: the policy "):
        conforms(policy)


def test_what_cannot_be_recorded_or_stumbles_over_the_unknown_is_caught():
    assert "decides_in_json" in {name for name, _ in faults(Unwritable())}
    assert "survives_the_unknown" in {name for name, _ in faults(Fragile())}


def test_evolution_gains_by_merging_and_goes_on_when_someone_arrives():
    founders = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (-1.0, 0.5)}
    landscape = Landscape(founders, optimum=(0.4, 0.5))
    steps = list(evolve(make("topk-kinship"), landscape, 20, {"d": (0.8, 0.9)}))
    stops = [i for i, (_, decision) in enumerate(steps) if decision.stop is not None]
    assert len(stops) == 2
    assert stops[-1] == len(steps) - 1
    arrival, decision = steps[stops[0] + 1]
    assert arrival.newcomers == ("d",)
    assert any("d" in merge.parents for merge in decision.merges)
    best = [population[population.best(1)[0]].score for population, _ in steps]
    assert best == sorted(best)
    assert best[-1] > best[0]
