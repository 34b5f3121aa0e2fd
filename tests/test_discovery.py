"""The levels of the gate hold the share of luck among all that is ever published."""

import numpy as np
import pytest

from kinship_daemon.evaluate.discovery import CAP, Judged, e_lond, saffron

# What `online-fdr` 1.0.0 gives: Saffron(alpha=0.1, wealth=0.05, lambda_=0.5), each p in turn.
ONLINE_FDR = [
    (0.001, 0.010937254145),
    (0.3, 0.02187450829),
    (0.02, 0.02187450829),
    (0.8, 0.04374901658),
    (0.0005, 0.014431793366461127),
    (0.6, 0.03630630165646113),
    (0.9, 0.014759420876877528),
    (0.0001, 0.008532478475244791),
    (0.4, 0.030406986765244788),
    (0.002, 0.030406986765244788),
    (0.7, 0.05228149505524479),
    (0.015, 0.020143471064770314),
]


def life(ps, rule=saffron, fdr=0.1):
    """The levels that a home meets, and what it makes of them."""
    past = []
    for p in ps:
        level = rule(past, fdr)
        past.append(Judged(p, p <= level))
        yield level, past[-1].passed


def test_levels_are_saffrons_up_to_the_cap():
    found = [level for level, _ in life([p for p, _ in ONLINE_FDR])]
    assert found == pytest.approx([min(CAP, level) for _, level in ONLINE_FDR], rel=1e-7)


def test_a_home_without_luck_asks_for_more_and_more_and_one_with_finds_for_less():
    barren = [level for level, _ in life([0.9] * 200)]
    assert barren == sorted(barren, reverse=True)
    assert 0 < barren[-1] < barren[0] / 1000
    fruitful = [level for level, _ in life([1e-6] * 50)]
    assert fruitful == sorted(fruitful)
    assert fruitful[-1] == CAP


def test_candidates_cost_nothing():
    assert [level for level, _ in life([0.4] * 20)] == [saffron([], 0.1)] * 20


@pytest.mark.parametrize("nulls", [1.0, 0.9, 0.5])
def test_the_share_of_luck_stays_below_what_is_set(nulls):
    """Independent tests, where the rule is proven: 100 judgements a home."""
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(400):
        null = rng.random(100) < nulls
        ps = np.where(null, rng.random(100), rng.random(100) ** 12)
        passed = np.array([found for _, found in life(ps)])
        shares.append((passed & null).sum() / max(1, passed.sum()))
    assert np.mean(shares) <= 0.1 + 3 * np.std(shares) / 20


def test_strict_levels_are_those_of_e_lond():
    past = [Judged(0.001, True), Judged(0.5, False)]
    assert e_lond([], 0.1) == pytest.approx(0.1 * 0.43749, rel=1e-4)
    assert e_lond(past, 0.1) == pytest.approx(0.1 * 0.43749 * 3**-1.6 * 2, rel=1e-4)
