"""The clock: signals stop it cleanly, what passes is waited for, and a bug is loud."""

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import command
from kinship_daemon import scheduler
from kinship_daemon.daemon import BudgetReached, Stopped
from kinship_daemon.errors import Transient

ARGUMENTS = ["run", "--base", "demo", "--log-json"]


def wait_for(process, kind):
    for line in process.stdout:
        if json.loads(line)["event"] == kind:
            return
    raise AssertionError(process.stderr.read())


def workers(home):
    """Processes that still write to this home's log."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            names = {str((process / "fd" / fd).readlink()) for fd in ("1", "2")}
        except OSError:
            continue
        if str(home / "logs" / "evaluate.log") in names:
            found.append(process.name)
    return found


def test_sigterm_stops_at_the_next_step_and_leaves_nothing_running(tmp_path):
    home = tmp_path / "home"
    process = command.start([*ARGUMENTS, "--home", home], tmp_path)
    wait_for(process, "score")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    with sqlite3.connect(home / "lineage.db") as database:
        states = dict(database.execute("SELECT status, count(*) FROM jobs GROUP BY status"))
    assert "running" not in states
    assert states["done"] >= 2
    assert workers(home) == []


def test_a_second_signal_stops_at_once_and_the_worker_ends_too(tmp_path):
    home = tmp_path / "home"
    process = command.start([*ARGUMENTS, "--home", home], tmp_path)
    wait_for(process, "decide")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    # Two signals that arrive as one are one: insist until it is gone.
    while process.poll() is None:
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    # The last of them may find an interpreter that is already taking itself apart.
    assert process.returncode in {0, 128 + signal.SIGINT, -signal.SIGINT}
    deadline = time.monotonic() + 10
    while workers(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers(home) == []


def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_is_still_clean(tmp_path):
    home = tmp_path / "home"
    process = command.start([*ARGUMENTS, "--home", home], tmp_path, process_group=0)
    wait_for(process, "score")
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert (process.returncode, err) == (0, "")
    with sqlite3.connect(home / "lineage.db") as database:
        assert not database.execute("SELECT * FROM models WHERE status = 'quarantined'").fetchall()


@pytest.fixture
def events():
    return []


@pytest.fixture
def service(events):
    """A service whose daemon is only what the clock itself uses of it."""

    def make(until_converged=False):
        report = SimpleNamespace(event=lambda kind, message, **_: events.append((kind, message)))
        watch = SimpleNamespace(poll_minutes=0.001)
        daemon = SimpleNamespace(
            report=report, stop=threading.Event(), config=SimpleNamespace(watch=watch)
        )
        return daemon, scheduler._Service(daemon, until_converged)

    return make


def play(monkeypatch, polls, evolutions):
    """Let the cycle's two functions do these things in turn, the last for ever."""

    def player(acts):
        acts = list(acts)

        def act(_daemon):
            one = acts.pop(0) if len(acts) > 1 else acts[0]
            if isinstance(one, BaseException):
                raise one
            return one

        return act

    monkeypatch.setattr(scheduler.cycle, "poll", player(polls))
    monkeypatch.setattr(scheduler.cycle, "evolve", player(evolutions))


GOING_ON, CONVERGED = scheduler.cycle.Outcome(None), scheduler.cycle.Outcome("enough")


def test_generations_follow_each_other_until_there_is_nothing_to_do(service, monkeypatch):
    play(monkeypatch, [True, False], [GOING_ON, GOING_ON, CONVERGED])
    _, running = service(until_converged=True)
    assert running.run() == "enough"


@pytest.mark.parametrize("passing", [Transient("hub away"), BudgetReached("limit")])
def test_what_passes_is_said_and_tried_again(service, events, monkeypatch, passing):
    play(monkeypatch, [passing, False], [passing, CONVERGED])
    daemon, running = service()
    threading.Timer(1.0, daemon.stop.set).start()
    assert running.run() is None
    assert events[:2] == [("warning", str(passing))] * 2
    assert [kind for kind, _ in events[2:]] == ["idle"]


def test_what_passes_ends_a_run_that_is_to_end(service, monkeypatch):
    play(monkeypatch, [Transient("hub away")], [Transient("hub away")])
    _, running = service(until_converged=True)
    with pytest.raises(Transient, match="hub away"):
        running.run()


def test_a_bug_ends_the_daemon_loudly(service, monkeypatch):
    play(monkeypatch, [ZeroDivisionError("a bug")], [CONVERGED])
    _, running = service()
    with pytest.raises(ZeroDivisionError):
        running.run()


def test_a_stop_between_steps_is_no_failure(service, monkeypatch):
    play(monkeypatch, [Stopped()], [Stopped()])
    daemon, running = service()
    threading.Timer(0.5, daemon.stop.set).start()
    assert running.run() is None
