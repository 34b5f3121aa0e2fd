"""The suite that third parties run: it passes what is sound and catches each fault by its name."""

import math
import random

import pytest

from kinship_daemon.weights import recipe
from kinship_policies.policy import Decision, Proposal
from kinship_policies.registry import installed, make
from kinship_policies.testing import CHECKS, ConformanceError, Landscape, conforms, evolve


class Sound:
    """Merges the two best that were not merged before, for twenty generations."""

    def propose(self, population):
        names = population.best(len(population.members))
        if population.budget == 0 or population.generation > 20:
            return Decision((), names[:2], None, "enough")
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


class Spendthrift(Sound):
    """Sees to the budget, but not that each step of a sweep is a child."""

    def propose(self, population):
        decision = super().propose(population)
        if population.budget == 0 or not decision.merges:
            return Decision((), decision.top, None, "nothing to do")
        sweep = tuple({"t": t / 10} for t in range(1, 4))
        return Decision((Proposal(decision.top, "pair", "why", "slerp", {}, sweep),), (), None)


class Endless(Sound):
    def propose(self, population):
        names = population.best(2)
        if len(names) < 2 or population.budget == 0:
            return Decision((), names, None, "too few")
        t = population.generation / 1e10
        return Decision((Proposal(names, "pair", "why", "slerp", {"t": t}),), names, None)


class Superstitious(Sound):
    """Does not like the letter m."""

    def propose(self, population):
        if any(member.name == "m" for member in population.members):
            return Decision((), population.best(1), None, "m is here")
        return super().propose(population)


class Forgetful(Sound):
    """Remembers how often it was asked."""

    asked = 0

    def propose(self, population):
        self.asked += 1
        return Decision((), population.best(1), float(self.asked), "no")


class Spoilt(Sound):
    """Cannot do without lengths."""

    def propose(self, population):
        if population.generation > 1 and any(m.length is None for m in population.members):
            raise TypeError("no length")
        return super().propose(population)


class Repeater(Sound):
    """Asks for the same slerp again and again."""

    def propose(self, population):
        names = population.best(2)
        if len(names) < 2 or population.budget == 0 or population.generation > 9:
            return Decision((), names, None, "enough")
        names = tuple(sorted(m.name for m in population.members))[:2]
        return Decision((Proposal(names, "pair", "why", "slerp", {"t": 0.5}),), (), None)


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
        (Repeater(), "repeats_no_pair"),
        (Spendthrift(), "keeps_to_the_budget"),
        (Endless(), "finishes"),
        (Superstitious(), "breaks_ties_by_name"),
        (Forgetful(), "decides_the_same_twice"),
    ],
)
def test_a_fault_is_caught_by_its_check(policy, check):
    assert (check, ConformanceError) in faults(policy)
    with pytest.raises(ConformanceError, match=r"generation \d+ of .*: the policy "):
        conforms(policy)


def test_what_cannot_be_recorded_or_stumbles_over_the_unknown_is_caught():
    assert "decides_in_json" in {name for name, _ in faults(Unwritable())}
    assert "survives_the_unknown" in {name for name, _ in faults(Fragile())}
    assert ("survives_missing_facts", TypeError) in faults(Spoilt())


OURS = [(policy.name, {}) for policy in installed() if policy.path.startswith("kinship_policies.")]
OTHERWISE = [
    ("topk-kinship", {"extrapolate": 0.3, "explore": "highest", "early_stop": 0.2}),
    ("topk-greedy", {"extrapolate": 0.5, "k": 2, "max_founders": 2}),
    ("random", {"pairs": 1, "generations": 100}),
    ("m2n2", {"population": 2, "alpha": 0.0, "layers": 1, "children": 5}),
    ("evolver", {"mate": "best", "groups": 1, "rate": 1.0, "layers": 7}),
    ("model-glue", {"order": "kinship", "threshold": 0.2}),
    ("cma-es", {"method": "task_arithmetic", "k": 4, "popsize": 4}),
    ("kinship-gain", {"warmup": 2, "min_improvement": 0.0, "pairs": 5}),
]


def in_words(choice):
    return " ".join([choice[0], *choice[1]])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("choice", OURS + OTHERWISE, ids=in_words)
def test_every_policy_of_ours_conforms(choice, check):
    check(make(*choice))


TENSORS = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{kind}.weight"
        for layer in range(3)
        for kind in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
]


@pytest.mark.parametrize("choice", OURS + OTHERWISE, ids=in_words)
def test_what_is_proposed_is_a_recipe_that_can_be_carried_out(choice):
    founders = {"a": (1.0, 0.0, 0.1), "b": (0.0, 1.0, 0.1), "c": (-1.0, 0.5, 0.0)}
    merges = 0
    for _, decision in evolve(make(*choice), Landscape(founders, optimum=(0.4, 0.5, 0.1)), 12):
        for merge in decision.merges:
            for parameters in merge.variants():
                # Without a method of its own it is the configured one, with its parameters.
                method = merge.method or "slerp"
                given = parameters if merge.method else {"t": 0.5, **parameters}
                recipe.check(recipe.Recipe(method, merge.parents, given), TENSORS)
                merges += 1
    # There is one task here, and `soce` wants two.
    fewest = {"soup": 1, "greedy-soup": 1, "soce": 0}
    assert merges >= fewest.get(choice[0], 3)


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


@pytest.mark.parametrize(
    ("method", "parents", "parameters", "expected"),
    [
        ("extrapolation", ("a", "b"), {"lambda": 0.5}, (1.5, -0.5, 0)),
        ("task_arithmetic", ("a", "b", "c"), {"lambda": 0.6}, (0.2, 0.2, 0.2)),
        ("task_arithmetic", ("a", "b"), {"lambda": 0.5, "weight": [1.0, 3.0]}, (0.125, 0.375, 0)),
        ("linear", ("a", "b"), {"weight": [1.0, -1.0]}, (1, -1, 0)),
        ("linear", ("a", "b"), {"weight": [0.0, 0.0]}, (0, 0, 0)),
    ],
)
def test_a_landscape_merges_by_the_methods_own_parameters(method, parents, parameters, expected):
    units = {"a": (1.0, 0.0, 0.0), "b": (0.0, 1.0, 0.0), "c": (0.0, 0.0, 1.0)}
    landscape = Landscape(units, optimum=(0.0, 0.0, 0.0))
    child = landscape.merge(parents, 1, method, parameters)
    member = next(m for m in landscape.population(1, None, ()).members if m.name == child)
    assert member.length == pytest.approx(math.hypot(*expected))
    cosines = landscape.population(1, None, ())
    for name, part in zip("abc", expected, strict=True):
        cosine = cosines.kin(child, name)
        assert cosine is None or cosine * member.length == pytest.approx(part)


def test_a_landscape_extrapolates_from_two_parents_alone():
    units = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (1.0, 1.0)}
    landscape = Landscape(units, optimum=(0.0, 0.0))
    with pytest.raises(ConformanceError, match="one parent to another, not 3"):
        landscape.merge(("a", "b", "c"), 1, "extrapolation", {"lambda": 0.5})
