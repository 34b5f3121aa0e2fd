"""The soups: what goes in, when they are done, and what a newcomer changes."""

from dataclasses import replace

from kinship_policies.policy import Member, Past
from kinship_policies.soups import GreedySoup, Soup
from populations import child, fine_tunes, parents, population

FOUR = population(*fine_tunes(a=4.0, b=3.0, c=2.0, d=1.0), generation=1)


def soup(name, score, *of, generation=1):
    uniform = {"weight": 1.0}
    return Member(name, score, {}, generation, of, method="linear", parameters=uniform)


def test_the_soup_is_one_merge_of_all():
    decision = Soup().propose(FOUR)
    assert parents(decision) == [("a", "b", "c", "d")]
    (merge,) = decision.merges
    assert (merge.method, merge.parameters) == ("linear", {"weight": 1.0})
    assert parents(Soup(models=2).propose(FOUR)) == [("a", "b")]


def test_a_soup_that_was_made_or_came_to_nothing_is_not_made_again():
    made = population(*FOUR.members, soup("s", 5.0, "d", "c", "b", "a"))
    assert Soup().propose(made).stop.startswith("done: the soup of 4 fine-tunes is made")
    failed = replace(FOUR, generation=2, history=(Past(1, (), None, ("s",)),))
    assert "done" in Soup().propose(failed).stop
    # Others' merges are none of these, whatever their parents.
    other = population(*FOUR.members, child("x", 5.0, "a", "b", "c", "d"))
    assert parents(Soup().propose(other)) == [("a", "b", "c", "d")]


def test_a_newcomer_makes_another_soup():
    known = [*FOUR.members, soup("s", 5.0, "a", "b", "c", "d"), *fine_tunes(e=9.0)]
    past = (Past(1, (), None, ("s",)),)
    grown = population(*known, generation=2, newcomers=("e",), history=past)
    assert parents(Soup().propose(grown)) == [("e", "a", "b", "c", "d")]


def greedy(*soups):
    return GreedySoup().propose(population(*FOUR.members, *soups))


def test_the_greedy_soup_keeps_what_does_not_make_it_worse():
    assert parents(greedy()) == [("a", "b")]
    better, same = soup("ab", 4.5, "a", "b"), soup("abc", 4.5, "a", "b", "c")
    worse = soup("ac", 3.9, "a", "b")
    assert parents(greedy(better)) == [("a", "b", "c")]
    assert parents(greedy(worse)) == [("a", "c")]
    assert parents(greedy(better, same)) == [("a", "b", "c", "d")]
    decision = greedy(better, same, soup("abcd", 4.0, "a", "b", "c", "d"))
    assert decision.merges == ()
    assert decision.stop.startswith("done: all 4 fine-tunes had their turn, 3 are in the soup")


def test_a_soup_that_came_to_nothing_had_its_turn():
    tried = population(*FOUR.members, merged={("a", "b")})
    assert parents(GreedySoup().propose(tried)) == [("a", "c")]


def test_one_fine_tune_makes_no_soup():
    alone = population(*fine_tunes(a=1.0), child("x", 0.5, "a", "b"))
    assert Soup().propose(alone).stop.startswith("a soup takes two fine-tunes")
    assert GreedySoup().propose(alone).stop.startswith("done: all 1 fine-tunes")
