"""Random events and kills on a real database: nothing is lost, done twice, or stuck."""

import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kinship_storage.errors import LineageError
from kinship_storage.lineage import Lineage
from kinship_storage.transitions import CAUSES, JOBS, MODELS
from small_lineage import NOW, finetune, merge

NAMES = ("add", "sort", "copy")
MERGES = ("m1", "m2")
IDS = (*(f"demo/{name}" for name in NAMES), *MERGES)
KINDS = ("score", "merge")

models = st.sampled_from(IDS)
causes = st.sampled_from(sorted(CAUSES))
waits = st.one_of(st.none(), st.integers(0, 120))
later_events = [event for event in MODELS.events if (None, event) not in MODELS.transitions]


class Kill(BaseException):
    """Stands for a power cut within a transaction."""


class LifeCycles(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.kills = 0
        self.path = Path(self.folder.name) / "home" / "lineage.db"
        self.path.parent.mkdir()
        self.now = NOW
        self.started = {}  # key -> starts, as the test counts them
        self.finished = {}  # key -> times it was finished
        self.lost = {}  # key -> times its result was lost
        self.lineage = self.open()
        for name in NAMES:
            self.lineage.add_model(finetune(name, status="seen"))
        for name in MERGES:
            self.lineage.add_model(merge(name, ("demo/add", "demo/sort")))

    def open(self):
        return Lineage.open(self.path, now=lambda: self.now)

    def teardown(self):
        self.lineage.close()
        self.folder.cleanup()

    def job(self, data):
        return data.draw(st.sampled_from(self.lineage.jobs()))

    # Models

    @rule(model=models, event=st.sampled_from(later_events), cause=causes, wait=waits)
    def move(self, model, event, cause, wait):
        before = self.lineage.model(model)
        given = {}
        if event in MODELS.causes:
            given = {"reason": "why", "cause": cause}
            if cause == "settings":
                given["setting"] = "triage.max_gb"
            if cause == "world" and wait is not None:
                given["retry_at"] = f"{self.now + timedelta(seconds=wait):%Y-%m-%dT%H:%M:%SZ}"
        try:
            after = self.lineage.move_model(model, event, **given)
        except LineageError:
            assert self.lineage.model(model) == before
            fits = event not in (("refuse", "reopen") if model in MERGES else ("repropose",))
            assert not fits or (before.status, event) not in MODELS.transitions
            return
        assert after == self.lineage.model(model)
        assert after.status == MODELS.transitions[before.status, event]
        assert after.faults == (
            0 if event == "admit" else before.faults + (given.get("cause") == "world")
        )

    @rule(model=models, cause=causes)
    def set_aside_without_words(self, model, cause):
        before = self.lineage.model(model)
        with pytest.raises(LineageError):
            self.lineage.move_model(model, "quarantine")
        with pytest.raises(LineageError):
            self.lineage.move_model(model, "admit", cause=cause)
        assert self.lineage.model(model) == before

    @rule()
    def those_whose_time_has_come_are_opened(self):
        now = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
        due = self.lineage.due_models(self.now)
        assert {model.id for model in due} == {
            model.id
            for model in self.lineage.set_aside("world")
            if model.retry_at is not None and model.retry_at <= now
        }
        for model in due:
            event = "repropose" if model.kind == "merge" else "reopen"
            assert self.lineage.move_model(model.id, event).status in MODELS.first
            self.lineage.retry_jobs(model.id, {"world"})
        assert self.lineage.due_models(self.now) == []

    # Jobs

    @rule(kind=st.sampled_from(KINDS), model=models)
    def submit(self, kind, model):
        before = {job.key: job for job in self.lineage.jobs()}
        job = self.lineage.submit(kind, {"model": model}, model)
        assert job == before.get(job.key, job)
        assert job.key in before or job.status == "pending"

    @precondition(lambda self: self.lineage.jobs())
    @rule(data=st.data(), event=st.sampled_from(sorted(JOBS.events)), wait=waits, cause=causes)
    def change(self, data, event, wait, cause):
        job = self.job(data)
        early = job.due is not None and job.due > f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
        try:
            self.apply(job.key, event, wait, cause)
        except LineageError:
            assert self.lineage.job(job.key) == job
            assert (
                (job.status, event) not in JOBS.transitions
                or (event == "start" and early)
                or (event == "fail" and cause == "world")
            )
            return
        assert not (event == "start" and early)
        after = self.lineage.job(job.key)
        assert after.status == JOBS.transitions[job.status, event]
        assert job.status != "done" or event == "lose"
        assert after.seconds >= job.seconds
        counted = {"start": self.started, "finish": self.finished, "lose": self.lost}.get(event)
        if counted is not None:
            counted[job.key] = counted.get(job.key, 0) + 1

    def apply(self, key, event, wait, cause):
        if event == "submit":
            raise LineageError("what exists is not submitted as new")
        if event == "finish":
            with self.lineage.finish(key):
                self.lineage.put(f"result:{key}", self.finished.get(key, 0) + 1)
        elif event == "wait":
            due = None if wait is None else self.now + timedelta(seconds=wait)
            self.lineage.wait(key, "why", due)
        elif event == "fail":
            self.lineage.fail(key, cause, "why")
        else:
            getattr(self.lineage, event)(key)

    @rule(model=models, cause=causes)
    def retry_all_of_a_model(self, model, cause):
        stuck = [
            job
            for status in JOBS.set_aside
            for job in self.lineage.jobs(status, model=model)
            if job.cause == cause
        ]
        assert self.lineage.retry_jobs(model, {cause}) == len(stuck)
        assert all(self.lineage.job(job.key).status == "pending" for job in stuck)

    # The world

    @rule(seconds=st.integers(0, 90))
    def time_passes(self, seconds):
        self.now += timedelta(seconds=seconds)

    @rule()
    def a_kill(self):
        before = {job.key: job for job in self.lineage.jobs()}
        was = self.lineage.models()
        self.kill()
        assert self.lineage.models() == was
        for key, job in before.items():
            after = self.lineage.job(key)
            assert after.status == ("pending" if job.status == "running" else job.status)
            assert after.due is None or after.status != "waiting"

    @precondition(lambda self: self.lineage.jobs("running"))
    @rule(data=st.data())
    def a_kill_within_a_result(self, data):
        job = data.draw(st.sampled_from(self.lineage.jobs("running")))
        result = self.lineage.get(f"result:{job.key}")
        with suppress(Kill), self.lineage.finish(job.key):
            self.lineage.put(f"result:{job.key}", "half")
            left = self.left_behind()
            raise Kill
        self.kill(left)
        assert self.lineage.get(f"result:{job.key}") == result
        assert self.lineage.job(job.key).status == "pending"

    def left_behind(self):
        """The files as a kill at this moment leaves them."""
        self.kills += 1
        folder = self.path.parents[1] / f"after-{self.kills}"
        return Path(shutil.copytree(self.path.parent, folder)) / self.path.name

    def kill(self, left=None):
        left = left or self.left_behind()
        self.lineage.close()
        self.path = left
        self.lineage = self.open()
        running = len(self.lineage.jobs("running"))
        assert self.lineage.recover() == running
        assert self.lineage.recover() == 0

    # What holds always

    @invariant()
    def nothing_is_done_twice(self):
        for job in self.lineage.jobs():
            finished, lost = self.finished.get(job.key, 0), self.lost.get(job.key, 0)
            assert finished - lost == (job.status == "done")
            assert job.attempts == self.started.get(job.key, 0)
            assert self.lineage.get(f"result:{job.key}") == (finished or None)

    @invariant()
    def what_is_set_aside_has_a_cause_and_a_way_on(self):
        for model in self.lineage.models():
            assert (model.cause is not None) == (model.status in MODELS.set_aside)
            assert (model.setting is not None) == (model.cause == "settings")
            assert MODELS.ways_out(model.status)
        for job in self.lineage.jobs():
            assert (job.cause is not None) == (job.status in JOBS.set_aside)
            assert JOBS.ways_out(job.status)

    @invariant()
    def the_file_is_sound(self):
        with closing(sqlite3.connect(self.path)) as stranger:
            assert stranger.execute("PRAGMA foreign_key_check").fetchall() == []


TestLifeCycles = LifeCycles.TestCase
TestLifeCycles.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
