"""SoCE: the experts of weakly correlated tasks, in every weighting."""

from dataclasses import replace

import pytest

from kinship_daemon.weights import recipe
from kinship_policies.category_soup import CategorySoup
from kinship_policies.policy import Member, Past
from populations import parents, population


def model(name, **tasks):
    return Member(name, sum(tasks.values()) / len(tasks), tasks)


# `more` goes with `sums`; `words` goes the other way.
FOUR = [
    model("a", sums=0.9, more=0.8, words=0.1),
    model("b", sums=0.7, more=0.7, words=0.3),
    model("c", sums=0.4, more=0.5, words=0.6),
    model("d", sums=0.2, more=0.1, words=0.9),
]


def test_the_experts_of_tasks_that_do_not_go_together_are_weighted_in_all_ways():
    decision = CategorySoup().propose(population(*FOUR, generation=1))
    (merge,) = decision.merges
    # a is best at two tasks.
    assert (merge.parents, merge.method) == (("a", "d"), "linear")
    weights = [step["weight"] for step in merge.sweep]
    assert weights[0] == [0.5, 0.5]
    assert sorted(weights) == [[i / 10, (10 - i) / 10] for i in range(1, 10)]
    assert "more, sums, words" in merge.reason
    for parameters in merge.variants():
        recipe.check(recipe.Recipe(merge.method, merge.parents, parameters), ["w"])


def test_of_three_experts_the_equal_soup_is_one_more():
    three = [
        model("a", x=0.9, y=0.1, z=0.2),
        model("b", x=0.2, y=0.9, z=0.1),
        model("c", x=0.1, y=0.2, z=0.9),
    ]
    (merge,) = CategorySoup().propose(population(*three, generation=1)).merges
    assert merge.parents == ("a", "b", "c")
    assert len(merge.sweep) == 1 + 36
    assert merge.sweep[0] == {"weight": [1 / 3] * 3}
    assert all(sum(step["weight"]) == pytest.approx(1) for step in merge.sweep)
    assert min(min(step["weight"]) for step in merge.sweep) == 0.1
    (merge,) = CategorySoup(models=2).propose(population(*three, generation=1)).merges
    assert merge.parents == ("a", "b")


def test_tasks_that_go_together_have_no_soup():
    alike = [replace(each, tasks={"sums": each.score, "more": each.score / 2}) for each in FOUR]
    decision = CategorySoup().propose(population(*alike, generation=1))
    assert decision.merges == ()
    assert decision.stop.startswith("done: no two tasks have different experts")
    only = CategorySoup(weak=-0.999).propose(population(*FOUR, generation=1))
    assert only.merges == ()


def test_a_task_that_all_do_alike_or_that_some_were_not_asked_is_left_out():
    odd = [replace(each, tasks={**each.tasks, "same": 0.5}) for each in FOUR]
    assert parents(CategorySoup().propose(population(*odd, generation=1))) == [("a", "d")]
    unasked = Member("e", 0.9, {"sums": 0.95})
    known = population(*FOUR, unasked, generation=1)
    assert parents(CategorySoup().propose(known)) == [("a", "d")]


def made(*weights):
    return [
        Member(f"m{i}", 0.8, {}, 1, ("a", "d"), "linear", {"weight": [w, round(1 - w, 1)]})
        for i, w in enumerate(weights)
    ]


def test_a_budget_is_spent_piece_by_piece_until_all_were_tried():
    (merge,) = CategorySoup().propose(population(*FOUR, generation=1, budget=2)).merges
    assert [step["weight"][0] for step in merge.sweep] == [0.5, 0.9]
    past = (Past(1, (), None, ("m0", "m1")),)
    again = population(*FOUR, *made(0.5, 0.9), generation=2, history=past)
    (merge,) = CategorySoup().propose(again).merges
    assert len(merge.sweep) == 7
    everything = made(*(i / 10 for i in range(1, 10)))
    decision = CategorySoup().propose(population(*FOUR, *everything, generation=2, history=past))
    assert decision.stop.startswith("done: the soup of 2 experts was weighted in all ways")


def test_a_sweep_that_came_to_nothing_is_not_asked_again():
    past = (Past(1, (), None, ()),)
    assert CategorySoup().propose(population(*FOUR, generation=2, history=past)).merges == ()


def test_one_fine_tune_makes_no_soup():
    assert CategorySoup().propose(population(FOUR[0], generation=1)).merges == ()
