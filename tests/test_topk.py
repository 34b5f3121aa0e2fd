"""The paper's published path, and the readings of its algorithm that are not it."""

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from kinship_policies.policy import Decision, Member, Past, Population
from kinship_policies.registry import make
from kinship_policies.testing import Landscape, evolve
from kinship_policies.topk import TopKGreedy, TopKKinship

TABLE = json.loads((Path(__file__).parent / "assets" / "table2.json").read_text())


def key(a, b):
    return min(a, b), max(a, b)


def world(scores, kinships=None, default=0.5, **facts):
    """A population of `scores`; `kinships` by pairs of names, the others at `default`."""
    given = {key(*pair): kin for pair, kin in (kinships or {}).items()}
    names = sorted(scores)
    members = [
        Member(n, *([scores[n]] if not isinstance(scores[n], tuple) else scores[n])) for n in names
    ]
    rows = [[1.0 if a == b else given.get(key(a, b), default) for b in names] for a in names]
    merged = frozenset(key(*pair) for pair in facts.pop("merged", ()))
    return Population(
        generation=facts.pop("generation", 2),
        members=tuple(members),
        kinship=tuple(tuple(row) for row in rows),
        merged=merged,
        **facts,
    )


def pairs(decision: Decision, role="pair"):
    return {key(*merge.parents) for merge in decision.merges if merge.role == role}


class Published:
    """
    Replays a published path: the table's scores, the table's kinships where it gives them.

    The others are by algebra: a merge is the mean of its parents' deltas, founders' deltas have
    equal norms and generation 1's kinships as their Gram.
    """

    def __init__(self, *steps):
        self.steps = [step for path in steps for step in path]
        founders = [founder["name"] for founder in TABLE["founders"]]
        self.scores = {founder["name"]: founder["score"] for founder in TABLE["founders"]}
        self.deltas = {name: {name: 1.0} for name in founders}
        self.known = {
            key(*step["parents"]): step["kinship"]
            for step in self.steps
            if step["kinship"] is not None
        }
        self.founders = set(founders)
        self.merged: set[tuple[str, str]] = set()
        self.generations: dict[str, int] = {}
        self.last: Decision | None = None

    def dot(self, a, b):
        return sum(
            x * y * (1.0 if p == q else self.known[key(p, q)])
            for p, x in self.deltas[a].items()
            for q, y in self.deltas[b].items()
        )

    def kin(self, a, b):
        if key(a, b) in self.known:
            return self.known[key(a, b)]
        return self.dot(a, b) / math.sqrt(self.dot(a, a) * self.dot(b, b))

    def make(self, step):
        a, b = step["parents"]
        names = self.deltas[a].keys() | self.deltas[b].keys()
        self.deltas[step["name"]] = {
            n: (self.deltas[a].get(n, 0.0) + self.deltas[b].get(n, 0.0)) / 2 for n in sorted(names)
        }
        self.scores[step["name"]] = step["score"]
        self.generations[step["name"]] = step["generation"]
        self.merged.add(key(a, b))

    def decide(self, policy, generation) -> Decision:
        """The policy's decision after the generations before have been made as published."""
        population = world(
            {
                name: (score, {}, self.generations.get(name, 0))
                for name, score in self.scores.items()
            },
            {(a, b): self.kin(a, b) for a, b in combinations(self.scores, 2)},
            generation=generation,
            merged=self.merged,
            previous_top=None if self.last is None else self.last.top,
            saturated=0 if self.last is None else self.last.saturated,
        )
        self.last = policy.propose(population)
        for step in self.steps:
            if step["generation"] == generation and self.last.stop is None:
                self.make(step)
        return self.last

    def published(self, generation, role="pair"):
        return {
            key(*step["parents"])
            for step in self.steps
            if step["generation"] == generation and step.get("role", "pair") == role
        }

    @property
    def best(self):
        return max(self.scores.values())


def first_generation():
    return [step for step in TABLE["greedy_path"] if step["generation"] == 1]


# The published path


def test_greedy_proposes_exactly_the_published_pairs():
    path = Published(TABLE["greedy_path"])
    for generation in (1, 2, 3, 4):
        decision = path.decide(make("topk-greedy", {"k": 3}), generation)
        assert decision.stop is None
        assert pairs(decision) == path.published(generation), generation
        assert len(decision.merges) == len(path.published(generation))
    assert path.best == 68.72


def test_the_early_stop_ends_greedy_after_generation_2_at_the_same_best_score():
    path = Published(TABLE["greedy_path"])
    policy = make("topk-greedy", {"k": 3, "early_stop": 0.9})
    for generation in (1, 2):
        assert path.decide(policy, generation).stop is None
    stop = path.decide(policy, 3)
    assert stop.merges == ()
    assert set(stop.top) == {"model-2-1", "model-1-3", "Open-chat"}
    assert stop.top_mean_kinship == pytest.approx(0.94, abs=0.005)
    assert "0.937, above 0.9" in stop.stop
    assert path.best == max(step["score"] for step in TABLE["greedy_path"]) == 68.72


def test_kinship_proposes_the_published_pairs_explores_with_instruct_and_goes_on():
    path = Published(first_generation(), TABLE["kinship_path"])
    policy = make("topk-kinship", {"k": 3})
    first = path.decide(policy, 1)
    assert pairs(first) == path.published(1)
    assert pairs(first, "exploration") == set()

    second = path.decide(policy, 2)
    assert pairs(second) == path.published(2)
    assert pairs(second, "exploration") == path.published(2, "exploration")
    assert pairs(second, "exploration") == {("Instruct", "model-1-3")}

    third = path.decide(policy, 3)
    assert third.stop is None
    assert pairs(third) == path.published(3)
    assert third.top_mean_kinship == pytest.approx(0.50, abs=0.005)


@pytest.mark.parametrize("explore", ["highest", "none"])
def test_the_other_readings_do_not_explore_with_instruct(explore):
    path = Published(first_generation(), TABLE["kinship_path"])
    policy = make("topk-kinship", {"explore": explore})
    path.decide(policy, 1)
    assert ("Instruct", "model-1-3") not in pairs(path.decide(policy, 2), "exploration")


# Exploration

# a is the best; d is a founder outside the top, far away; n is a child of the last generation.
SCORES = {
    "a": (9.0, {}, 1),
    "b": (8.0, {}, 0),
    "c": (7.0, {}, 0),
    "d": (1.0, {}, 0),
    "e": (2.0, {}, 0),
    "n": (3.0, {}, 1),
}
KIN = {("a", "b"): 0.3, ("a", "c"): 0.1, ("a", "d"): -0.2, ("a", "e"): 0.9, ("a", "n"): 0.0}


def explored(policy=None, kinships=None, **facts):
    population = world(SCORES, {**KIN, **(kinships or {})}, previous_top=("x", "y"), **facts)
    decision = (policy or TopKKinship()).propose(population)
    found = [merge.parents for merge in decision.merges if merge.role == "exploration"]
    assert len(found) <= 1
    return found[0] if found else None


def test_exploration_takes_the_lowest_kinship_of_the_whole_population():
    assert explored() == ("a", "d")  # neither of the top (c) nor of the last children (n)
    assert explored(TopKKinship(explore="highest")) == ("a", "e")
    assert explored(TopKKinship(explore="none")) is None
    assert explored(TopKGreedy()) is None


def test_exploration_gives_way_where_the_pair_was_merged_or_is_proposed_already():
    assert explored(merged=[("a", "d")]) == ("a", "n")
    # The farthest is in the top: that pair is proposed as such, the next takes its place.
    assert explored(kinships={("a", "c"): -0.9}) == ("a", "d")
    done = [("a", other) for other in "bcden"]
    assert explored(merged=done) is None


def test_undefined_kinship_ranks_last_whichever_way_it_explores():
    assert explored(kinships={("a", "d"): None}) == ("a", "n")
    assert explored(TopKKinship(explore="highest"), {("a", "e"): None}) == ("a", "n")
    assert explored(kinships={("a", other): None for other in "den"}) == ("a", "d")


def test_exploration_breaks_ties_by_name():
    assert explored(kinships={("a", "d"): 0.0}) == ("a", "d")
    assert explored(TopKKinship(explore="highest"), {("a", "n"): 0.9}) == ("a", "e")


def test_the_first_generation_does_not_explore():
    population = world({"a": 3.0, "b": 2.0, "c": 1.0}, generation=1)
    decision = TopKKinship().propose(population)
    assert [merge.role for merge in decision.merges] == ["pair"] * 3


# In every world the partner that v1's "highest" and a reading "within the top k" would take is
# someone else.
WORLDS = [
    {"a": (1.0, 0.1), "b": (0.9, 0.3), "c": (-0.5, 0.2), "d": (0.1, 1.0), "e": (0.6, -0.8)},
    {"a": (0.2, 1.0), "b": (0.4, 0.7), "c": (0.9, -0.4), "d": (-1.0, -0.1), "e": (0.5, 0.5)},
]


@pytest.mark.parametrize("founders", WORLDS)
def test_exploration_is_with_the_lowest_kinship_generation_after_generation(founders):
    policy = TopKKinship(early_stop=None, max_founders=3)
    told_apart = 0
    for population, decision in evolve(policy, Landscape(founders, optimum=(0.3, 0.4)), 6):
        exploration = [m.parents for m in decision.merges if m.role == "exploration"]
        if population.generation == 1 or decision.stop is not None:
            assert exploration == []
            continue
        (best, partner) = exploration[0]
        assert best == decision.top[0]
        others = {m.name for m in population.members} - {best}
        taken = pairs(decision)
        free = [
            o for o in others if not population.was_merged(best, o) and key(best, o) not in taken
        ]
        kin = {other: population.kin(best, other) for other in free}
        assert kin[partner] == min(kin.values())
        within = min(decision.top[1:], key=lambda name: population.kin(best, name))
        told_apart += kin[partner] < max(kin.values()) and partner != within
    assert told_apart >= 2


# Extrapolation


def converged(*members, **facts):
    """A population whose top is the same as before, all merged with each other."""
    names = sorted(member.name for member in members)
    top = tuple(m.name for m in sorted(members, key=lambda m: -m.score)[:3])
    return Population(
        generation=4,
        members=tuple(sorted(members, key=lambda member: member.name)),
        kinship=tuple(tuple(1.0 if a == b else 0.5 for b in names) for a in names),
        merged=frozenset(combinations(names, 2)),
        previous_top=top,
        **facts,
    )


A, B = Member("a", 0.5), Member("b", 0.4)
CHILD = Member("c", 0.6, {}, 1, ("b", "a"), "slerp", {"t": 0.5})


def test_where_it_would_stop_it_goes_on_past_the_best_away_from_its_worse_parent():
    decision = TopKGreedy(extrapolate=0.3).propose(converged(A, B, CHILD))
    (step,) = decision.merges
    assert decision.stop is None
    assert (step.parents, step.method, step.parameters) == (
        ("c", "b"),
        "extrapolation",
        {"lambda": 0.3},
    )
    assert step.reason.startswith(
        "extrapolates: on from c (0.6), away from its worse parent b (0.4)"
    )
    assert "otherwise converged" in step.reason
    assert TopKGreedy().propose(converged(A, B, CHILD)).merges == ()


def test_a_step_is_made_once_and_then_it_stops():
    policy = TopKGreedy(extrapolate=0.3)
    beyond = Member("d", 0.55, {}, 3, ("c", "b"), "extrapolation", {"lambda": 0.3})
    decision = policy.propose(converged(A, B, CHILD, beyond))
    assert decision.merges == ()
    assert "converged" in decision.stop
    # One that pays is gone on from in its turn.
    paid = Member("d", 0.65, {}, 3, ("c", "b"), "extrapolation", {"lambda": 0.3})
    assert policy.propose(converged(A, B, CHILD, paid)).merges[0].parents == ("d", "b")


@pytest.mark.parametrize(
    "members",
    [
        (Member("a", 0.9), B, CHILD),  # the best is a fine-tune
        (A, B, Member("c", 0.6, {}, 1, ("x", "y"))),  # its parents are gone
        (Member("c", 0.5, {}, 1, ("a", "b")), Member("d", 0.5), Member("e", 0.5)),
        (Member("a", 0.5), Member("b", math.nan), Member("c", math.nan, {}, 1, ("a", "b"))),
    ],
)
def test_where_nothing_was_improved_there_is_nothing_to_go_on_from(members):
    assert "converged" in TopKGreedy(extrapolate=0.3).propose(converged(*members)).stop


def test_a_saturated_top_is_extrapolated_as_well():
    population = converged(A, B, CHILD, saturated=2)
    alike = tuple(tuple(0.95 for _ in row) for row in population.kinship)
    facts = {**vars(population), "kinship": alike, "previous_top": ("x", "y", "z")}
    decision = TopKKinship(extrapolate=0.3).propose(Population(**facts))
    assert decision.merges[0].method == "extrapolation"
    assert "otherwise early stop" in decision.merges[0].reason
    assert decision.saturated == 3


# The budget


def test_what_the_budget_does_not_allow_comes_later_and_exploration_first():
    facts = {"previous_top": ("x", "y")}
    two = TopKKinship().propose(world(SCORES, KIN, budget=2, **facts))
    assert [(m.parents, m.role) for m in two.merges] == [
        (("a", "d"), "exploration"),
        (("a", "b"), "pair"),
    ]
    # The top is the same, but not all merged: not converged.
    merged = [("a", "d"), ("a", "b")]
    later = TopKKinship().propose(world(SCORES, KIN, merged=merged, previous_top=two.top))
    assert later.stop is None
    assert pairs(later) == {("a", "c"), ("b", "c")}


def test_without_budget_it_waits_and_goes_on_where_it_was():
    first = world(FOUR, generation=1, budget=0)
    waiting = TopKKinship().propose(first)
    assert waiting.merges == ()
    assert "budget is spent" in waiting.stop
    again = TopKKinship().propose(world(FOUR, generation=2, previous_top=waiting.top))
    assert len(pairs(again)) == 6  # still the founders' generation
    later = world(FOUR, merged=ABC, previous_top=("b", "c", "d"), saturated=1, budget=0)
    decision = TopKKinship().propose(later)
    assert (decision.top, decision.saturated) == (("b", "c", "d"), 1)


# The first generation


def test_founders_are_the_best_and_then_always_the_farthest():
    scores = {"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0, "e": 5.0}
    # c is farthest from a; then e: d is nearer to c than e is to either.
    kin = {("a", "b"): 0.9, ("a", "c"): -0.5, ("a", "d"): -0.4, ("a", "e"): 0.3, ("c", "d"): 0.8}
    decision = TopKGreedy(max_founders=3).propose(world(scores, kin, 0.2, generation=1))
    assert pairs(decision) == {("a", "c"), ("a", "e"), ("c", "e")}
    # The top is of those that were paired, so that b can still change it.
    assert decision.top == ("a", "c", "e")


def test_founders_that_are_equally_far_come_by_score_then_name():
    scores = {"a": 9.0, "d": 5.0, "c": 6.0, "b": 5.0}
    decision = TopKGreedy(max_founders=3).propose(world(scores, default=0.2, generation=1))
    assert decision.top == ("a", "c", "b")


def test_a_founder_of_undefined_kinship_comes_last():
    scores = {"a": 9.0, "b": 8.0, "c": 7.0}
    kin = {("a", "b"): None, ("a", "c"): 0.99}
    decision = TopKGreedy(max_founders=2).propose(world(scores, kin, generation=1))
    assert pairs(decision) == {("a", "c")}


def test_the_first_generation_never_stops_early():
    population = world({"a": 3.0, "b": 2.0, "c": 1.0}, default=0.99, generation=1)
    decision = TopKKinship().propose(population)
    assert decision.stop is None
    assert decision.saturated == 0
    assert decision.top_mean_kinship == pytest.approx(0.99)


@pytest.mark.parametrize("names", ["", "a"])
def test_with_less_than_two_there_is_nothing_to_merge_until_more_come(names):
    alone = world(dict.fromkeys(names, 1.0), generation=1)
    stop = TopKKinship().propose(alone)
    assert stop.merges == ()
    assert "nothing to merge" in stop.stop
    scores, kin = {"a": 1.0, "b": 0.5, "c": 0.2}, {("a", "b"): 0.9, ("a", "c"): 0.1}
    joined = world(scores, kin, previous_top=stop.top, newcomers=("b", "c"))
    assert pairs(TopKKinship().propose(joined)) == {("a", "b"), ("a", "c"), ("b", "c")}
    # Only now are there founders to choose from.
    assert pairs(TopKKinship(max_founders=2).propose(joined)) == {("a", "c")}


# Stops

FOUR = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
ABC = [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize("policy", [TopKGreedy(), TopKKinship()])
def test_it_stops_when_the_top_did_not_change(policy):
    decision = policy.propose(world(FOUR, merged=ABC, previous_top=("c", "a", "b")))
    assert decision.merges == ()
    assert decision.top == ("a", "b", "c")
    assert decision.top_mean_kinship == 0.5
    assert "the 3 best are the same as before (a 4, b 3, c 2)" in decision.stop


def test_the_best_are_of_the_whole_population():
    decision = TopKGreedy(k=2).propose(world(FOUR, previous_top=("c", "d")))
    assert pairs(decision) == {("a", "b")}


def test_it_stops_when_nothing_is_left_to_merge():
    everything = list(combinations("abcd", 2))
    decision = TopKKinship().propose(world(FOUR, merged=everything, previous_top=("a", "b", "d")))
    assert decision.merges == ()
    assert "nothing left to merge" in decision.stop


def test_early_stop_counts_decisions_in_a_row():
    policy = TopKKinship(patience=2)
    kin = {"default": 0.95, "merged": ABC[:1], "previous_top": ("a", "b", "d")}
    once = policy.propose(world(FOUR, **kin))
    assert (once.stop, once.saturated) == (None, 1)
    twice = policy.propose(world(FOUR, **kin, saturated=once.saturated))
    assert twice.saturated == 2
    assert "for 2 decisions in a row" in twice.stop
    relaxed = policy.propose(world(FOUR, **{**kin, "default": 0.9}, saturated=1))
    assert (relaxed.stop, relaxed.saturated) == (None, 0)  # 0.9 does not exceed 0.9


def test_the_top_counts_for_the_early_stop_and_never_a_single_pair():
    kin = {("a", "b"): 0.99, ("a", "c"): 0.2, ("b", "c"): 0.2}
    population = world(FOUR, kin, default=0.99, previous_top=("a", "b", "d"))
    assert pairs(TopKKinship().propose(population)) == set(ABC)
    assert TopKGreedy().propose(world(FOUR, default=0.99, previous_top=("a", "d"))).stop is None


# Newcomers


def test_a_newcomer_opens_a_generation_though_the_top_is_the_same():
    population = world(FOUR, merged=ABC, previous_top=("a", "b", "c"), newcomers=("d",))
    decision = TopKGreedy().propose(population)
    assert decision.stop is None
    assert pairs(decision) == {("a", "d"), ("b", "d"), ("c", "d")}
    assert all("newcomer d (1)" in merge.reason for merge in decision.merges)
    assert [merge.parents[0] for merge in decision.merges] == ["a", "b", "c"]  # the better first


def test_a_newcomer_opens_a_generation_though_the_top_is_saturated():
    facts = {"merged": ABC, "previous_top": ("a", "b", "c"), "newcomers": ("d",), "saturated": 3}
    decision = TopKKinship().propose(world(FOUR, default=0.99, **facts))
    assert decision.stop is None
    assert decision.saturated == 4
    assert {("a", "d"), ("b", "d"), ("c", "d")} <= pairs(decision)


def test_a_newcomer_among_the_best_is_merged_with_each_once():
    merged = [("b", "c"), ("b", "d"), ("c", "d")]
    population = world(FOUR, merged=merged, previous_top=("b", "c", "d"), newcomers=("a",))
    decision = TopKGreedy().propose(population)
    assert [merge.parents for merge in decision.merges] == [("a", "b"), ("a", "c")]


def test_only_the_best_newcomers_are_taken_up():
    scores = {**FOUR, "x": 0.3, "y": 0.2, "z": 0.1}
    facts = {"merged": ABC, "previous_top": ("a", "b", "c"), "newcomers": ("x", "y", "z")}
    decision = TopKGreedy(max_founders=2).propose(world(scores, **facts))
    assert {parents[1] for parents in pairs(decision)} == {"x", "y"}


def test_a_newcomer_that_was_merged_with_all_is_not_merged_again():
    merged = [*ABC, ("a", "d"), ("c", "d")]
    population = world(FOUR, merged=merged, previous_top=("a", "b", "c"), newcomers=("d",))
    assert pairs(TopKGreedy().propose(population)) == {("b", "d")}


# Ranks and reasons


def test_ties_go_by_name_and_nan_ranks_last():
    scores = {"d": 1.0, "b": 1.0, "c": math.nan, "a": 1.0}
    assert TopKGreedy().propose(world(scores, previous_top=("x", "y"))).top == ("a", "b", "d")
    scores = {"d": math.nan, "b": 1.0, "c": -5.0, "a": math.nan}
    assert TopKGreedy().propose(world(scores, previous_top=("x", "y"))).top == ("b", "c", "a")


def test_reasons_are_words_with_the_facts_they_rest_on():
    population = world(SCORES, KIN, previous_top=("x", "y"))
    pair, *_, exploration = TopKKinship().propose(population).merges
    assert pair.reason == (
        "a (9) and b (8) are among the 3 best and were not merged before; kinship 0.300"
    )
    assert exploration.reason == (
        "explores: of the 3 left to merge with the best, a (9), d (1) has the lowest kinship -0.200"
    )


def test_pairs_that_all_lose_to_the_founders_are_no_reason_not_to_explore():
    scores = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.1, "ab": 0.3, "ac": 0.2, "bc": 0.2}
    founders = ("a", "b", "c", "d")
    merges = [(a, b) for a, b in combinations(founders, 2)]
    children = {f"{a}{b}": (a, b) for a, b in merges}
    members = {name: scores.get(name, 0.1) for name in (*founders, *children)}
    population = world(members, merged=merges, previous_top=("a", "b", "c"))
    population = replace(
        population,
        members=tuple(
            replace(member, parents=children.get(member.name, ()), generation=1)
            for member in population.members
        ),
        history=(Past(1, ("a", "b", "c"), 0.5, tuple(children)),),
    )
    decision = TopKKinship().propose(population)
    assert [merge.role for merge in decision.merges] == ["exploration"]
    assert decision.stop is None
    # Greedy never explores, and a second time the same top is the same top.
    assert "converged" in TopKGreedy().propose(population).stop
    assert "converged" in TopKKinship(explore="none").propose(population).stop
    past = (*population.history, Past(2, ("a", "b", "c"), 0.5, ("ad-x",)))
    assert "converged" in TopKKinship().propose(replace(population, history=past)).stop
    # Nor is it early where another policy had merged before.
    past = (Past(1, ("a", "b", "c"), 0.5, ("ab",)),)
    assert "converged" in TopKKinship().propose(replace(population, history=past)).stop
