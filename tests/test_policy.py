"""The records that a policy is given and gives back, and their JSON."""

import json
import math
from dataclasses import FrozenInstanceError

import pytest

from kinship_policies.policy import Decision, Member, Past, Policy, Population, Proposal

POPULATION = Population(
    generation=3,
    members=(
        Member("a", 0.5, {"add": 0.4, "sort": 0.6}),
        Member("b", math.inf, {}, 1, ("a", "c")),
        Member("c", 0.1),
    ),
    kinship=((1.0, None, -0.25), (None, 1.0, None), (-0.25, None, 1.0)),
    merged=frozenset({("a", "c"), ("a", "b")}),
    newcomers=("c",),
    previous_top=("b", "a"),
    saturated=2,
    seed=7,
)
FINITE = Population(
    **{**vars(POPULATION), "members": (POPULATION.members[0], Member("b", 0.2), Member("c", 0.1))}
)


def through_json(data):
    return json.loads(json.dumps(data, allow_nan=False))


def test_a_population_survives_json():
    assert Population.from_json(through_json(FINITE.to_json())) == FINITE


def test_a_first_population_survives_json():
    first = Population(generation=1, members=(Member("a", 1.0),), kinship=((1.0,),))
    again = Population.from_json(through_json(first.to_json()))
    assert again == first
    assert again.previous_top is None


def test_an_unknown_score_survives_json():
    nobody = Population(1, (Member("a", math.nan, {"add": math.nan}),), ((None,),))
    again = Population.from_json(through_json(nobody.to_json()))
    assert math.isnan(again["a"].score)
    assert math.isnan(again["a"].tasks["add"])


@pytest.mark.parametrize(
    "decision",
    [
        Decision(
            merges=(
                Proposal(("a", "b"), "pair", "why", "slerp", {"t": [0.1, 0.9]}),
                Proposal(("a", "c", "d"), "exploration", "why not"),
            ),
            top=("a", "b"),
            top_mean_kinship=0.5,
            saturated=1,
        ),
        Decision(merges=(), top=(), top_mean_kinship=None, stop="enough"),
    ],
)
def test_a_decision_survives_json(decision):
    assert Decision.from_json(through_json(decision.to_json())) == decision


def test_the_best_come_by_score_then_name_and_the_unknown_last():
    names = Population(
        1, tuple(Member(n, s) for n, s in zip("abcd", (1, math.nan, 2, 1), strict=True)), ()
    )
    assert names.best(4) == ("c", "a", "d", "b")
    assert names.best(2) == ("c", "a")
    assert names.best(2, among=["d", "b"]) == ("d", "b")
    assert names.best(9, among=[]) == ()


def test_kinship_is_looked_up_either_way_and_averaged_where_it_is_defined():
    assert POPULATION.kin("a", "c") == POPULATION.kin("c", "a") == -0.25
    assert POPULATION.kin("a", "b") is None
    assert POPULATION.mean_kinship(["a", "b", "c"]) == -0.25
    assert POPULATION.mean_kinship(["a", "b"]) is None
    assert POPULATION.mean_kinship(["a"]) is None
    flat = Population(1, FINITE.members, ((1.0, 0.2, 0.4), (0.2, 1.0, 0.6), (0.4, 0.6, 1.0)))
    assert flat.mean_kinship(["c", "a", "b"]) == pytest.approx(0.4)


def test_merged_pairs_have_no_order():
    assert POPULATION.was_merged("c", "a")
    assert POPULATION.was_merged("a", "c")
    assert not POPULATION.was_merged("b", "c")


def test_facts_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        POPULATION.seed = 1
    with pytest.raises(FrozenInstanceError):
        POPULATION.members[0].score = 1.0


def test_whatever_proposes_is_a_policy():
    class Mine:
        def propose(self, population):
            return Decision((), population.best(1), None, "never")

    assert isinstance(Mine(), Policy)
    assert not isinstance(object(), Policy)


# Three in a plane: a along x, b along y, c at 45 degrees.
PLANE = Population(
    generation=2,
    members=(
        Member("a", 0.5, length=2.0),
        Member("b", 0.4, length=1.0),
        Member("c", 0.3, length=1.0),
    ),
    kinship=((1.0, 0.0, 0.5**0.5), (0.0, 1.0, 0.5**0.5), (0.5**0.5, 0.5**0.5, 1.0)),
    merged=frozenset({("a", "c")}),
    seed=3,
)


def test_pairs_left_to_merge_come_as_places():
    assert PLANE.unmerged().tolist() == [[0, 1], [1, 2]]
    assert PLANE.unmerged(["c", "a"]).tolist() == []
    assert PLANE.unmerged(["c", "b"]).tolist() == [[1, 2]]
    assert Population(1, (), ()).unmerged().shape == (0, 2)


def test_facts_as_arrays_have_nan_where_nothing_is_known():
    assert POPULATION.kinships.shape == (3, 3)
    assert math.isnan(POPULATION.kinships[0, 1])
    assert POPULATION.kinships[2, 0] == -0.25
    assert POPULATION.scores.tolist() == [0.5, math.inf, 0.1]
    assert Population(1, (), ()).kinships.shape == (0, 0)


def test_chance_is_of_the_seed_and_the_generation():
    def draw(*more, **facts):
        return Population(**{**vars(FINITE), **facts}).chance(*more).random()

    assert draw() == draw()
    assert len({draw(), draw(seed=8), draw(generation=4), draw(1)}) == 4


def test_an_unknown_score_is_below_all_others():
    people = Population(1, (Member("a", 1.0), Member("b", math.nan), Member("c", math.nan)), ())
    assert people.scores_above("a", "b")
    assert not people.scores_above("b", "a")
    assert not people.scores_above("b", "c")
    assert not people.scores_above("a", "a")


def test_a_sweep_is_a_child_for_each_step():
    sweep = Proposal(("a", "b"), "pair", "why", "slerp", {"x": 1}, ({"t": 0.1}, {"t": 0.2, "x": 2}))
    assert sweep.variants() == ({"x": 1, "t": 0.1}, {"x": 2, "t": 0.2})
    assert Proposal(("a", "b"), "pair", "why").variants() == ({},)
    decision = Decision((sweep,), ("a",), None)
    assert Decision.from_json(through_json(decision.to_json())) == decision


def test_a_budget_takes_the_first_merges_and_cuts_a_sweep():
    plain = Proposal(("a", "c"), "pair", "why")
    sweep = Proposal(("a", "b"), "pair", "why", sweep=({"t": 0.1}, {"t": 0.2}, {"t": 0.3}))

    def afford(budget):
        allowed = Population(1, FINITE.members, (), budget=budget).affordable([plain, sweep, plain])
        return [len(merge.variants()) for merge in allowed]

    assert afford(None) == [1, 3, 1]
    assert afford(5) == [1, 3, 1]
    assert afford(4) == [1, 3]
    assert afford(2) == [1, 1]
    assert afford(0) == []


def test_facts_recorded_before_there_were_more_are_still_read():
    old = {
        key: value
        for key, value in through_json(FINITE.to_json()).items()
        if key not in ("history", "budget", "layers")
    }
    for member in old["members"]:
        for key in ("method", "parameters", "length", "samples"):
            del member[key]
    assert Population.from_json(old) == FINITE


def test_costlier_facts_survive_json():
    rich = Population(
        generation=3,
        members=(Member("a", 0.5, length=1.5, samples={"t": (1.0, math.nan)}, method="slerp"),),
        kinship=((1.0,),),
        history=(Past(1, ("a",), None, ("b", "c")), Past(2, (), 0.5)),
        budget=4,
        layers=(((None,),), ((0.5,),)),
    )
    again = Population.from_json(through_json(rich.to_json()))
    assert (again.history, again.budget, again.layers) == (rich.history, 4, rich.layers)
    assert again["a"].samples["t"][0] == 1.0
    assert math.isnan(again["a"].samples["t"][1])
