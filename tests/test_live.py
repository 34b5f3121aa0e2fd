"""A part of a page is made once for all visitors, and no more often than is cheap."""

from types import SimpleNamespace

import pytest

from kinship_daemon.web import live
from kinship_daemon.web.live import Live


class Page:
    """A part whose making takes some of a clock's seconds."""

    def __init__(self, clock, seconds):
        self.state, self.made = 0, 0
        self._clock, self._seconds = clock, seconds
        self.part = Live(lambda: self.state, self._make)

    def _make(self):
        self.made += 1
        self._clock.now += self._seconds
        return f"state {self.state}"


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=100.0)
    both = {"monotonic": lambda: made.now, "thread_time": lambda: made.now}
    monkeypatch.setattr(live, "time", SimpleNamespace(**both))
    return made


def test_three_visitors_of_one_change_are_given_one_making(clock):
    page = Page(clock, 0.0)
    assert [page.part.text() for _ in range(3)] == ["state 0"] * 3
    assert page.made == 1


@pytest.mark.parametrize(("seconds", "pause"), [(0.001, 2.0), (0.05, 10.0), (1.0, 30.0)])
def test_what_is_dear_to_make_is_made_seldom_and_what_changed_meanwhile_is_told_then(
    clock, seconds, pause
):
    page = Page(clock, seconds)
    before = page.part.version()
    assert page.part.text() == "state 0"
    page.state = 1
    clock.now += 0.99 * pause
    assert (page.part.version(), page.part.text(), page.made) == (before, "state 0", 1)
    clock.now += 0.02 * pause
    assert page.part.version() != before
    assert (page.part.text(), page.made) == ("state 1", 2)


def test_nothing_new_is_not_told_however_long_it_takes(clock):
    page = Page(clock, 0.0)
    before = page.part.version()
    clock.now += 1000
    assert page.part.version() == before
