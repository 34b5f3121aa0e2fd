"""Steps of the work: all of one or nothing, whenever the process is killed."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from kinship_storage.errors import LineageError
from kinship_storage.jobs import job_key
from kinship_storage.lineage import Lineage
from small_lineage import NOW, merge, open_lineage, score


@pytest.fixture
def clock():
    return Clock(NOW)


@pytest.fixture
def timed(path, clock):
    with Lineage.open(path, now=clock) as opened:
        yield opened


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += timedelta(seconds=seconds)


def submit(lineage, name, kind="merge", model=None):
    return lineage.submit(kind, {"name": name}, model).key


def started(lineage, name, kind="merge", model=None):
    key = submit(lineage, name, kind, model)
    return lineage.start(key).key


def done(lineage, name, kind="merge", model=None):
    key = started(lineage, name, kind, model)
    with lineage.finish(key):
        pass
    return key


def test_a_job_runs_from_pending_to_done(lineage):
    job = lineage.submit("merge", {"weights": "recipe:m", "n": 1}, "m")
    assert (job.status, job.attempts, job.started) == ("pending", 0, None)
    assert (job.kind, job.inputs, job.model) == ("merge", {"weights": "recipe:m", "n": 1}, "m")
    job = lineage.start(job.key)
    assert (job.status, job.attempts, job.started) == ("running", 1, "2026-01-31T08:15:00Z")
    with lineage.finish(job.key):
        lineage.put("result", 1)
    job = lineage.job(job.key)
    assert (job.status, job.attempts, job.finished) == ("done", 1, "2026-01-31T08:15:00Z")
    assert lineage.submit("merge", {"n": 1, "weights": "recipe:m"}, "m") == job
    assert lineage.job("other") is None


def test_the_same_work_has_the_same_key_and_other_work_another():
    key = job_key("merge", {"a": 1, "b": [1.5, None]})
    assert key == job_key("merge", {"b": [1.5, None], "a": 1})
    assert len({key, job_key("score", {"a": 1, "b": [1.5, None]}), job_key("merge", {"a": 1})}) == 3


def test_a_done_or_failed_job_is_not_started_again(lineage):
    good = done(lineage, "good")
    bad = started(lineage, "bad")
    lineage.fail(bad, "model", "NaN")
    for key, status in ((good, "done"), (bad, "failed")):
        before = lineage.job(key)
        with pytest.raises(LineageError, match=f"is {status} and cannot start; it can "):
            lineage.start(key)
        assert lineage.job(key) == before


def test_a_failed_job_can_be_tried_again(lineage):
    key = started(lineage, "k")
    job = lineage.fail(key, "settings", "no such task")
    assert (job.status, job.cause, job.reason) == ("failed", "settings", "no such task")
    job = lineage.retry(key)
    assert (job.status, job.cause, job.reason, job.attempts) == ("pending", None, None, 1)
    assert (lineage.start(key).attempts, lineage.job(key).finished) == (2, None)


def test_a_job_that_never_started_can_fail(lineage):
    key = submit(lineage, "k")
    assert lineage.fail(key, "model", "a quantised model").status == "failed"


def test_what_the_world_broke_waits_and_never_fails(lineage):
    key = started(lineage, "k")
    with pytest.raises(LineageError, match="cannot fail because of the world; let it wait"):
        lineage.fail(key, "world", "the hub is away")
    assert lineage.job(key).status == "running"


def test_a_waiting_job_starts_once_its_time_has_come(timed, clock):
    key = started(timed, "k")
    job = timed.wait(key, "the hub is away", clock() + timedelta(seconds=60))
    assert (job.status, job.cause, job.due) == ("waiting", "world", "2026-01-31T08:16:00Z")
    with pytest.raises(LineageError, match="waits until 2026-01-31T08:16:00Z; `retry` it"):
        timed.start(key)
    assert timed.job(key) == job
    clock.sleep(60)
    assert timed.start(key).status == "running"


def test_a_waiting_job_without_a_time_starts_at_once(lineage):
    key = started(lineage, "k")
    lineage.wait(key, "no memory", None)
    assert lineage.start(key).status == "running"


def test_a_done_job_whose_result_is_gone_can_be_done_again(lineage):
    key = done(lineage, "k", "ledger")
    assert lineage.lose(key).status == "pending"
    with pytest.raises(LineageError, match="is pending and cannot lose; it can fail, start"):
        lineage.lose(key)
    assert lineage.start(key).status == "running"


def test_an_interrupted_job_can_start_again(lineage):
    key = started(lineage, "k")
    assert lineage.interrupt(key).status == "pending"
    assert lineage.start(key).attempts == 2


def test_time_at_work_is_summed_over_attempts_and_never_falls(timed, clock):
    key = started(timed, "k")
    clock.sleep(10)
    timed.wait(key, "why", None)
    clock.sleep(1000)
    timed.start(key)
    clock.sleep(5)
    timed.interrupt(key)
    timed.start(key)
    clock.sleep(-3600)  # the clock was set back
    timed.interrupt(key)
    timed.start(key)
    clock.sleep(1)
    with timed.finish(key):
        pass
    assert timed.job(key).seconds == 16


def test_all_that_is_stuck_of_a_model_is_tried_again(lineage):
    waiting, failed, ill = (started(lineage, name, model="m") for name in ("a", "b", "c"))
    other = started(lineage, "d", model="other")
    finished = done(lineage, "e", model="m")
    lineage.wait(waiting, "why", NOW + timedelta(days=1))
    lineage.fail(failed, "settings", "why")
    lineage.fail(ill, "model", "why")
    lineage.fail(other, "model", "why")
    assert lineage.retry_jobs("m", {"world", "settings"}) == 2
    assert lineage.retry_jobs("m", {"world", "settings"}) == 0
    assert [job.key for job in lineage.jobs("pending")] == [waiting, failed]
    assert lineage.retry_jobs("m") == 1
    assert lineage.job(other).status == "failed"
    assert lineage.job(finished).status == "done"


def test_finish_takes_everything_back_when_it_fails(family):
    key = started(family, "k", model="m1")

    def work():
        with family.finish(key):
            family.add_model(merge("m2", ("demo/add", "m1"), generation=2))
            family.add_scores([score("recipe:m2", 1)])
            with family.transaction():
                family.move_model("m1", "quarantine", cause="model")
            family.put("last", "m2")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        work()
    assert family.model("m2") is None
    assert family.scores("recipe:m2") == []
    assert family.model("m1").status == "admitted"
    assert family.get("last") is None
    assert family.job(key).status == "running"


def test_only_a_running_job_is_finished(lineage):
    key = submit(lineage, "k")
    with pytest.raises(LineageError, match="is pending and cannot finish"), lineage.finish(key):
        pass
    with pytest.raises(LineageError, match="no job 'unknown'"), lineage.finish("unknown"):
        pass
    with pytest.raises(LineageError, match="no job 'unknown'"):
        lineage.fail("unknown", "model", "why")


def test_a_start_is_never_part_of_a_transaction(lineage):
    key = submit(lineage, "k")
    with pytest.raises(LineageError, match="within a transaction"), lineage.transaction():
        lineage.start(key)
    assert lineage.job(key).status == "pending"


def test_jobs_come_in_the_order_they_were_submitted(lineage):
    c, a, b = (submit(lineage, name, "gate" if name == "a" else "merge") for name in "cab")
    lineage.start(b)
    assert [job.key for job in lineage.jobs()] == [c, a, b]
    assert [job.key for job in lineage.jobs(status="pending")] == [c, a]
    assert [job.key for job in lineage.jobs(status="pending", kind="merge")] == [c]


def test_an_inner_transaction_can_be_given_up_alone(lineage):
    with lineage.transaction():
        lineage.put("outer", 1)
        with suppress(OSError), lineage.transaction():
            lineage.put("inner", 1)
            raise OSError("given up")
    assert (lineage.get("outer"), lineage.get("inner")) == (1, None)


KEY = job_key("merge", {"name": "k"})
KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from small_lineage import merge, open_lineage, score

def stand(here):
    if here == {at}:
        print("here", flush=True)
        time.sleep(60)

lineage = open_lineage(Path({path!r}))
stand(0)
key = lineage.submit("merge", {{"name": "k"}}, "m1").key
lineage.start(key)
stand(1)
with lineage.finish(key):
    stand(2)
    lineage.add_model(merge("m2", ("demo/add", "m1"), generation=2))
    lineage.add_scores([score("recipe:m2", 1)])
    stand(3)
    lineage.put("last", "m2")
    stand(4)
stand(5)
"""


@pytest.mark.parametrize("at", range(6))
def test_a_killed_process_leaves_all_of_a_step_or_nothing(family, path, at):
    script = KILLED.format(tests=str(Path(__file__).parent), at=at, path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with open_lineage(path) as after:
        finished = at == 5
        assert (after.model("m2") is not None) is finished
        assert bool(after.scores("recipe:m2")) is finished
        assert (after.get("last") == "m2") is finished
        assert after.recover() == (0 if at in {0, 5} else 1)
        status = {0: None, 5: "done"}.get(at, "pending")
        assert getattr(after.job(KEY), "status", None) == status
        assert after.verify() == []


def test_recovery_makes_pending_only_what_was_running_and_ends_every_wait(lineage):
    keys = {
        "pending": submit(lineage, "pending"),
        **{name: started(lineage, name) for name in ("running", "waiting", "failed")},
        "done": done(lineage, "done"),
    }
    lineage.fail(keys["failed"], "model", "why")
    lineage.wait(keys["waiting"], "why", NOW + timedelta(days=1))
    assert lineage.recover() == 1
    assert {name: lineage.job(key).status for name, key in keys.items()} == {
        "pending": "pending",
        "running": "pending",
        "waiting": "waiting",
        "failed": "failed",
        "done": "done",
    }
    for name, attempts in (("pending", 1), ("running", 2), ("waiting", 2)):
        assert lineage.start(keys[name]).attempts == attempts
    assert lineage.recover() == 3
