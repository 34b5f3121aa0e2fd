"""Steps of the work: all of one or nothing, whenever the process is killed."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kinship_storage.errors import LineageError
from small_lineage import fill, merge, open_lineage, score


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lineage.db"


@pytest.fixture
def lineage(path):
    with open_lineage(path) as opened:
        yield opened


@pytest.fixture
def family(lineage):
    fill(lineage)
    return lineage


def test_a_job_runs_from_pending_to_done(lineage):
    job = lineage.enqueue("k", "merge", "m")
    assert (job.status, job.attempts, job.started) == ("pending", 0, None)
    job = lineage.start("k", "merge", "m")
    assert (job.status, job.attempts, job.started) == ("running", 1, "2026-01-31T08:15:00Z")
    with lineage.finish("k"):
        lineage.put("result", 1)
    job = lineage.job("k")
    assert (job.status, job.attempts, job.finished) == ("done", 1, "2026-01-31T08:15:00Z")
    assert lineage.enqueue("k", "merge", "m") == job
    assert lineage.job("other") is None


def test_a_done_or_quarantined_job_is_not_started_again(lineage):
    lineage.start("good", "merge")
    with lineage.finish("good"):
        pass
    lineage.start("bad", "merge")
    lineage.fail("bad", "NaN", quarantined=True)
    for key, status in (("good", "done"), ("bad", "quarantined")):
        before = lineage.job(key)
        assert lineage.start(key, "merge") == before
        assert before.status == status
        assert lineage.job(key) == before


def test_a_failed_job_may_be_tried_again(lineage):
    lineage.start("k", "merge")
    assert lineage.fail("k", "the hub is away").status == "failed"
    assert lineage.job("k").reason == "the hub is away"
    job = lineage.start("k", "merge")
    assert (job.status, job.attempts, job.reason, job.finished) == ("running", 2, None, None)


def test_a_done_job_whose_result_is_gone_may_be_done_again(lineage):
    lineage.start("k", "ledger")
    with lineage.finish("k"):
        pass
    lineage.fail("k", "its result is gone")
    assert lineage.start("k", "ledger").status == "running"


def test_finish_takes_everything_back_when_it_fails(family):
    family.start("k", "merge", "m1")

    def work():
        with family.finish("k"):
            family.add_model(merge("m2", ("demo/add", "m1"), generation=2))
            family.add_scores([score("recipe:m2", 1)])
            with family.transaction():
                family.update_model("m1", status="refused")
            family.put("last", "m2")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        work()
    assert family.model("m2") is None
    assert family.scores("recipe:m2") == []
    assert family.model("m1").status == "admitted"
    assert family.get("last") is None
    assert family.job("k").status == "running"


def test_only_a_running_job_is_finished(lineage):
    lineage.enqueue("k", "merge")
    with pytest.raises(LineageError, match="is pending, not running"), lineage.finish("k"):
        pass
    with pytest.raises(LineageError, match="no job 'unknown'"), lineage.finish("unknown"):
        pass
    with pytest.raises(LineageError, match="no job 'unknown'"):
        lineage.fail("unknown", "why")


def test_a_start_is_never_part_of_a_transaction(lineage):
    with pytest.raises(LineageError, match="within a transaction"), lineage.transaction():
        lineage.start("k", "merge")
    assert lineage.jobs() == []


def test_jobs_come_in_the_order_they_were_enqueued(lineage):
    for key in ("c", "a", "b"):
        lineage.enqueue(key, "merge" if key != "a" else "gate")
    lineage.start("b", "merge")
    assert [job.key for job in lineage.jobs()] == ["c", "a", "b"]
    assert [job.key for job in lineage.jobs(status="pending")] == ["c", "a"]
    assert [job.key for job in lineage.jobs(status="pending", kind="merge")] == ["c"]


def test_an_inner_transaction_can_be_given_up_alone(lineage):
    with lineage.transaction():
        lineage.put("outer", 1)
        with suppress(OSError), lineage.transaction():
            lineage.put("inner", 1)
            raise OSError("given up")
    assert (lineage.get("outer"), lineage.get("inner")) == (1, None)


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
lineage.start("k", "merge", "m1")
stand(1)
with lineage.finish("k"):
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
        assert getattr(after.job("k"), "status", None) == status
        assert after.verify() == []


def test_recovery_makes_pending_only_what_was_running(lineage):
    lineage.enqueue("pending", "merge")
    for key in ("running", "failed", "done"):
        lineage.start(key, "merge")
    lineage.fail("failed", "why")
    with lineage.finish("done"):
        pass
    assert lineage.recover() == 1
    assert {job.key: job.status for job in lineage.jobs()} == {
        "pending": "pending",
        "running": "pending",
        "failed": "failed",
        "done": "done",
    }
    assert lineage.start("running", "merge").attempts == 2
    assert lineage.recover() == 1
