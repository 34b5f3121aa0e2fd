"""Learning which merges pay: the regression by hand, what it learns, and what it says."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kinship_policies.kinship_gain import KinshipGain, complementarity
from kinship_policies.policy import Member
from kinship_policies.regression import Regression, expected_improvement
from kinship_policies.testing import Landscape, evolve
from populations import child, fine_tunes, key, parents, population

# The regression


def test_the_posterior_is_the_conjugate_one():
    # Standardised as they are. X'X = 2 I, so the posterior precision is 2.1 I and the slope is
    # 2 / 2.1; a = 1 + 2/2, b = 0.1 + (2 - 2.1 (2 / 2.1)^2) / 2.
    learnt = Regression.learn(np.array([[-1.0], [1.0]]), np.array([-1.0, 1.0]), np.ones(2))
    assert learnt.mean == pytest.approx([0.0, 2 / 2.1])
    assert learnt.freedom == 4
    assert learnt.noise == pytest.approx(0.1476190 / 2)
    mean, deviation = learnt.predict(np.array([[1.0], [0.0]]), np.ones(2))
    assert mean == pytest.approx([0.9523810, 0.0])
    # Student's variance b/a (share + x' S x) v / (v - 2), with x' S x of 2 / 2.1 and 1 / 2.1.
    assert deviation == pytest.approx([0.5368507, 0.4668127], rel=1e-5)


def test_units_do_not_matter():
    rng = np.random.default_rng(0)
    features, gains = rng.normal(size=(9, 3)), rng.normal(size=9)
    plain = Regression.learn(features, gains, np.ones(9)).predict(features, np.ones(9))
    scaled = Regression.learn(100 * features + 7, 50 * gains + 3, np.ones(9))
    mean, deviation = scaled.predict(100 * features + 7, np.ones(9))
    assert mean == pytest.approx(50 * plain[0] + 3)
    assert deviation == pytest.approx(50 * plain[1])


def test_it_learns_a_line_and_is_the_surer_the_more_it_saw():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 2))
    gains = 3 * features[:, 0] - 0.5 * features[:, 1] + 1 + 0.5 * rng.normal(size=200)
    at = np.array([[2.0, 1.0]])
    few = Regression.learn(features[:8], gains[:8], np.ones(8)).predict(at, np.ones(1))
    many = Regression.learn(features, gains, np.ones(200)).predict(at, np.ones(1))
    assert many[0] == pytest.approx([6.5], abs=0.2)
    assert many[1] == pytest.approx([0.5], abs=0.1)  # the noise stays
    assert few[1] > many[1]


def test_a_gain_with_more_noise_counts_less_and_is_predicted_with_more():
    features, gains = np.array([[0.0], [0.0], [1.0]]), np.array([0.0, 4.0, 2.0])
    learnt = Regression.learn(features, gains, np.array([0.01, 1.0, 1.0]))
    (mean,), _ = learnt.predict(np.array([[0.0]]), np.ones(1))
    assert mean < 0.5
    _, deviations = learnt.predict(np.zeros((2, 1)), np.array([0.01, 1.0]))
    assert deviations[0] < deviations[1]


def test_unknown_and_constant_features_tell_nothing():
    features = np.array([[math.nan, 5.0], [1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])
    learnt = Regression.learn(features, np.array([0.5, -1.0, 1.0, 0.1]), np.ones(4))
    mean, deviation = learnt.predict(np.array([[math.nan, 5.0], [2.0, 5.0]]), np.ones(2))
    assert mean[0] == mean[1]  # an unknown one counts as average, here 2
    assert np.isfinite(deviation).all()
    same = Regression.learn(np.ones((3, 1)), np.full(3, 0.25), np.ones(3))
    assert same.predict(np.ones((1, 1)), np.ones(1))[0] == pytest.approx([0.25])


def test_expected_improvement_is_the_closed_form():
    mean, deviation = np.array([0.0, 1.0, -1.0, 2.0, -2.0]), np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    values = expected_improvement(mean, deviation, 0.0)
    # phi(0); Phi(1) + phi(1); phi(1) - Phi(-1); and without uncertainty what is above the best.
    assert values == pytest.approx([0.3989423, 1.0833155, 0.0833155, 2.0, 0.0], abs=1e-7)
    assert expected_improvement(np.array([-50.0]), np.array([1.0]), 0.0)[0] >= 0


# The features


def test_complementarity_is_what_both_know_beyond_the_better():
    a = Member("a", 0.5, {"x": 0.9, "y": 0.1}, samples={"x": (1.0, 0.0, 1.0, 0.0)})
    b = Member("b", 0.5, {"x": 0.2, "y": 0.8}, samples={"x": (0.0, 0.0, 1.0, 1.0)})
    by_documents = complementarity(population(a, b))
    assert by_documents == pytest.approx(np.array([[0.0, 0.25], [0.25, 0.0]]))
    by_tasks = complementarity(population(replace(a, samples={}), b))
    assert by_tasks == pytest.approx(np.array([[0.0, 0.35], [0.35, 0.0]]))
    unknown = complementarity(population(Member("a", 1.0), Member("b", 1.0)))
    assert unknown.tolist() == [[0.0, 0.0], [0.0, 0.0]]


# What it learns


def lineage(gain, **facts):
    """
    Eight fine-tunes; merges of a and b with others at every kinship, which gained so much.

    Left are pairs of equal scores, of which (g, h) are far apart and (e, f) near.
    """
    founders = fine_tunes(**dict.fromkeys("abcdefgh", 0.5))
    kin = {("a", "c"): 0.1, ("a", "d"): 0.3, ("a", "e"): 0.5, ("a", "f"): 0.7}
    kin |= {("b", "c"): 0.2, ("b", "d"): 0.4, ("b", "e"): 0.6, ("b", "f"): 0.8}
    children = [child(a + b, 0.5 + gain(value), a, b) for (a, b), value in kin.items()]
    kin |= {("e", "f"): 0.9, ("g", "h"): 0.0}
    return population(*founders, *children, kin=kin, default=0.45, **facts)


@pytest.mark.parametrize(
    ("gain", "pair"),
    [(lambda kin: -0.1 - 0.1 * kin, ("g", "h")), (lambda kin: -0.2 + 0.1 * kin, ("e", "f"))],
    ids=["distance paid", "nearness paid"],
)
def test_it_merges_who_is_like_those_that_paid(gain, pair):
    (merge,) = KinshipGain(pairs=1, min_improvement=0).propose(lineage(gain)).merges
    assert key(*merge.parents) == pair


def test_a_parents_higher_score_is_gone_on_from():
    (merge,) = KinshipGain(pairs=1).propose(lineage(lambda kin: 0.1 * (1 - kin))).merges
    assert "ac" in merge.parents  # the best child


def test_it_proposes_by_expected_improvement_and_tells_the_numbers():
    decision = KinshipGain(pairs=4).propose(lineage(lambda kin: 0.1 * (1 - kin)))
    reason = decision.merges[0].reason
    assert "expected score" in reason
    assert "+-" in reason
    assert "expected improvement on the best (0.59)" in reason
    assert "learnt from 8 merges" in reason
    assert "kinship -0" in reason.split("learnt from")[1]  # a deviation more of kinship costs
    promised = [
        float(m.reason.split("on the best (0.59) ")[1].split(";")[0]) for m in decision.merges
    ]
    assert promised == sorted(promised, reverse=True)
    assert len(promised) == 4


def test_it_stops_when_no_pair_promises_enough_and_says_that_this_is_no_proof():
    decision = KinshipGain(min_improvement=0.5).propose(lineage(lambda kin: 0.1 * (1 - kin)))
    assert decision.merges == ()
    assert "no pair promises 0.5: at the most" in decision.stop
    assert "what 8 merges teach, not proof that none would gain" in decision.stop


def test_merges_without_a_score_or_of_more_than_two_teach_nothing():
    people = lineage(lambda kin: 0.1 * (1 - kin))
    more = [
        child("x", math.nan, "g", "h"),
        child("y", -9.0, "a", "g", "h", method="linear", weight=[1, 1, 1]),
        child("z", 9.0, "gone", "h"),
    ]
    with_more = KinshipGain().propose(population(*people.members, *more, default=0.45))
    assert "learnt from 8 merges" in with_more.merges[0].reason


def test_at_first_it_merges_the_farthest_of_the_best():
    kin = {("a", "b"): 0.4, ("a", "c"): 0.2, ("b", "c"): 0.3, ("a", "e"): -0.9}
    people = population(*fine_tunes(a=5.0, b=4.0, c=3.0, d=2.0, e=1.0), kin=kin, generation=1)
    decision = KinshipGain().propose(people)
    assert parents(decision) == [("a", "c"), ("b", "c"), ("a", "b")]  # e is not of the best four
    assert "0 merges to learn from, fewer than 6" in decision.merges[0].reason
    unknown = population(*fine_tunes(a=5.0, b=4.0, c=3.0), kin={("a", "b"): None}, generation=1)
    assert parents(KinshipGain().propose(unknown))[-1] == ("a", "b")


def test_at_first_it_goes_on_with_all_when_the_best_are_merged():
    people = population(
        *fine_tunes(a=3.0, b=2.0, c=1.0), merged=[("a", "b")], kin={("b", "c"): 0.1}
    )
    assert parents(KinshipGain(max_founders=2).propose(people)) == [("b", "c"), ("a", "c")]


def test_on_a_landscape_it_gains_and_ends_by_itself():
    founders = {
        "a": (1.0, 0.0, 0.0), "b": (0.9, 0.3, 0.0), "c": (-0.5, 0.2, 0.6), "d": (0.0, 1.0, 0.2)
    }  # fmt: skip
    landscape = Landscape(founders, optimum=(0.3, 0.4, 0.2))
    *_, (people, decision) = evolve(KinshipGain(), landscape, generations=30)
    assert "no pair promises" in decision.stop
    assert people[people.best(1)[0]].score > -0.01  # the best of generation 1 has -0.04
