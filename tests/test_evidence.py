"""The p-value of a gain: right in small samples, and what the e-value of one promises."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from kinship_daemon.errors import KinshipError
from kinship_daemon.evaluate.e_value import e_value
from kinship_daemon.evaluate.evidence import evidence, sign_flip, units

SIZES = (634, 660, 409)


def by_hand(values):
    """Every pattern of signs, one after the other."""
    seen = sum(values) - 1e-12
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in SIGNS[len(values)]]
    return sum(total >= seen for total in sums) / len(sums)


SIGNS = {n: list(product((-1, 1), repeat=n)) for n in range(1, 13)}


def answers(rng, gain=0.0, discordant=0.08, sizes=SIZES):
    """Differences of right and wrong answers."""
    chances = [(discordant - gain) / 2, 1 - discordant, (discordant + gain) / 2]
    return [rng.choice([-1.0, 0.0, 1.0], n, p=chances) for n in sizes]


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0, -1.0, 0.0, 1.0],
        [0.5, 0.25, -0.25, 0.5, 0.5],
        [0.1, 0.2, 0.3, -0.05, 0.07, 0.11, -0.2, 0.4],
        [-1.0, -1.0],
        [1 / 634] * 3 + [1 / 660] * 4 + [-1 / 409] * 2,
    ],
)
def test_the_sign_flip_is_that_of_every_pattern_of_signs(values):
    nonzero = [value for value in values if value]
    assert sign_flip(np.array(values)) == pytest.approx(by_hand(nonzero), abs=1e-12)


def test_four_documents_all_in_favour_prove_nothing():
    """What passed the gate that took a bootstrap's interval."""
    differences = [np.zeros(n) for n in SIZES]
    for place in range(4):
        differences[place % 3][place] = 1.0
    found = evidence(differences)
    assert stats.norm.sf(found.gain / found.stderr) < 0.03
    assert found.p == pytest.approx(1 / 16)


def test_answers_in_one_size_of_task_follow_the_binomial_law():
    differences = [np.repeat([1.0, -1.0, 0.0], (30, 12, 58)) for _ in range(3)]
    exact = stats.binomtest(90, 126, alternative="greater").pvalue
    assert sign_flip(np.concatenate(differences)) == pytest.approx(exact, rel=1e-9)


def test_many_graded_answers_are_flipped_at_random_and_by_seed():
    rng = np.random.default_rng(3)
    values = rng.normal(0.02, 0.2, 500)
    normal = stats.norm.sf(values.sum() / np.sqrt((values**2).sum()))
    assert sign_flip(values, 1) == pytest.approx(normal, rel=0.05)
    assert sign_flip(values, 1) == sign_flip(values, 1) != sign_flip(values, 2)
    assert sign_flip(np.abs(values), 1) == 1e-6


def test_gain_and_error_are_those_of_tasks_that_weigh_the_same():
    rng = np.random.default_rng(4)
    differences = [rng.normal(0.01, 0.3, n) for n in (30, 300)]
    found = evidence(differences)
    assert found.gain == pytest.approx((differences[0].mean() + differences[1].mean()) / 2)
    errors = [values.var(ddof=1) / len(values) for values in differences]
    assert found.stderr == pytest.approx(np.sqrt(sum(errors)) / 2)
    assert found.p >= stats.norm.sf(found.gain / found.stderr)


def test_luck_is_called_significant_no_more_often_than_it_says():
    """Also where one document in a hundred differs, and where all differences are graded."""
    rng = np.random.default_rng(5)
    for discordant in (0.01, 0.04, 0.18):
        found = [evidence(answers(rng, discordant=discordant)).p for _ in range(1500)]
        for level in (0.025, 0.005):
            allowed = level + 3 * np.sqrt(level * (1 - level) / 1500)
            assert np.mean(np.array(found) <= level) <= allowed, (discordant, level)


def test_a_gain_of_two_points_is_mostly_found():
    rng = np.random.default_rng(6)
    found = [evidence(answers(rng, gain=0.02)).p for _ in range(200)]
    assert np.mean(np.array(found) <= 0.0109) > 0.6


def test_what_must_be_gained_is_taken_off_first():
    differences = [np.repeat([1.0, -1.0, 0.0], (60, 20, 320))]
    assert evidence(differences).p < 1e-4
    assert evidence(differences, min_gain=0.08).p > 0.001
    assert evidence(differences, min_gain=0.1).p == pytest.approx(0.5, abs=0.05)
    assert evidence(differences, min_gain=-1).p < 1e-100


@pytest.mark.parametrize(("gain", "low", "high"), [(0.0, 1, 1), (0.25, 0, 1e-9), (-0.25, 1, 1)])
def test_differences_that_are_all_the_same_are_judged(gain, low, high):
    assert low <= evidence([np.full(40, gain)]).p <= high


def test_questions_about_one_text_are_one_witness():
    """Forty questions about four texts, all right or all wrong together."""
    texts = np.repeat(np.arange(20), 10)
    differences = np.repeat(np.where(np.arange(20) < 4, 1.0, 0.0), 10)
    assert evidence([differences]).p < 1e-6
    found = evidence([units(differences, texts)])
    assert found.p == pytest.approx(1 / 16)
    assert found.gain == pytest.approx(differences.mean())
    assert (units(differences, np.arange(200)) == differences).all()
    # Of texts with unlike many questions, too, the mean is that over questions.
    uneven = np.array([0, 0, 0, 1, 2, 2])
    assert units(np.arange(6.0), uneven).mean() == pytest.approx(2.5)


def test_one_document_is_too_few():
    with pytest.raises(KinshipError, match="has 1 documents"):
        evidence([np.ones(1)])


def test_a_bet_against_nothing_gained_ends_at_one_on_average():
    rng = np.random.default_rng(7)
    ends = [e_value(answers(rng), answers(rng)) for _ in range(3000)]
    assert np.mean(ends) <= 1 + 3 * np.std(ends) / np.sqrt(len(ends))
    assert np.mean(np.array(ends) >= 20) <= 0.05


def test_a_bet_on_a_real_gain_wins_much():
    rng = np.random.default_rng(8)
    ends = [e_value(answers(rng, gain=0.03), answers(rng)) for _ in range(100)]
    assert np.median(ends) > 100
    assert e_value([np.ones(3000)], [np.ones(10)]) > 1e100


def test_nobody_bets_more_than_all():
    differences = [np.concatenate([-np.ones(30), np.ones(30)])]
    assert e_value(differences, [np.zeros(60)]) > 0
    with pytest.raises(KinshipError, match="between 0 and 1"):
        e_value([np.array([3.0, 0.0])], differences)
