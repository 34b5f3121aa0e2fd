"""Jobs that wait: who takes which, and what becomes of workers that have nothing to do."""

import queue
import threading
import time
from contextlib import closing

import pytest

from kinship_daemon.errors import Transient
from kinship_daemon.execute import local
from kinship_daemon.execute.executor import Done, Failed, Job, Needs
from kinship_daemon.execute.line import Line
from kinship_daemon.execute.local import Local
from kinship_daemon.execute.site import Workshop
from kinship_daemon.execute.testing.jobs import Hang, Say

PATIENCE = 60


def do(job, folders, tell):
    tell(Done(job.key, job.attempt, "done"))


def test_a_worker_takes_what_suits_it_best():
    told, begin = queue.SimpleQueue(), queue.SimpleQueue()
    line = Line([do], "test", lambda _: begin.get(timeout=PATIENCE), lambda _, jobs: len(jobs) - 1)
    with closing(line):
        for key in "abc":
            line.put((Job(key, Say(key)), {}, told.put))
        for _ in range(4):
            begin.put(None)
        assert [told.get(timeout=PATIENCE).key for _ in "abc"] == ["c", "b", "a"]


def test_an_idle_worker_rests_and_is_made_ready_before_its_next_job():
    happened, told = queue.SimpleQueue(), queue.SimpleQueue()
    line = Line(
        [do],
        "test",
        ready=lambda number: happened.put(("ready", number)),
        rest=lambda number: happened.put(("rest", number)),
        idle_seconds=0.01,
    )
    with closing(line):
        for key in "ab":
            line.put((Job(key, Say(key)), {}, told.put))
            told.get(timeout=PATIENCE)
            found = [happened.get(timeout=PATIENCE) for _ in range(3)]
            assert found == [("ready", 0), ("ready", 0), ("rest", 0)]


@pytest.mark.parametrize("needs", [Needs(device=True), Needs()])
def test_a_job_that_was_just_taken_can_be_cancelled(needs, tmp_path, monkeypatch):
    """Else a device would be at it to its end, which nobody wants."""
    told, executors = queue.SimpleQueue(), []

    class Late(Line):
        """Its workers are cancelled in the moment before they begin."""

        def __init__(self, workers, *args, **options):
            super().__init__([self.late(do) for do in workers], *args, **options)

        def late(self, do):
            def do_late(job, folders, tell):
                if job.key == "hangs":
                    executors[0].cancel(job.key, job.attempt)
                do(job, folders, tell)

            return do_late

    monkeypatch.setattr(local, "Line", Late)
    executors.append(Local(Workshop(tmp_path / "log")))
    with closing(executors[0]) as executor:
        executor.submit(Job("hangs", Hang(), needs), {}, lambda _: None)
        executor.submit(Job("behind", Say("b"), needs), {}, told.put)
        told.get(timeout=PATIENCE)  # it is half done
        assert isinstance(told.get(timeout=PATIENCE), Done)


@pytest.mark.parametrize("has_another", [False, True])
def test_a_thread_that_cannot_be_started_leaves_no_job_that_is_waited_for(monkeypatch, has_another):
    told, begin = queue.SimpleQueue(), queue.SimpleQueue()
    line = Line([do, do], "test", lambda _: begin.get(timeout=PATIENCE))
    with closing(line):
        if has_another:
            line.put((Job("a", Say("a")), {}, told.put))
        start, starts = threading.Thread.start, []

        def scarce(thread):
            starts.append(thread)
            if len(starts) == 1:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", scarce)
        line.put((Job("b", Say("b")), {}, told.put))
        if not has_another:
            report = told.get(timeout=PATIENCE)
            assert isinstance(report, Failed)
            assert isinstance(report.error, Transient)
            line.put((Job("a", Say("a")), {}, told.put))
        for _ in range(4):
            begin.put(None)
        keys = {told.get(timeout=PATIENCE).key for _ in range(1 + has_another)}
        assert keys == ({"a", "b"} if has_another else {"a"})
        for _ in range(4):
            begin.put(None)


def test_who_has_nothing_to_do_rests_when_told_and_works_again():
    happened, told = queue.SimpleQueue(), queue.SimpleQueue()
    line = Line([do], "test", rest=lambda number: happened.put(("rest", number)))
    with closing(line):
        for key in "ab":
            line.put((Job(key, Say(key)), {}, told.put))
            assert told.get(timeout=PATIENCE).key == key
            while happened.empty():  # its thread may not wait yet
                line.rest()
                time.sleep(0.01)
            assert happened.get() == ("rest", 0)
            assert happened.empty()
