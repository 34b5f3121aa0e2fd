"""The worker scores as the harness does, and dies without taking anything along."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import lmtasks
from kinship_daemon.errors import KinshipError, ModelError, Stopped, UsageError
from kinship_daemon.evaluate import worker
from kinship_daemon.evaluate.harness import Harness
from kinship_daemon.evaluate.scoring import score_split
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.evaluate.worker import WorkerEvaluator
from kinship_daemon.weights.materialise import leaf_assembly

pytestmark = pytest.mark.slow

DOCUMENTS = [{"prompt": f"{letter}{letter}=", "answer": letter} for letter in "abcdefghijkl"]


def settings(folder: Path, selection: str, validation: str = "quick", **changes) -> Settings:
    lmtasks.probe(folder, "quick", DOCUMENTS)
    return lmtasks.settings([selection], [validation], include_path=(folder,), **changes)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children() -> set[int]:
    """Worker processes of ours that run; multiprocessing's resource tracker is none."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            line = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if fields[1] == str(os.getpid()) and fields[0] != "Z" and "spawn_main" in line:
            found.add(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def alone(shelf):
    """Processes are counted here: none that other tests share may be left."""
    shelf.close()


def gone(pids: set[int], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_running, pids))


def test_one_worker_scores_model_after_model_as_the_harness_does(
    tiny_base, tiny_finetunes, tmp_path, capfd
):
    config = settings(tmp_path / "tasks", "quick")
    models = [leaf_assembly(path, f"sha256:{path.name}") for path in (tiny_base, tiny_finetunes[0])]
    seen = []
    with WorkerEvaluator(config, log=tmp_path / "logs" / "evaluate.log") as evaluator:
        assert not children()  # nothing is started before it is needed
        found = evaluator.check()
        (worker,) = children()
        first = score_split(evaluator, models[0], "selection", lambda *done: seen.append(done))
        # Ctrl-C and systemd reach the worker too; whether it ends is for the daemon to say.
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker, number)
        other = score_split(evaluator, models[1], "validation")
        assert children() == {worker}
        harness = Harness(config)
        assert found == harness.found == evaluator.settings.documents
        assert first == score_split(harness, models[0], "selection")
        assert other == score_split(harness, models[1], "validation")
    assert gone({worker})
    assert seen[-1] == (6, 6)  # the other half is validation's
    assert "sha256:a on 6 documents of quick" in (tmp_path / "logs" / "evaluate.log").read_text()
    printed = capfd.readouterr()
    assert "evaluating" not in printed.out + printed.err


class Stop(Exception):
    pass


def stop(done: int, total: int) -> None:
    assert 0 < done <= total == len(DOCUMENTS)
    raise Stop


def test_a_model_that_takes_too_long_is_stopped_and_the_next_one_is_not_hurt(tiny_base, tmp_path):
    slow = {"process_results": lmtasks.Function("wait")}
    lmtasks.task(tmp_path / "tasks", "slow", DOCUMENTS * 50, **slow)
    config = settings(tmp_path / "tasks", "slow", time_limit_minutes=5 / 60)
    with WorkerEvaluator(config, log=tmp_path / "log") as evaluator:
        evaluator.check()
        before = time.monotonic()
        with pytest.raises(ModelError, match=r"sha256:slow.*evaluate.time_limit_minutes \(0.0833"):
            score_split(evaluator, leaf_assembly(tiny_base, "sha256:slow"), "selection")
        assert time.monotonic() - before < 10
        assert not children()
        # The next one is answered by a fresh worker; a caller may stop it from within its progress.
        with pytest.raises(Stop):
            score_split(evaluator, leaf_assembly(tiny_base, "sha256:next"), "validation", stop)
        assert not children()


def test_a_crash_is_the_models_when_it_was_being_asked_and_nobodys_when_idle(tiny_base, tmp_path):
    folder = tmp_path / "tasks"
    lmtasks.task(folder, "fatal", DOCUMENTS, process_results=lmtasks.Function("crash"))
    asked = leaf_assembly(tiny_base, "sha256:base")
    with WorkerEvaluator(settings(folder, "fatal"), log=tmp_path / "log") as evaluator:
        (folder / "crash").touch()
        with pytest.raises(
            ModelError, match=r"sha256:base.*died \(SIGSEGV\).*tmp.*/log is: about to crash"
        ):
            score_split(evaluator, asked, "selection")
        (folder / "crash").unlink()
        first = score_split(evaluator, asked, "selection")
        (idle,) = children()
        os.kill(idle, signal.SIGKILL)
        assert gone({idle})
        assert score_split(evaluator, asked, "selection") == first
        assert children() != {idle}


def deaf(pipe, _settings, _log):
    """A worker that was ready, and hangs before it is given anything."""
    pipe.send(("ready", {}))
    time.sleep(600)


def test_a_stop_ends_the_wait_for_a_worker_that_takes_no_model(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "serve", deaf)
    stop = threading.Event()
    config = settings(tmp_path / "tasks", "quick")
    with WorkerEvaluator(config, log=tmp_path / "log", stop=stop) as evaluator:
        evaluator.check()
        timer = threading.Timer(1, stop.set)
        timer.start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            evaluator.probe(leaf_assembly(tiny_base, "sha256:base"))
        assert time.monotonic() - began < worker._TAKE_SECONDS / 2
        timer.join()


def test_mistakes_in_the_settings_come_out_as_such(tmp_path):
    config = settings(tmp_path / "tasks", "quick")
    wrong = config.but(selection=(Task(task="quick", metric="acc"),))
    with (
        WorkerEvaluator(wrong, log=tmp_path / "log") as evaluator,
        pytest.raises(UsageError, match="no metric 'acc'; these would work: loglikelihood"),
    ):
        evaluator.check()
    assert not children()


def test_a_log_that_cannot_be_written_is_said_before_anything_starts(tmp_path):
    (tmp_path / "file").touch()
    log = tmp_path / "file" / "log"
    with (
        WorkerEvaluator(settings(tmp_path / "tasks", "quick"), log=log) as evaluator,
        pytest.raises(KinshipError, match="file/log cannot be written"),
    ):
        evaluator.check()
    assert not children()


PARENT = """
import multiprocessing
import pickle
import sys
from pathlib import Path

from kinship_daemon.evaluate.scoring import score_split
from kinship_daemon.evaluate.worker import WorkerEvaluator


def tell(done, total):
    if done == total:  # the model is done; the slow scoring of its answers begins
        print(multiprocessing.active_children()[0].pid, flush=True)


if __name__ == "__main__":
    scratch = Path(sys.argv[1])
    settings, assembly = pickle.loads((scratch / "job").read_bytes())
    score_split(WorkerEvaluator(settings, log=scratch / "log"), assembly, "selection", tell)
"""


def test_a_killed_daemon_leaves_no_worker_behind(tiny_base, tmp_path):
    slow = {"process_results": lmtasks.Function("wait")}
    lmtasks.task(tmp_path / "tasks", "slow", DOCUMENTS * 200, **slow)
    config = settings(tmp_path / "tasks", "slow", chunk=len(DOCUMENTS) * 200)
    job = (config, leaf_assembly(tiny_base, "sha256:base"))
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py", tmp_path]
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    ) as parent:
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.kill()
        assert gone({worker}, seconds=5)
        # Nothing of the worker's reached the terminal, nor did it leave anything to complain of.
        assert parent.stderr.read() == ""
