"""A Gaussian process over coefficients: its geometry, what it learns, what is proposed of it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kinship_policies.coefficient_gp import CoefficientGP
from kinship_policies.coefficient_space import Space
from kinship_policies.gaussian_process import Process
from kinship_policies.simulate.evolution import evolve, uses
from kinship_policies.simulate.landscape import Merge
from kinship_policies.simulate.synthetic import Parameters, Synthetic
from populations import child, fine_tunes, population

# The process


def logistic(x):
    return 1 / (1 + np.exp(-x))


def tasks(points):
    """Two tasks, each a bowl around a point of its own, in logits."""
    centres = np.array([[0.6, 0.2], [0.1, 0.7]])
    return logistic(1 - ((points[:, None] - centres) ** 2).sum(2))


def test_a_process_learns_the_scores_of_points_it_has_not_seen():
    rng = np.random.default_rng(0)
    seen, new = rng.normal(size=(25, 2)) * 0.7, rng.normal(size=(50, 2)) * 0.5
    learnt = Process.learn(seen, tasks(seen), np.full((25, 2), 1000.0))
    mean, deviation = learnt.predict(new)
    assert mean == pytest.approx(tasks(new).mean(1), abs=0.02)
    assert learnt.by_task(new) == pytest.approx(tasks(new), abs=0.03)
    assert (np.abs(mean - tasks(new).mean(1)) < 3 * deviation + 1e-3).mean() > 0.95


def test_it_is_surer_near_what_it_saw_and_by_more_documents():
    points = np.array([[1.0, 0.0], [0.0, 1.0]])
    few, many = (Process.learn(points, tasks(points), np.full((2, 2), n)) for n in (20.0, 2000.0))
    assert many.predict(points)[1].max() < few.predict(points)[1].min()
    near, far = many.predict(np.array([[1.0, 0.1], [2.0, 2.0]]))[1]
    assert near < far / 3
    # One who answered nothing right, and one who answered all, have a place too.
    assert np.isfinite(Process.learn(points, np.eye(2), np.ones((2, 2))).predict(points)[0]).all()


def test_without_an_answer_far_away_is_thought_to_be_worse():
    points = np.array([[1.0, 0.0], [0.0, 1.0]])
    learnt = Process.learn(points, np.full((2, 1), 0.5), np.full((2, 1), 100.0))
    means, _ = learnt.predict(np.array([[0.5, 0.5], [3.0, 3.0]]))
    assert means[0] > 0.5 > means[1]


# The space


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_points_have_the_geometry_of_the_weights(metric):
    deltas = {
        "a": np.array([1.0, 0.0, 0.5]),
        "b": np.array([0.2, 2.0, 0.0]),
        "c": np.array([0.0, -0.3, 1.0]),
    }
    deltas["m"] = 0.7 * deltas["a"] + 0.6 * deltas["b"]
    members = [
        replace(each, length=float(np.linalg.norm(deltas[each.name])))
        for each in (*fine_tunes(a=0.5, b=0.4, c=0.3), child("m", 0.6, "a", "b"))
    ]
    kin = {}
    for a, x in deltas.items():
        for b, y in deltas.items():
            cosine = float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            kin[a, b] = cosine if metric == "cosine" else float(np.linalg.norm(x - y))
    facts = population(*members, kin=kin)
    if metric == "euclidean":
        rows = [
            [0.0 if i == j else value for j, value in enumerate(row)]
            for i, row in enumerate(facts.kinship)
        ]
        facts = replace(facts, kinship=tuple(map(tuple, rows)))
    points = Space.of(facts, 8).points
    unit = np.mean([deltas[name] @ deltas[name] for name in "abc"])
    stacked = np.stack([deltas[name] for name in "abcm"])
    assert unit * points @ points.T == pytest.approx(stacked @ stacked.T)
    assert points[3] == pytest.approx(0.7 * points[0] + 0.6 * points[1])


def test_what_is_not_measured_is_not_learnt_from():
    facts = population(*fine_tunes(a=0.5, b=math.nan, c=0.4))
    (merge,) = CoefficientGP().propose(facts).merges
    assert set(merge.parents) == {"a", "c"}
    decision = CoefficientGP().propose(population(*fine_tunes(a=0.5, b=math.nan)))
    assert "fewer than two fine-tunes have a score" in decision.stop


# The policy


def grown(budget, seed=0, **settings):
    landscape = Synthetic(Parameters(**settings))
    policy = CoefficientGP()
    return evolve("gp", policy, landscape.world(seed, uses(policy)), seed=seed, budget=budget)


def test_a_few_merges_beat_the_mean_of_all():
    gains = []
    for seed in range(4):
        world = Synthetic(Parameters()).world(seed, frozenset())
        names = tuple(model.name for model in world.founders)
        world.merge(Merge("soup", names, "linear", {"weight": 1.0}))
        gains.append(grown(6, seed).best.true - world.true("soup"))
    assert np.mean(gains) > 0.005
    assert min(gains) > -0.005


def test_it_stops_where_nothing_more_is_worth_an_evaluation():
    run = grown(60, founders=3)
    assert run.error is None
    assert run.evaluations < 60
    assert run.stop.startswith("no merge promises 0.0005: ")


def test_many_fine_tunes_are_reached_by_few_parents():
    run = grown(4, founders=12)
    rows = [row for generation in run.generations for row in generation["merges"]]
    assert run.error is None
    assert all(2 <= len(row["parents"]) <= 8 for row in rows)
    # A merge stands for many: in the end more fine-tunes are in it than parents.
    assert any(parent.startswith("model-") for row in rows for parent in row["parents"])


def test_only_the_best_fine_tunes_are_merged_and_all_are_learnt_from():
    facts = population(*fine_tunes(a=0.5, b=0.7, c=0.4, d=0.6), default=0.1)
    (merge,) = CoefficientGP(max_founders=2).propose(facts).merges
    assert merge.parents == ("b", "d")
    assert "learnt from 4 models" in merge.reason


def test_fine_tunes_that_do_not_differ_from_the_base_are_survived():
    still = [replace(member, length=0.0) for member in fine_tunes(a=0.5, b=0.5)]
    decision = CoefficientGP().propose(population(*still, default=None))
    assert decision.merges or decision.stop


def test_several_merges_of_a_generation_are_not_the_same():
    facts = population(*fine_tunes(a=0.5, b=0.45, c=0.4), kin={}, default=0.1)
    merges = CoefficientGP(merges=3, min_improvement=0.0).propose(facts).merges
    weights = {tuple(zip(m.parents, m.parameters["weight"], strict=True)) for m in merges}
    assert len(weights) == len(merges) == 3


def test_scores_in_percent_are_understood():
    facts = population(*fine_tunes(a=66.0, b=64.0, c=62.0), default=0.0)
    (merge,) = CoefficientGP(min_improvement=0.05).propose(facts).merges
    expected = float(merge.reason.removeprefix("expected score ").split()[0])
    assert 50 < expected < 80
    assert "the best expectation (65" in merge.reason or "the best expectation (66" in merge.reason
