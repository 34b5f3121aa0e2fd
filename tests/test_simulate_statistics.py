"""Comparing policies: the numbers by hand, and how often it is right about a known difference."""

from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from kinship_policies.simulate.compare import compare, worth
from kinship_policies.simulate.evolution import Point, Run
from kinship_policies.simulate.statistics import holm, interval, sign_flip


def run(policy, seed, *points, evaluations=10, **facts):
    """A run whose best was (evaluations, worth) at each of the points."""
    curve = [Point(at, f"m{at}", score, None) for at, score in points]
    return Run(policy, seed, evaluations=evaluations, curve=curve, **facts)


def runs(policy, finals, evaluations=10):
    return [run(policy, s, (0, 0.0), (5, x), evaluations=evaluations) for s, x in enumerate(finals)]


# Sign flips


def test_few_pairs_are_tested_exactly():
    # Of 8 sign patterns, only +++ and --- reach a mean as large.
    assert sign_flip(np.array([1.0, 2.0, 3.0]), seed=0) == 2 / 8
    # -1 2 3 sums to 4; as large in size: ++ + (6), -++ (4), and their opposites.
    assert sign_flip(np.array([-1.0, 2.0, 3.0]), seed=0) == 4 / 8


def test_the_exact_test_agrees_with_counting_by_hand():
    values = np.random.default_rng(1).normal(0.4, 1, 9)
    patterns = [
        sum(s * v for s, v in zip(p, values, strict=True)) for p in product((1, -1), repeat=9)
    ]
    expected = np.mean([abs(total) >= abs(values.sum()) - 1e-12 for total in patterns])
    assert sign_flip(values, seed=0) == expected


def test_no_difference_at_all_has_p_1():
    assert sign_flip(np.zeros(30), seed=0) == 1.0


def test_drawn_signs_come_near_the_exact_test_and_are_seeded():
    values = np.random.default_rng(2).normal(0.3, 1, 40)
    p = sign_flip(values, seed=3)
    assert p == sign_flip(values, seed=3)
    # For 40 pairs the sum of random signs is nearly normal.
    z = abs(values.sum()) / np.sqrt((values**2).sum())
    assert p == pytest.approx(2 * NormalDist().cdf(-z), abs=0.015)


def test_drawn_signs_never_give_p_0():
    assert sign_flip(np.full(50, 1.0), seed=0) == 1 / 10000


# Holm


def test_holm_by_hand():
    # Sorted .01 .02 .03: times 3, 2, 1, and never falling.
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx(
        {"a": 0.04, "b": 0.03, "c": 0.04}
    )
    assert holm({"a": 0.6, "b": 0.5}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


# Intervals


def test_an_interval_of_many_normal_values_is_the_usual_one():
    values = np.random.default_rng(4).normal(1.0, 2.0, 400)
    low, high = interval(values, seed=0)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_an_interval_leans_the_way_its_values_do():
    values = np.random.default_rng(5).exponential(1.0, 40)
    low, high = interval(values, seed=0)
    assert high - values.mean() > values.mean() - low > 0


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(6)
    held = [
        low <= 1 <= high for low, high in (interval(rng.exponential(1, 30), 0) for _ in range(200))
    ]
    assert 0.88 <= np.mean(held) <= 0.98  # 95 % in large samples, a little less here


def test_one_value_has_no_width():
    assert interval(np.array([0.3]), seed=0) == (0.3, 0.3)
    assert interval(np.full(5, 0.1), seed=0) == pytest.approx((0.1, 0.1))


# Measures


def test_worth_is_the_true_score_of_what_measured_best():
    curve = [Point(0, "f", 0.5, 0.5), Point(2, "lucky", 0.8, 0.4), Point(3, "good", 0.9, 0.7)]
    assert worth(Run("p", 0, curve=curve), 4).tolist() == [0.5, 0.5, 0.4, 0.7, 0.7]


def test_measures_by_hand():
    greedy = run("topk-greedy", 0, (0, 1.0), (1, 2.0), (3, 3.0), evaluations=3)
    other = run("other", 0, (0, 1.0), (2, 3.0), (4, 5.0), evaluations=4)
    (found,) = compare([greedy, other], 4, 0)
    m = found.measures
    assert (m["best"].a, m["best"].b, m["best"].difference) == (3.0, 5.0, -2.0)
    assert (m["area"].a, m["area"].b) == ((2 + 2 + 3 + 3) / 4, (1 + 3 + 3 + 5) / 4)
    assert (m["reach"].a, m["reach"].b, m["reach"].reached) == (3.0, 2.0, (1, 1))
    assert (m["evaluations"].a, m["evaluations"].b) == (3.0, 4.0)


def test_a_run_that_never_gets_there_counts_the_whole_budget_and_is_told():
    greedy = [run("topk-greedy", s, (0, 1.0), (3, 3.0)) for s in (0, 1)]
    other = [run("other", 0, (0, 1.0), (1, 3.0)), run("other", 1, (0, 1.0), (1, 2.9))]
    (found,) = compare([*greedy, *other], 20, 0)
    assert (found.measures["reach"].b, found.measures["reach"].reached) == ((1 + 20) / 2, (2, 1))


def test_without_the_reference_there_is_nothing_to_reach():
    (found,) = compare([*runs("a", [1.0]), *runs("b", [2.0])], 10, 0)
    assert "reach" not in found.measures


# Sentences


def test_a_clear_difference_is_said_for_the_better_one():
    rng = np.random.default_rng(7)
    base = rng.normal(0, 1, 30)
    (found,) = compare([*runs("a", base), *runs("b", base + rng.normal(0.5, 0.3, 30))], 10, 0)
    assert found.sentence.startswith("b finds a better model than a: +0.")
    assert "p < 0.001" in found.sentence
    assert found.measures["best"].high < 0


def test_none_is_said_where_none_is_shown():
    rng = np.random.default_rng(8)
    (found,) = compare([*runs("a", rng.normal(0, 1, 30)), *runs("b", rng.normal(0, 1, 30))], 10, 0)
    assert found.sentence.startswith("no difference shown between a and b")


def test_where_only_the_correction_hides_a_difference_that_is_said():
    """Of three pairs, one differs by little: its own interval leaves 0 out, Holm's p does not."""
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 1, (3, 30))
    shift = np.array([0.0, 0.0, 0.5])[:, None]
    named = zip("abc", noise + shift, strict=True)
    found = compare([run for name, values in named for run in runs(name, values)], 10, 0)
    hidden = [
        each
        for each in found
        if not each.measures["best"].shown
        and each.measures["best"].low * each.measures["best"].high > 0
    ]
    assert hidden
    for each in found:
        assert ("p is corrected for all pairs" in each.sentence) == (each in hidden)


def test_one_seed_shows_nothing():
    (found,) = compare([*runs("a", [1.0]), *runs("b", [2.0])], 10, 0)
    assert "one case, which shows nothing beyond itself" in found.sentence
    assert found.measures["best"].p is None


def test_the_same_case_many_times_is_one_case():
    same = [*runs("a", [1.0] * 50), *runs("b", [2.0] * 50)]
    (found,) = compare(same, 10, 0, varies=False)
    assert "one case" in found.sentence
    (found,) = compare(same, 10, 0)  # in 50 different worlds it would tell
    assert found.measures["best"].shown


def test_more_policies_make_it_harder():
    rng = np.random.default_rng(9)
    base = rng.normal(0, 1, 25)
    two = [*runs("a", base), *runs("b", base + rng.normal(0.1, 0.2, 25))]
    (alone,) = compare(two, 10, 0)
    among = compare([*two, *runs("c", base), *runs("d", base)], 10, 0)[0]
    assert among.measures["best"].p == alone.measures["best"].p
    assert among.measures["best"].p_holm > alone.measures["best"].p_holm


def test_it_finds_a_real_difference_and_rarely_one_that_is_not_there():
    rng = np.random.default_rng(10)

    def shown(gain):
        found = 0
        for _ in range(100):
            base = rng.normal(0, 1, 20)
            gains = rng.normal(gain, 0.1, 20)
            (one,) = compare([*runs("a", base), *runs("b", base + gains)], 10, 0)
            found += one.measures["best"].shown
        return found

    assert shown(0.1) >= 90  # a gain as large as its spread, over 20 seeds
    assert shown(0.0) <= 10  # 5 are expected
