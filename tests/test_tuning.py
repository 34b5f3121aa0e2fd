"""Methods and coefficients raced against each other within a budget."""

import math

import pytest

from kinship_daemon.tuning import Tuner, first_recipe
from kinship_daemon.weights.methods.registry import methods
from kinship_daemon.weights.recipe import Recipe

SHARES = (0.3, 0.6, 1.0)
PARENTS = ("a", "b", "c")


class Score:
    """Task arithmetic is best at weights 0.9, 0.4 and 0.1; who is asked how far is written down."""

    def __init__(self, noise=0.0):
        self.asked, self.noise = [], noise

    def __call__(self, recipe, rung):
        self.asked.append((recipe, rung))
        if recipe.method != "task_arithmetic":
            return 0.2
        weights = [w * recipe.parameters["lambda"] for w in recipe.parameters["weight"]]
        off = sum((w - best) ** 2 for w, best in zip(weights, (0.9, 0.4, 0.1), strict=True))
        return 0.8 - off + self.noise * math.sin(7 * rung + 31 * weights[0])

    def documents(self):
        """In evaluations, each document of a recipe counted once."""
        furthest = {}
        for recipe, rung in self.asked:
            key = recipe.identity(recipe.parents)
            furthest[key] = max(rung, furthest.get(key, 0))
        return sum(SHARES[rung] for rung in furthest.values())


def starts():
    found = (first_recipe(name, PARENTS) for name in ("linear", "karcher", "task_arithmetic"))
    return [recipe for recipe in found if recipe is not None]


def test_the_better_half_goes_on_and_all_answer_the_same_documents():
    score = Score()
    best = Tuner(score, SHARES, 2).tune(starts())
    assert best.recipe.method == "task_arithmetic"
    assert best.rung == 2
    rungs = [rung for _, rung in score.asked]
    assert [rungs.count(rung) for rung in range(3)] == [3, 2, 1]


def test_coefficients_are_found_within_the_budget():
    score = Score()
    tuner = Tuner(score, SHARES, 60)
    best = tuner.tune(starts())
    weights = [w * best.recipe.parameters["lambda"] for w in best.recipe.parameters["weight"]]
    assert weights == pytest.approx([0.9, 0.4, 0.1], abs=0.1)
    assert tuner.spent == pytest.approx(score.documents())
    assert tuner.spent <= 60
    assert tuner.trials[0] == max(tuner.trials, key=lambda trial: (trial.rung, trial.score))


@pytest.mark.parametrize("budget", [0.5, 2, 3, 8, 20])
def test_more_budget_is_never_overspent_and_never_worse(budget):
    score = Score()
    tuner = Tuner(score, SHARES, budget)
    best = tuner.tune(starts())
    assert score.documents() <= budget + 1e-9
    if budget < 2:
        assert best is None
    else:
        assert best.score >= Score()(starts()[-1], 2)


def test_the_same_answers_give_the_same_race():
    runs = [Tuner(Score(0.05), SHARES, 25) for _ in range(2)]
    assert runs[0].tune(starts()) == runs[1].tune(starts())
    assert runs[0].trials == runs[1].trials


def test_a_recipe_that_cannot_be_made_loses():
    def measure(recipe, _):
        return -math.inf if recipe.method == "karcher" else 0.5

    best = Tuner(measure, SHARES, 3).tune(starts())
    assert best.recipe.method == "linear"


def test_every_installed_method_has_a_start_or_takes_other_parents():
    for name in methods():
        pair, three = first_recipe(name, ("a", "b")), first_recipe(name, PARENTS)
        assert pair is not None, name
        assert three is None or isinstance(three, Recipe)
        assert None not in pair.parameters.values(), name


def test_a_method_without_coefficients_may_win_and_the_others_are_still_searched():
    def measure(recipe, _):
        if recipe.method == "karcher":
            return 0.75
        return Score()(recipe, 2)

    best = Tuner(measure, SHARES, 80).tune(starts())
    assert best.recipe.method == "task_arithmetic"
    assert best.score > 0.78
