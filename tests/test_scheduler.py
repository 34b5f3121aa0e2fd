"""The clock: signals stop it cleanly, what passes is waited for, and a bug is loud."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

import command
import lmtasks
from kinship_daemon import scheduler
from kinship_daemon.config import Web
from kinship_daemon.errors import BudgetReached, KinshipError, Stopped, Transient, UsageError
from kinship_daemon.home import Home
from kinship_daemon.runner import Turn
from kinship_storage.errors import DamagedLineage
from small_lineage import fill, open_lineage

pytestmark = pytest.mark.slow

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


def test_sigterm_ends_within_seconds_and_leaves_nothing_running(tmp_path):
    home = tmp_path / "home"
    process = command.start([*ARGUMENTS, "--home", home], tmp_path)
    wait_for(process, "score")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=8)  # 5 seconds, and some for a busy machine
    assert (process.returncode, err) == (0, "")
    with sqlite3.connect(home / "lineage.db") as database:
        states = dict(database.execute("SELECT status, count(*) FROM jobs GROUP BY status"))
    assert "running" not in states
    assert states["done"] >= 2
    assert workers(home) == []


@pytest.mark.parametrize(
    "hangs",
    [
        {"custom_dataset": lmtasks.Function("stuck_load")},
        {"process_results": lmtasks.Function("stuck")},
    ],
    ids=["while its tasks load", "while it answers"],
)
def test_sigterm_ends_a_daemon_whose_evaluation_hangs(hangs, tmp_path):
    documents = [{"prompt": f"1+{n}=", "answer": f"{n + 1}"} for n in range(8)]
    lmtasks.task(tmp_path / "tasks", "stuck", documents, **hangs)
    asked = ("--set", "evaluate.selection=[stuck]", "--set", "evaluate.validation=[stuck]")
    where = ("--set", f"evaluate.include_path=[{tmp_path / 'tasks'}]", "--home", tmp_path / "home")
    process = command.start([*ARGUMENTS, *asked, *where], tmp_path)
    for _ in hangs.keys() | {"custom_dataset"}:  # loading the tasks, then asking the base
        wait_for(process, "check")
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=8)  # 5 seconds, and some for a busy machine
    assert process.returncode == 0
    assert workers(tmp_path / "home") == []


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
    process.communicate(timeout=60)
    # The last of them may find an interpreter that is already taking itself apart.
    assert process.returncode in {0, 128 + signal.SIGINT, -signal.SIGINT}
    deadline = time.monotonic() + 60
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


class Turns:
    """A runner that does these things in turn, the last for ever; and when it was asked."""

    doing = "score of org/a"

    def __init__(self, acts):
        self.acts = list(acts)
        self.looks, self.times = [], []

    def loop(self, now, *, look=False):
        assert now.tzinfo is UTC
        self.times.append(time.monotonic())
        self.looks.append(look)
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        if callable(act):
            act = act()
        if isinstance(act, BaseException):
            raise act
        return act

    def gaps(self):
        return [after - before for before, after in pairwise(self.times)]


LOOKED, WORKED, NOTHING = Turn("watch"), Turn("score"), Turn(None)


def in_seconds(seconds):
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.fixture
def service(events, monkeypatch, tmp_path):
    """A service whose context is only what the clock itself uses of it."""
    monkeypatch.setattr(scheduler, "show_generation", lambda *_: None)

    def make(*acts, until_converged=False, stopped="enough", web_port=None, **watching):
        monkeypatch.setattr(scheduler, "converged", lambda _: stopped)
        report = SimpleNamespace(event=lambda kind, message, **_: events.append((kind, message)))
        settings = {"poll_minutes": 0.001, "webhook_port": None, "webhook_host": "127.0.0.1"}
        watch = SimpleNamespace(**{**settings, **watching})
        web = Web(port=web_port)
        context = SimpleNamespace(
            report=report,
            stop=threading.Event(),
            config=SimpleNamespace(watch=watch, web=web),
            home=Home(tmp_path),
            lineage=lineage,
            now=lambda: datetime.now(UTC),
        )
        turns = Turns(acts)
        running = scheduler.Service(context, turns, until_converged=until_converged)
        return context, turns, running

    with open_lineage(tmp_path / "lineage.db") as lineage:
        yield make


LONG = 30.0  # minutes: no second look within a test


def test_a_daemon_that_sleeps_notices_that_its_lineage_is_gone(service):
    context, _, running = service(Turn(None), poll_minutes=LONG)
    threading.Timer(0.3, context.lineage.path.unlink).start()
    with pytest.raises(DamagedLineage, match="was deleted while it was open"):
        running.run()


def test_turns_follow_each_other_until_there_is_nothing_to_do(service):
    _, turns, running = service(LOOKED, WORKED, WORKED, NOTHING, until_converged=True)
    assert running.run() == "enough"
    assert turns.looks == [True, False, False, False]


def test_a_generation_is_shown_once_whatever_starts_come_after(service, monkeypatch):
    context, turns, running = service(NOTHING, until_converged=True)
    shown = []
    monkeypatch.setattr(scheduler, "show_generation", lambda _, number: shown.append(number))
    fill(context.lineage)
    assert running.run() == "enough"
    assert shown == [1]
    scheduler.Service(context, type(turns)([NOTHING]), until_converged=True).run()
    assert shown == [1]


def test_looks_come_by_the_clock(service):
    context, turns, running = service(LOOKED, NOTHING, LOOKED, NOTHING)
    threading.Timer(1.0, context.stop.set).start()
    assert running.run() is None
    assert turns.looks[:4] == [True, False, True, False]


def test_a_daemon_with_nothing_to_do_says_so_once_and_sleeps(service, events):
    context, turns, running = service(LOOKED, NOTHING, poll_minutes=LONG)
    threading.Timer(1.0, context.stop.set).start()
    assert running.run() is None
    assert len(turns.looks) == 2
    assert [kind for kind, _ in events] == ["idle", "stopping"]


def test_what_waits_is_tried_when_it_is_due(service):
    waiting = lambda: Turn(None, (Transient("away"),), in_seconds(0.5))  # noqa: E731
    context, turns, running = service(LOOKED, waiting, NOTHING, poll_minutes=LONG)
    threading.Timer(1.5, context.stop.set).start()
    assert running.run() is None
    assert 0.4 < turns.gaps()[1] < 1.2
    assert len(turns.looks) == 3


def test_a_look_that_a_hub_did_not_allow_stays_due(service):
    """The turn did something else, or nothing: the look comes with the next."""
    away = lambda: Turn(None, (Transient("away"),), in_seconds(0.3))  # noqa: E731
    context, turns, running = service(WORKED, away, LOOKED, NOTHING, poll_minutes=LONG)
    threading.Timer(1.2, context.stop.set).start()
    assert running.run() is None
    assert turns.looks[:4] == [True, True, True, False]


def test_looks_that_take_longer_than_their_interval_leave_time_for_the_work(service):
    def long_look():
        running.hurry()  # the clock's, meanwhile
        return LOOKED

    def end():
        context.stop.set()
        return WORKED

    acts = (long_look, WORKED, long_look, NOTHING, long_look, end)
    context, turns, running = service(*acts, poll_minutes=LONG)
    assert running.run() is None
    assert turns.looks == [True, False, True, False, True, False]


@pytest.mark.parametrize("passing", [Transient("hub away"), BudgetReached("limit")])
def test_what_passes_ends_a_run_that_is_to_end(service, passing):
    _, _, running = service(LOOKED, Turn(None, (passing,)), until_converged=True)
    with pytest.raises(type(passing), match=str(passing)):
        running.run()


def test_a_run_that_is_to_end_and_cannot_go_on_says_so(service):
    _, _, running = service(LOOKED, NOTHING, until_converged=True, stopped=None)
    with pytest.raises(KinshipError, match="`kinship-daemon status` says why"):
        running.run()


def test_a_hub_that_refuses_us_from_the_start_ends_the_daemon(service):
    _, _, running = service(KinshipError("401"))
    with pytest.raises(KinshipError, match="401"):
        running.run()


def test_a_look_comes_though_the_schedulers_clock_stands_still(service, monkeypatch):
    """As after the machine's clock was set back: the scheduler waits for a time long ahead."""
    monkeypatch.setattr(scheduler.BackgroundScheduler, "add_job", lambda *_, **__: None)
    context, turns, running = service(LOOKED, NOTHING, LOOKED, NOTHING, poll_minutes=0.01)
    threading.Timer(4, context.stop.set).start()
    assert running.run() is None
    assert turns.looks[:3] == [True, False, True]
    assert turns.gaps()[1] > 0.8  # one and a half times 0.6 seconds


def test_a_hurried_look_comes_at_once(service):
    context, turns, running = service(LOOKED, NOTHING, LOOKED, NOTHING, poll_minutes=LONG)
    threading.Timer(0.5, running.hurry).start()
    threading.Timer(1.2, context.stop.set).start()
    assert running.run() is None
    assert turns.looks == [True, False, True, False]
    assert 0.3 < turns.gaps()[1] < 0.8
    running.hurry()  # the daemon has ended


def test_a_stop_in_the_midst_of_a_step_is_clean_and_quick(service, events):
    def wait_for_the_hub():
        context.stop.wait()
        time.sleep(0.3)
        return Stopped()

    context, _, running = service(wait_for_the_hub, poll_minutes=LONG)
    threading.Timer(0.3, context.stop.set).start()
    begun = time.monotonic()
    assert running.run() is None
    assert time.monotonic() - begun < 5
    said = "score of org/a is left, and done again at the next start; a second Ctrl-C stops at once"
    assert ("stopping", said) in events


def test_after_a_stop_no_turn_begins(service):
    def work():
        context.stop.wait()
        return WORKED

    context, turns, running = service(work, poll_minutes=LONG)
    threading.Timer(0.3, context.stop.set).start()
    assert running.run() is None
    assert len(turns.looks) == 1


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_a_webhook_makes_the_next_look_due(service, events, monkeypatch):
    monkeypatch.setenv("KINSHIP_WEBHOOK_SECRET", "between us")
    port = free_port()
    acts = (LOOKED, NOTHING, LOOKED, NOTHING)
    context, turns, running = service(*acts, poll_minutes=LONG, webhook_port=port)
    answers = []

    def call():
        for secret in ("a guess", "between us", "between us"):
            headers = {"X-Webhook-Secret": secret}
            url = f"http://127.0.0.1:{port}/webhook"
            answers.append(httpx.post(url, json={}, headers=headers).status_code)

    threading.Timer(0.5, call).start()
    threading.Timer(1.5, context.stop.set).start()
    assert running.run() is None
    assert answers == [401, 202, 202]
    assert 2 <= sum(turns.looks) <= 3
    assert ("listen", f"for webhooks at port {port}, /webhook") in events
    with pytest.raises(httpx.ConnectError):
        call()


def test_a_webhook_that_cannot_be_is_said_before_anything_is_done(service, monkeypatch):
    monkeypatch.delenv("KINSHIP_WEBHOOK_SECRET", raising=False)
    _, turns, running = service(LOOKED, webhook_port=0)
    with pytest.raises(UsageError, match="KINSHIP_WEBHOOK_SECRET is not set"):
        running.run()
    monkeypatch.setenv("KINSHIP_WEBHOOK_SECRET", "x")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        _, turns, running = service(LOOKED, webhook_port=port)
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            running.run()
    assert turns.looks == []


def test_the_dashboard_is_shown_while_the_daemon_runs(service, events):
    port = free_port()
    context, _, running = service(LOOKED, NOTHING, poll_minutes=LONG, web_port=port)
    found = []

    def look():
        found.append(httpx.get(f"http://127.0.0.1:{port}/now.json").json()["home"])

    threading.Timer(1.0, look).start()
    threading.Timer(2.5, context.stop.set).start()
    assert running.run() is None
    assert found == [str(context.home.path)]
    assert ("listen", f"the dashboard is at http://127.0.0.1:{port}/") in events
    with pytest.raises(httpx.ConnectError):
        look()


def test_a_bug_ends_the_daemon_loudly(service):
    _, _, running = service(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        running.run()
