"""The clock: signals stop it cleanly, what passes is waited for, and a bug is loud."""

import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

import command
from kinship_daemon import scheduler
from kinship_daemon.daemon import BudgetReached
from kinship_daemon.errors import KinshipError, Stopped, Transient, UsageError

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

    def make(until_converged=False, **watching):
        report = SimpleNamespace(event=lambda kind, message, **_: events.append((kind, message)))
        settings = {"poll_minutes": 0.001, "webhook_port": None, "webhook_host": "127.0.0.1"}
        watch = SimpleNamespace(**{**settings, **watching})
        daemon = SimpleNamespace(
            report=report, stop=threading.Event(), config=SimpleNamespace(watch=watch)
        )
        return daemon, scheduler._Service(daemon, until_converged)

    return make


def play(monkeypatch, polls, evolutions):
    """
    Let the cycle's two functions do these things in turn, the last for ever.

    Returns the times at which they began, by their names.
    """
    times = {"poll": [], "evolve": []}

    def player(acts, begun):
        acts = list(acts)

        def act(daemon):
            begun.append(time.monotonic())
            one = acts.pop(0) if len(acts) > 1 else acts[0]
            if callable(one):
                one = one(daemon)
            if isinstance(one, BaseException):
                raise one
            return one

        return act

    monkeypatch.setattr(scheduler.cycle, "poll", player(polls, times["poll"]))
    monkeypatch.setattr(scheduler.cycle, "evolve", player(evolutions, times["evolve"]))
    return times


def gaps(times):
    return [after - before for before, after in pairwise(times)]


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


def test_a_hub_that_refuses_us_after_it_was_fine_is_asked_again(service, events, monkeypatch):
    play(monkeypatch, [False, KinshipError("401"), False], [CONVERGED])
    daemon, running = service()
    threading.Timer(1.0, daemon.stop.set).start()
    assert running.run() is None
    assert ("warning", "401; asked again at the next look") in events


def test_a_hub_that_refuses_us_from_the_start_ends_the_daemon(service, monkeypatch):
    play(monkeypatch, [KinshipError("401")], [CONVERGED])
    _, running = service()
    with pytest.raises(KinshipError, match="401"):
        running.run()


LONG = 30.0  # minutes: no second tick within a test


def test_a_hub_that_says_when_it_is_back_is_polled_then_not_at_the_next_tick(service, monkeypatch):
    times = play(monkeypatch, [Transient("away", 0.2), False], [CONVERGED])
    daemon, running = service(poll_minutes=LONG)
    threading.Timer(2.5, daemon.stop.set).start()
    assert running.run() is None
    assert len(times["poll"]) == 2
    assert 1.2 <= gaps(times["poll"])[0] < 2.2


def test_ticks_are_skipped_until_the_hub_is_back(service, monkeypatch):
    times = play(monkeypatch, [Transient("away", 0.5), False], [CONVERGED])
    daemon, running = service()  # a tick every 0.06 s
    threading.Timer(2.5, daemon.stop.set).start()
    assert running.run() is None
    assert gaps(times["poll"])[0] >= 1.5
    assert len(times["poll"]) > 3
    assert times["evolve"]
    assert times["evolve"][0] < times["poll"][1]  # what is at home need not wait


def test_a_generation_that_met_a_closed_hub_goes_on_when_it_is_back(service, monkeypatch):
    times = play(monkeypatch, [False], [Transient("away", 0.2), CONVERGED])
    daemon, running = service(poll_minutes=LONG)
    threading.Timer(2.5, daemon.stop.set).start()
    assert running.run() is None
    assert len(times["evolve"]) == 2
    assert 1.2 <= gaps(times["evolve"])[0] < 2.2
    assert len(times["poll"]) == 1


def test_no_tick_polls_a_hub_that_a_generation_found_closed(service, monkeypatch):
    times = play(monkeypatch, [True, False], [Transient("away", 0.5), CONVERGED])
    daemon, running = service()
    threading.Timer(2.5, daemon.stop.set).start()
    assert running.run() is None
    later = [begun for begun in times["poll"] if begun > times["evolve"][0]]
    assert later[0] - times["evolve"][0] >= 1.5


@pytest.mark.parametrize("away", [10.0**18, math.inf, math.nan, -5.0])
def test_nonsense_about_when_it_is_back_is_survived(service, events, monkeypatch, away):
    play(monkeypatch, [Transient("away", away), False], [CONVERGED])
    daemon, running = service(poll_minutes=LONG)
    threading.Timer(0.5, daemon.stop.set).start()
    assert running.run() is None
    assert events[0] == ("warning", "away")


def test_a_hurried_poll_comes_at_once(service, monkeypatch):
    times = play(monkeypatch, [False], [CONVERGED])
    daemon, running = service(poll_minutes=LONG)
    threading.Timer(0.8, running.hurry).start()
    threading.Timer(1.6, daemon.stop.set).start()
    assert running.run() is None
    assert len(times["poll"]) == 2
    assert 0.5 < gaps(times["poll"])[0] < 1.4
    running.hurry()  # the daemon has ended


def test_nobody_can_hurry_a_poll_of_a_hub_that_is_away(service, monkeypatch):
    daemon, running = service(poll_minutes=LONG)

    def asked_meanwhile(_daemon):
        running.hurry()
        time.sleep(0.3)  # the second poll is waiting for the thread by now
        return Transient("away", 0.5)

    times = play(monkeypatch, [asked_meanwhile, False], [CONVERGED])
    threading.Timer(1.0, running.hurry).start()
    threading.Timer(3.0, daemon.stop.set).start()
    assert running.run() is None
    assert len(times["poll"]) == 2
    assert gaps(times["poll"])[0] >= 1.8


@pytest.mark.parametrize("job", ["poll", "evolve"])
def test_a_stop_in_the_midst_of_a_wait_for_the_hub_is_clean_and_quick(service, monkeypatch, job):
    def wait_for_the_hub(daemon):
        daemon.stop.wait()
        time.sleep(0.3)  # the main thread is shutting down by now
        return Stopped()

    acts = {"poll": [True], "evolve": [GOING_ON], job: [wait_for_the_hub]}
    play(monkeypatch, acts["poll"], acts["evolve"])
    daemon, running = service(poll_minutes=LONG)
    threading.Timer(0.5, daemon.stop.set).start()
    begun = time.monotonic()
    assert running.run() is None
    assert time.monotonic() - begun < 5


def test_a_stop_while_a_job_ends_well_is_clean_and_quick(service, monkeypatch):
    def work(daemon):
        daemon.stop.wait()
        time.sleep(0.3)
        return True  # so that the next generation would begin at once

    times = play(monkeypatch, [work], [GOING_ON])
    daemon, running = service(poll_minutes=LONG)
    threading.Timer(0.5, daemon.stop.set).start()
    begun = time.monotonic()
    assert running.run() is None
    assert time.monotonic() - begun < 5
    assert times["evolve"] == []


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_a_webhook_makes_the_next_poll_due(service, events, monkeypatch):
    monkeypatch.setenv("KINSHIP_WEBHOOK_SECRET", "between us")
    port = free_port()
    daemon, running = service(poll_minutes=LONG, webhook_port=port)
    answers = []

    def call():
        for secret in ("a guess", "between us", "between us"):
            headers = {"X-Webhook-Secret": secret}
            url = f"http://127.0.0.1:{port}/webhook"
            answers.append(httpx.post(url, json={}, headers=headers).status_code)

    times = play(monkeypatch, [False], [CONVERGED])
    threading.Timer(0.8, call).start()
    threading.Timer(2.0, daemon.stop.set).start()
    assert running.run() is None
    assert answers == [401, 202, 202]
    assert len(times["poll"]) == 2  # many messages are one poll
    assert ("listen", f"for webhooks at port {port}, /webhook") in events
    with pytest.raises(httpx.ConnectError):
        call()


def test_a_webhook_that_cannot_be_is_said_before_anything_is_done(service, monkeypatch):
    times = play(monkeypatch, [False], [CONVERGED])
    monkeypatch.delenv("KINSHIP_WEBHOOK_SECRET", raising=False)
    _, running = service(webhook_port=0)
    with pytest.raises(UsageError, match="KINSHIP_WEBHOOK_SECRET is not set"):
        running.run()
    monkeypatch.setenv("KINSHIP_WEBHOOK_SECRET", "x")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        _, running = service(webhook_port=port)
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            running.run()
    assert times == {"poll": [], "evolve": []}


def test_what_passes_ends_a_run_that_is_to_end(service, monkeypatch):
    play(monkeypatch, [Transient("hub away", 300.0)], [Transient("hub away")])
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
