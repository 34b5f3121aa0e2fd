"""No device waits for the disk or the hub: models are asked ahead, and written in their turn."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest

from hub_daemon import Clock
from kinship_daemon import config, startup
from kinship_daemon.report import JsonReporter
from kinship_daemon.runner import Runner
from kinship_daemon.steps.step import Step, Work, say_nothing
from kinship_storage.jobs import job_key

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Board:
    """In place of the evaluators: who is asked; who has answered is for the test to say."""

    def __init__(self, places):
        self._places = places
        self.begun = frozenset()
        self.done = set()
        self.left = []

    @property
    def room(self):
        return self._places - len(self.begun)

    @property
    def idle(self):
        return not self.begun - self.done

    def answered(self):
        return self.begun & self.done

    def leave(self, key):
        self.begun -= {key}
        self.left.append(key)

    def close(self):
        pass


@pytest.fixture
def opened(tmp_path):
    loaded = config.load(base="demo", home=tmp_path / "home")
    report = JsonReporter(open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with startup.opened(loaded, report, now=Clock(NOON)) as context:
        yield context


class House:
    """Steps over names, a log of what was done, and who was asked at that moment."""

    def __init__(self, context, places=2):
        self.board = Board(places)
        self.context = replace(context, evaluators=self.board)
        self.log = []
        self.to_do = {}
        self.steps = []
        self.when = {}  # called while a piece of work is done

    def step(self, kind, needs, names, **options):
        self.to_do[kind] = list(names)

        def plan(_context):
            for name in list(self.to_do[kind]):
                work = Work({"name": name})
                if needs == "device":
                    work = replace(work, begin=partial(begin, job_key(kind, work.inputs)))
                yield work

        def begin(key):
            self.board.begun |= {key}

        def run(_context, work):
            name = work.inputs["name"]
            self.when.get(name, lambda: None)()
            asked = [
                n for k in self.to_do for n in self.to_do[k] if self.key(n) in self.board.begun
            ]
            self.log.append((name, asked))

        def commit(_lineage, work, _result):
            self.to_do[kind].remove(work.inputs["name"])
            self.board.begun -= {job_key(kind, work.inputs)}

        made = Step(kind, needs, plan, run, commit, say_nothing, blames=False, **options)
        self.steps.append(made)

    def key(self, name):
        return next(job_key(k, {"name": name}) for k in self.to_do if name[0] == k[0])

    def answers(self, *names):
        self.board.done |= set(map(self.key, names))

    def turns(self, **options):
        runner = Runner(self.context, self.steps)
        runner.__dict__.update(options)
        kinds = []
        while (turn := runner.loop(NOON)).kind is not None:
            kinds.append(turn.kind)
        return kinds


def test_models_are_asked_while_the_hub_and_the_disk_are_at_work(opened):
    house = House(opened)
    house.step("hub", "hub", ["h1"])
    house.step("disk", "disk", ["d1"])
    house.step("score", "device", ["s1", "s2", "s3"])
    assert house.turns() == ["hub", "disk", "score"]
    assert house.log[:2] == [("h1", ["s1", "s2"]), ("d1", ["s1", "s2"])]
    assert [name for name, _ in house.log] == ["h1", "d1", "s1", "s2", "s3"]


def test_what_is_answered_is_written_before_the_hub_is_asked_for_more(opened):
    house = House(opened)
    house.step("hub", "hub", ["h1", "h2", "h3"])
    house.step("score", "device", ["s1", "s2", "s3"])
    house.when["h1"] = lambda: house.answers("s2")
    assert house.turns() == ["hub", "score", "hub", "score"]
    # Another was asked in its place, while the hub was at work.
    assert house.log[:3] == [("h1", ["s1", "s2"]), ("s2", ["s1", "s2"]), ("h2", ["s1", "s3"])]


def test_what_is_admitted_is_asked_while_the_next_is_fetched(opened):
    house = House(opened)
    house.step("admit", "hub", ["a1", "a2", "a3"], feeds=True)
    house.step("score", "device", [])
    for number in "123":
        house.when[f"a{number}"] = lambda n=number: house.to_do["score"].append(f"s{n}")
    house.turns()
    assert house.log[:3] == [("a1", []), ("a2", ["s1"]), ("a3", ["s1", "s2"])]


def test_who_is_not_wanted_any_more_is_left(opened):
    house = House(opened)
    house.step("admit", "hub", ["a1", "a2"], feeds=True)
    house.step("score", "device", ["s1"])
    gone = house.key("s1")
    house.when["a1"] = house.to_do["score"].clear
    assert house.turns() == ["admit"]
    assert house.log == [("a1", []), ("a2", [])]
    assert house.board.left == [gone]


def test_nobody_is_asked_for_a_later_step_who_may_not_get_there(opened):
    house = House(opened, places=9)
    house.step("hub", "hub", ["h1"])
    house.step("quick", "device", ["q1"], sifts=True)
    house.step("score", "device", ["s1"])
    house.turns()
    assert house.log[0] == ("h1", ["q1"])


def test_nobody_is_asked_for_a_step_that_is_not_to_be_taken(opened):
    house = House(opened)
    house.step("hub", "hub", ["h1"])
    house.step("score", "device", ["s1"])
    assert Runner(house.context, house.steps).loop(NOON, skip={"score"}).kind == "hub"
    assert house.log == [("h1", [])]


def test_a_look_that_is_due_is_taken_between_two_models_while_a_device_is_at_the_next(opened):
    house = House(opened)
    house.step("hub", "hub", [])
    house.step("score", "device", ["s1", "s2", "s3"])
    house.when["s1"] = lambda: house.to_do["hub"].append("h1")
    due = lambda: bool(house.to_do["hub"])  # noqa: E731
    assert house.turns(hurried=due) == ["score", "hub", "score"]
    assert house.log[1] == ("h1", ["s2", "s3"])
