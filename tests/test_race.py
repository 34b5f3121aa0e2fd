"""Who can hardly win any more is seen early, and seldom wrongly."""

import numpy as np
import pytest

from kinship_daemon.evaluate.race import Asked, Forecast, can_hardly_be_among, forecast

SIZES = (500, 300)


def world(rng, gain, sizes=SIZES):
    """A child, and two parents that are right where it is in four of five documents."""
    for size in sizes:
        hardness = rng.normal(size=size)
        skills = (0.3 + 3 * gain, 0.2, 0.3)
        yield [(hardness + 0.6 * rng.normal(size=size) < s).astype(float) for s in skills]


def graded(rng, gain, sizes=SIZES):
    for size in sizes:
        base = rng.random(size)
        noise = rng.normal(0, 0.1, (3, size))
        yield np.clip(base + gain * np.array([[1], [0], [0]]) + noise, 0, 1)


def told(tasks, share):
    return forecast(
        [Asked(c[: round(share * len(c))], len(c), np.array(known)) for c, *known in tasks]
    )


@pytest.mark.parametrize("make", [world, graded])
def test_the_end_is_foretold_within_its_error(make):
    rng = np.random.default_rng(1)
    off = []
    for _ in range(300):
        tasks = list(make(rng, 0.0))
        found = told(tasks, 0.3)
        end = np.mean([child.mean() for child, _, _ in tasks])
        off.append((end - found.mean) / found.stderr)
    assert abs(np.mean(off)) < 0.25
    assert 0.8 < np.std(off) < 1.25
    assert np.mean(np.abs(off) > 2.6) < 0.03


@pytest.mark.parametrize("make", [world, graded])
def test_parents_tell_more_than_the_childs_own_mean(make):
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(200):
        tasks = list(make(rng, 0.0))
        end = np.mean([child.mean() for child, _, _ in tasks])
        own = np.mean([child[: round(0.3 * len(child))].mean() for child, _, _ in tasks])
        errors.append((told(tasks, 0.3).mean - end, own - end))
    ours, plain = np.std(errors, axis=0)
    assert ours < 0.8 * plain


def test_what_is_known_whole_is_told_exactly():
    rng = np.random.default_rng(3)
    for make in (world, graded):
        tasks = list(make(rng, 0.1))
        found = told(tasks, 1.0)
        assert found == Forecast(np.mean([child.mean() for child, _, _ in tasks]), 0.0)


def test_a_worse_model_stops_early_and_a_better_one_goes_on():
    rng = np.random.default_rng(4)

    def stops(gain):
        tasks = list(world(rng, gain))
        goal = np.mean([other.mean() for _, _, other in tasks])
        shares = np.arange(1, 11) / 10
        return next(
            (s for s in shares if can_hardly_be_among(told(tasks, s), [Forecast(goal)], 1, 2.6)),
            None,
        )

    assert np.mean([stops(-0.1) or 1 for _ in range(60)]) < 0.5
    assert sum(stops(0.03) is not None for _ in range(60)) <= 4


def test_before_anything_is_asked_nobody_stops():
    parents = np.array([np.ones(50), np.r_[np.zeros(25), np.ones(25)]])
    nothing = forecast([Asked(np.zeros(0), 50, parents)])
    assert nothing.mean == pytest.approx((0.45 + 0.96) / 2)
    assert not can_hardly_be_among(nothing, [Forecast(0.8)], 1, 2.6)


@pytest.mark.parametrize("make", [world, graded])
def test_where_nobody_is_known_a_models_own_answers_foretell_its_end(make):
    rng = np.random.default_rng(5)
    off = []
    for _ in range(300):
        children = [child for child, _, _ in make(rng, 0.0)]
        found = forecast([Asked(c[: round(0.3 * len(c))], len(c)) for c in children])
        off.append((np.mean([c.mean() for c in children]) - found.mean) / found.stderr)
    assert abs(np.mean(off)) < 0.25
    assert 0.8 < np.std(off) < 1.25


def test_it_stops_when_as_many_as_are_kept_are_surely_ahead():
    found = Forecast(0.5, 0.01)
    ahead, beside, unsure = Forecast(0.6), Forecast(0.51), Forecast(0.6, 0.1)
    assert can_hardly_be_among(found, [ahead, ahead, beside], 2, 2.6)
    assert not can_hardly_be_among(found, [ahead, ahead, beside], 3, 2.6)
    assert not can_hardly_be_among(found, [ahead, unsure], 2, 2.6)
