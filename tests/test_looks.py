"""Looks while documents come in keep the error, save documents, and lose little power."""

import numpy as np
import pytest
from scipy import stats

from kinship_daemon.evaluate.looks import (
    LOOKS,
    boundary,
    chance_of_crossing,
    is_futile,
    predictive_chance,
)

SHARES = np.arange(1, LOOKS + 1) / LOOKS


def paths(drift, count=100_000, seed=0):
    """z * sqrt(tau) at every look, (count, looks)."""
    steps = np.random.default_rng(seed).normal(drift / LOOKS, LOOKS**-0.5, (count, LOOKS))
    return steps.cumsum(1)


@pytest.mark.parametrize(("alpha", "c"), [(0.025, 2.088), (0.005, 2.66), (0.001, 3.157)])
def test_boundaries_are_those_of_the_books(alpha, c):
    assert boundary(alpha) == pytest.approx(c, abs=0.008)


def test_one_look_is_the_test_without_looks():
    for alpha in (0.025, 0.01):
        assert boundary(alpha, shares=(1.0,)) == pytest.approx(stats.norm.isf(alpha), abs=1e-6)


def test_looks_need_not_be_equal():
    """As where documents come in whole chunks: 64 of 400, and so on."""
    shares = (0.16, 0.48, 0.64, 1.0)
    rng = np.random.default_rng(4)
    steps = rng.normal(0, np.sqrt(np.diff((0, *shares))), (200_000, len(shares)))
    crossed = (steps.cumsum(1) >= 2.0).any(1).mean()
    assert chance_of_crossing(2.0, shares) == pytest.approx(crossed, abs=0.0015)
    assert chance_of_crossing(boundary(0.01, shares), shares) == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.025, 0.0109])
def test_nothing_gained_is_accepted_as_often_as_it_says(alpha):
    crossed = (paths(0.0) >= boundary(alpha)).any(1).mean()
    assert crossed == pytest.approx(alpha, abs=4 * np.sqrt(alpha / 100_000))


def test_the_largest_value_seen_has_a_p_of_its_own():
    ps = [chance_of_crossing(c) for c in (-9.0, 0.5, 2.0865, 3.15)]
    assert ps[0] == 1
    assert ps[2:] == pytest.approx([0.025, 0.001], rel=1e-3)
    assert ps == sorted(ps, reverse=True)


def test_the_end_is_foretold_as_it_comes():
    """With every true gain as likely: drifts over a wide range, seen at 0.3 of the documents."""
    rng = np.random.default_rng(2)
    drift = rng.uniform(-12, 12, 200_000)
    early = rng.normal(0.3 * drift, np.sqrt(0.3))
    end = early + rng.normal(0.7 * drift, np.sqrt(0.7))
    near = np.abs(early / np.sqrt(0.3) - 1.0) < 0.1
    assert predictive_chance(1.0, 0.3) == pytest.approx((end[near] >= 1.96).mean(), abs=0.02)
    assert predictive_chance(2.0, 1.0) == 1
    assert predictive_chance(1.9, 1.0) == 0


def test_what_is_given_up_could_hardly_have_passed():
    """Of merges that gain nothing most are given up by half of the documents, of good ones few."""

    def given_up(drift):
        z = paths(drift, 20_000) / np.sqrt(SHARES)
        looks = [[is_futile(z[i, k], SHARES[k]) for k in range(5)] for i in range(2000)]
        return np.array(looks).any(1).mean()

    assert given_up(0.0) > 0.7
    assert given_up(4.0) < 0.1
