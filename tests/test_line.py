"""Jobs that wait: who takes which, and what becomes of workers that have nothing to do."""

import queue
import time
from contextlib import closing

from kinship_daemon.execute.executor import Done, Job
from kinship_daemon.execute.line import Line
from kinship_daemon.execute.testing.jobs import Say

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
