"""CMA-ES: its replay from the record is the optimiser itself."""

import math
from dataclasses import replace

import cma
import numpy as np
import pytest

from kinship_policies.cma_es import CmaEs
from kinship_policies.testing import Landscape, evolve
from populations import child, fine_tunes, population

FOUNDERS = fine_tunes(a=0.9, b=0.8, c=0.7, d=0.1)
TARGET = np.array([0.2, 0.7, 0.4])


def score(weights):
    return -float(((np.array(weights) - TARGET) ** 2).sum())


def asked(policy, children, generation, **facts):
    people = population(*FOUNDERS, *children, generation=generation, **facts)
    return policy.propose(people)


def weights(decision):
    return [tuple(merge.parameters["weight"]) for merge in decision.merges]


def grown(policy, generations, seed=0, keep=None):
    """All children of so many generations, those kept."""
    children = []
    for generation in range(1, generations + 1):
        decision = asked(policy, children, generation, seed=seed)
        children += [
            child(
                f"g{generation}-{i}",
                score(merge.parameters["weight"]),
                *merge.parents,
                generation=generation,
                method=merge.method,
                **merge.parameters,
            )
            for i, merge in enumerate(decision.merges)
            if keep is None or keep(i)
        ]
    return children


def by_cma(generations, seed=0, keep=None):
    """What cma itself asks in the generation after so many, driven by the same draws."""
    chance = [np.random.default_rng(0)]
    options = {
        "randn": lambda *shape: chance[0].standard_normal(shape),
        "seed": math.nan,
        "bounds": [0, 1],
        "verbose": -9,
    }
    strategy = cma.CMAEvolutionStrategy([1 / 3] * 3, 0.1667, options)
    for generation in range(1, generations + 2):
        chance[0] = np.random.default_rng([seed, generation])
        candidates = strategy.ask()
        if generation <= generations:
            told = [x for i, x in enumerate(candidates) if keep is None or keep(i)]
            if len(told) >= 3:
                strategy.tell(told, [-score(np.round(x, 6)) for x in told])
    return [tuple(np.round(x, 6).tolist()) for x in candidates]


def test_the_first_generation_is_drawn_around_equal_shares():
    decision = asked(CmaEs(), [], 1)
    assert len(decision.merges) == 7  # 4 + 3 ln 3
    assert {merge.parents for merge in decision.merges} == {("a", "b", "c")}
    assert {merge.method for merge in decision.merges} == {"linear"}
    assert all(0 <= w <= 1 for each in weights(decision) for w in each)
    many = [w for seed in range(40) for w in weights(asked(CmaEs(), [], 1, seed=seed))]
    assert np.mean(many, axis=0) == pytest.approx([1 / 3] * 3, abs=0.04)
    assert len(asked(CmaEs(popsize=9), [], 1).merges) == 9
    assert len(asked(CmaEs(k=2), [], 1).merges) == 6


@pytest.mark.parametrize("seed", [0, 5])
def test_the_replay_asks_what_the_optimiser_would(seed):
    children = grown(CmaEs(), 4, seed)
    assert weights(asked(CmaEs(), children, 5, seed=seed)) == by_cma(4, seed)


@pytest.mark.parametrize("kept", [5, 3, 2, 0])
def test_children_that_were_lost_are_left_out(kept):
    def keep(index):
        return index < kept

    children = grown(CmaEs(), 2, keep=keep)
    assert weights(asked(CmaEs(), children, 3)) == by_cma(2, keep=keep)


def test_a_child_without_a_score_is_as_lost():
    children = grown(CmaEs(), 1)
    blind = [replace(c, score=math.nan) if c.name == "g1-6" else c for c in children]
    assert weights(asked(CmaEs(), blind, 2)) == by_cma(1, keep=lambda index: index < 6)


def test_it_finds_the_coefficients():
    founders = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (-1.0, -1.0)}
    landscape = Landscape(founders, optimum=(0.35, 0.15))
    *_, (people, decision) = evolve(CmaEs(), landscape, generations=21)
    assert people[people.best(1)[0]].score > -1e-3  # the mean of all three has -0.145
    assert "generation 20 was to be the last" in decision.stop


def test_it_stops_when_the_optimiser_does():
    children = [replace(member, score=0.5) for member in grown(CmaEs(), 1)]
    generation = 2
    while (decision := asked(CmaEs(), children, generation)).stop is None:
        children += [
            child(f"g{generation}-{i}", 0.5, *m.parents, generation=generation, method=m.method)
            for i, m in enumerate(decision.merges)
        ]
        for i, merge in enumerate(decision.merges):
            place = i - len(decision.merges)
            children[place] = replace(children[place], parameters=merge.parameters)
        generation += 1
    assert "the optimiser stopped after" in decision.stop
    assert generation < 20


def test_who_else_is_there_does_not_change_the_search():
    children = grown(CmaEs(), 2)
    others = [
        child("x", 0.99, "a", "b", t=0.5),
        child("y", 0.5, "b", "a", "c", generation=2, method="linear", weight=[0.1, 0.2, 0.7]),
        child("z", 0.5, "a", "b", "c", generation=2, method="task_arithmetic", weight=[1, 1, 1]),
    ]
    assert weights(asked(CmaEs(), children + others, 3)) == by_cma(2)


def test_a_better_newcomer_begins_the_search_anew():
    children = grown(CmaEs(), 2)
    people = population(*FOUNDERS, *fine_tunes(n=0.95), *children, generation=3)
    decision = CmaEs().propose(people)
    assert {merge.parents for merge in decision.merges} == {("n", "a", "b")}
    assert "after 0 merges" in decision.merges[0].reason


def test_free_coefficients_are_factors_of_the_deltas():
    policy = CmaEs(method="task_arithmetic", sigma=1.0)
    many = [w for s in range(10) for each in weights(asked(policy, [], 1, seed=s)) for w in each]
    assert min(many) < 0
    assert max(many) > 1
    merge = asked(policy, [], 1).merges[0]
    assert (merge.method, merge.parameters["normalize"]) == ("task_arithmetic", False)


def test_it_leaves_numpys_own_chance_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    asked(CmaEs(), grown(CmaEs(), 2), 3)
    assert np.random.get_state()[1].tolist() == before


def test_a_budget_takes_the_first_candidates_and_the_rest_is_lost():
    all_of_them = weights(asked(CmaEs(), [], 1))
    assert weights(asked(CmaEs(), [], 1, budget=4)) == all_of_them[:4]


def test_it_stops_without_two_fine_tunes_and_after_its_last_generation():
    assert (
        "two fine-tunes"
        in CmaEs().propose(population(*fine_tunes(a=1.0), child("b", 1.0, "a", "gone"))).stop
    )
    assert "generation 20 was to be the last" in asked(CmaEs(), [], 21).stop
