"""The baseline: what it draws, and that it draws with the seed alone."""

from dataclasses import replace
from itertools import combinations

from kinship_policies.random_pairs import RandomPairs
from populations import child, fine_tunes, key, parents, population

FOUR = population(*fine_tunes(a=4.0, b=3.0, c=2.0, d=1.0), generation=1)
PAIRS = set(combinations("abcd", 2))


def test_it_draws_so_many_different_pairs_the_better_first():
    decision = RandomPairs(pairs=4).propose(FOUR)
    assert len(set(parents(decision))) == 4
    assert set(parents(decision)) <= PAIRS  # the scores fall with the names
    assert decision.top == ("a", "b", "c")


def test_every_pair_is_drawn_and_about_as_often():
    drawn = [parents(RandomPairs(pairs=1).propose(replace(FOUR, seed=s)))[0] for s in range(600)]
    counts = [drawn.count(pair) for pair in sorted(PAIRS)]
    assert sum(counts) == 600
    assert min(counts) > 70  # of 100 expected; five deviations are 46


def test_the_draw_is_of_the_seed_and_the_generation():
    def drawn(**facts):
        return parents(RandomPairs().propose(replace(FOUR, **facts)))

    assert drawn(seed=3) == drawn(seed=3)
    assert len({tuple(drawn(seed=seed)) for seed in range(8)}) > 1
    assert len({tuple(drawn(generation=generation)) for generation in range(1, 9)}) > 1


def test_what_was_merged_is_not_drawn_and_when_all_is_it_stops():
    left = population(*FOUR.members, merged=PAIRS - {("b", "d"), ("a", "c")})
    assert {key(*pair) for pair in parents(RandomPairs().propose(left))} == {("b", "d"), ("a", "c")}
    decision = RandomPairs().propose(population(*FOUR.members, merged=PAIRS))
    assert decision.merges == ()
    assert "every pair was merged before" in decision.stop


def test_its_own_merges_are_drawn_too():
    alone = population(*fine_tunes(a=1.0, b=2.0), child("ab", 3.0, "a", "b"))
    assert {key(*pair) for pair in parents(RandomPairs().propose(alone))} == {
        ("a", "ab"),
        ("ab", "b"),
    }


def test_it_stops_after_its_last_generation_or_budget():
    assert RandomPairs(generations=2).propose(replace(FOUR, generation=2)).stop is None
    late = RandomPairs(generations=2).propose(replace(FOUR, generation=3))
    assert "generation 2 was to be the last" in late.stop
    assert len(RandomPairs().propose(replace(FOUR, budget=2)).merges) == 2
    assert "budget is spent" in RandomPairs().propose(replace(FOUR, budget=0)).stop
