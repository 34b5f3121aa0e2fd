"""The order in which candidates are fetched."""

import math

import pytest

from kinship_daemon.ranking import popularity, ranked
from kinship_storage.records import Candidate

TIME = "2026-01-30T21:04:00Z"


def candidate(name, novelty=None, downloads=0, likes=0):
    return Candidate(name, TIME, novelty=novelty, downloads=downloads, likes=likes)


def order(*candidates, novelty=1.0, popular=0.5):
    found = ranked(candidates, novelty=novelty, popularity_weight=popular)
    return [each.candidate.model for each in found]


def test_the_distant_come_first():
    kin = candidate("a", 0.1), candidate("b", 0.9), candidate("c", 0.5)
    assert order(*kin) == ["b", "c", "a"]


def test_of_equally_distant_ones_the_popular_come_first():
    same = candidate("a", 0.5, 10), candidate("b", 0.5, 1000), candidate("c", 0.5)
    assert order(*same) == ["b", "a", "c"]


def test_a_like_is_worth_ten_downloads():
    assert popularity(candidate("a", likes=3)) == popularity(candidate("b", downloads=30))
    assert popularity(candidate("a")) == 0


def test_popularity_counts_in_magnitudes_beside_the_most_popular():
    rows = ranked(
        [candidate("a", 0.0, 99), candidate("b", 0.0, 9999)], novelty=1.0, popularity_weight=0.5
    )
    values = {row.candidate.model: row.value for row in rows}
    assert values["b"] == 0.5
    assert values["a"] == pytest.approx(0.5 * math.log(100) / math.log(10_000))


def test_the_weights_decide_between_distance_and_popularity():
    far, known = candidate("far", 0.9), candidate("known", 0.5, 10_000)
    assert order(far, known) == ["known", "far"]
    assert order(far, known, popular=0.3) == ["far", "known"]
    assert order(far, known, novelty=0.0) == ["known", "far"]
    assert order(far, known, popular=0.0) == ["far", "known"]


def test_one_of_unknown_distance_is_neither_near_nor_far():
    assert order(candidate("far", 0.6), candidate("new"), candidate("kin", 0.4)) == [
        *("far", "new", "kin")
    ]


def test_an_estimate_outside_its_range_is_worth_no_more_than_its_end():
    """Kinship below 0 is as far as can be; noise may say more than 1."""
    assert order(candidate("b", 1.7), candidate("a", 1.0)) == ["a", "b"]
    assert order(candidate("b", -0.2), candidate("a", 0.0)) == ["a", "b"]


def test_ties_are_broken_by_name_whatever_the_order_given():
    names = [candidate(name, 0.5, 5) for name in "cab"]
    assert order(*names) == order(*reversed(names)) == ["a", "b", "c"]
    assert order(*names, novelty=0.0, popular=0.0) == ["a", "b", "c"]


def test_nobody_waits():
    assert order() == []
