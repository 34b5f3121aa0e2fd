"""Folding in: clusters, order, the sweep, and keeping only what helps."""

import math
from dataclasses import replace

from kinship_policies.model_glue import ModelGlue, clusters
from populations import child, fine_tunes, parents, population

FOUNDERS = fine_tunes(a=0.9, b=0.8, c=0.7)


def glued(*children, policy=None, founders=FOUNDERS, **facts):
    return (policy or ModelGlue()).propose(population(*founders, *children, **facts))


def swept(best, *names, start="s"):
    """The children of a sweep, one of which has this score."""
    return [child(f"{start}{i}", best - 0.1 * i, *names, t=i / 10) for i in range(3)]


def test_clusters_gather_around_their_best():
    kin = {("a", "c"): 0.96, ("b", "d"): 0.97, ("c", "d"): 0.99, ("a", "d"): 0.95}
    people = population(*fine_tunes(a=4.0, b=3.0, c=2.0, d=1.0), kin=kin, default=0.0)
    # d is near c, but not to a, who is the first of that cluster; 0.95 is not above 0.95.
    assert clusters(people, ("a", "b", "c", "d"), 0.95) == [("a", "c"), ("b", "d")]
    assert clusters(people, ("a", "b", "c", "d"), -0.5) == [("a", "b", "c", "d")]
    unknown = population(*fine_tunes(a=4.0, b=3.0), kin={("a", "b"): None})
    assert clusters(unknown, ("a", "b"), -1.0) == [("a",), ("b",)]


def test_the_second_best_is_folded_into_the_best_over_a_sweep():
    (step,) = glued(generation=1).merges
    assert step.parents == ("a", "b")
    assert step.method == "slerp"
    assert sorted(variant["t"] for variant in step.variants()) == [i / 10 for i in range(1, 10)]
    assert "folds b (0.8) into a (0.9), trying 9 coefficients" in step.reason


def test_a_better_child_goes_on_and_a_worse_one_is_dropped():
    assert parents(glued(*swept(0.95, "a", "b"))) == [("s0", "c")]
    assert parents(glued(*swept(0.9, "a", "b"))) == [("a", "c")]  # no better than a: not kept
    assert parents(glued(*swept(math.nan, "a", "b"))) == [("a", "c")]
    assert parents(glued(merged=[("a", "b")])) == [("a", "c")]  # all nine were lost


def test_when_everybody_had_a_turn_it_stops():
    done = glued(*swept(0.95, "a", "b"), *swept(0.96, "s0", "c", start="t"))
    assert done.merges == ()
    assert "all 3 fine-tunes in 3 clusters had their turn, and came to t0 (0.96)" in done.stop


def test_clusters_fold_at_the_same_time_and_then_among_each_other():
    founders = fine_tunes(a=0.9, b=0.8, c=0.7, d=0.6)
    near = {"kin": {("a", "c"): 0.99, ("b", "d"): 0.99}, "founders": founders}
    assert parents(glued(**near)) == [("a", "c"), ("b", "d")]
    inside = [*swept(0.95, "a", "c"), *swept(0.5, "b", "d", start="t")]
    assert parents(glued(*inside, **near)) == [("s0", "b")]


def test_by_kinship_the_nearest_to_what_was_folded_comes_next():
    policy = ModelGlue(order="kinship")
    kin = {("a", "b"): 0.0, ("a", "c"): 0.4, ("a", "d"): 0.3, ("s0", "b"): 0.6, ("s0", "d"): 0.2}
    founders = fine_tunes(a=0.9, b=0.8, c=0.7, d=0.6)
    facts = {"policy": policy, "founders": founders, "kin": kin}
    assert parents(glued(**facts)) == [("a", "c")]
    assert parents(glued(*swept(0.95, "a", "c"), **facts)) == [("s0", "b")]
    assert parents(glued(*swept(0.1, "a", "c"), **facts)) == [("a", "d")]
    unknown = {**kin, ("a", "c"): None, ("a", "d"): None}
    assert parents(glued(**{**facts, "kin": unknown})) == [("a", "b")]


def test_only_the_best_fine_tunes_take_part():
    assert "all 2 fine-tunes" in glued(*swept(0.1, "a", "b"), policy=ModelGlue(models=2)).stop


def test_a_budget_cuts_the_sweep_to_its_middle():
    (step,) = ModelGlue().propose(replace(population(*FOUNDERS), budget=3)).merges
    assert sorted(variant["t"] for variant in step.variants()) == [0.4, 0.5, 0.6]


def test_a_newcomer_takes_its_place_in_the_order():
    people = [*FOUNDERS, *fine_tunes(n=0.85)]
    assert parents(glued(*swept(0.1, "a", "b"), founders=people)) == [("a", "n")]


def test_merges_whose_fine_tunes_are_gone_are_not_folded():
    left = population(*swept(0.9, "x", "y"), default=0.3)
    assert ModelGlue().propose(left).stop.startswith("folding starts from fine-tunes")
