"""Events reach whoever is to be told: in order, at least once, and none of their secrets leaks."""

import importlib.util
import json
import multiprocessing
import random
import sqlite3
import threading
import time
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

import outbox_daemon
from kinship_daemon.cli import app
from kinship_daemon.config import examine, load, to_yaml
from kinship_daemon.errors import UsageError
from kinship_daemon.notify import delivery
from kinship_daemon.notify.delivery import delivering
from kinship_daemon.notify.notifier import Target, notifier, targets
from kinship_daemon.notify.settings import KINDS, rendered
from kinship_storage.events import KEPT
from kinship_storage.lineage import Lineage
from kinship_storage.records import Generation
from small_lineage import NOW, fill, open_lineage

PATIENCE = 60
TOKEN = "s3cr3t-in-the-address"


class Receiver:
    """A real HTTP server that writes down what it is told, and answers as it is asked to."""

    def __init__(self):
        self.bodies, self.answers, self.changed = [], [], threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/{TOKEN}"

    def handler(receiver):  # noqa: N805 - the handler's own self is another
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with receiver.changed:
                    status = receiver.answers.pop(0) if receiver.answers else 204
                    if status < 300:
                        receiver.bodies.append(body)
                    receiver.changed.notify_all()
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        return Handler

    def wait_for(self, number):
        """Until so many different events have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.ids) >= number, PATIENCE)

    @property
    def ids(self):
        return list(dict.fromkeys(body["id"] for body in self.bodies))


@contextmanager
def receiving():
    receiver = Receiver()
    threading.Thread(target=receiver.server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture
def receiver():
    with receiving() as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(delivery, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(delivery, "_FIRST_WAIT", 0.02)


class Log:
    def __init__(self):
        self.lines = []

    def event(self, kind, message, **_):
        self.lines.append(f"{kind}: {message}")


def to(receiver, name="chat", kinds=KINDS):
    return Target(name, notifier("webhook", {"url": receiver.url}), frozenset(kinds))


@contextmanager
def telling(lineage, *told, log=None):
    with delivering(lineage.path, told, log or Log(), lambda: NOW):
        yield


def test_what_is_committed_is_told_with_its_facts(tmp_path, receiver):
    with open_lineage(tmp_path / "lineage.db") as lineage, telling(lineage, to(receiver)):
        fill(lineage)
        told = {event.kind: event for event in lineage.events()}
        receiver.wait_for(len(lineage.events()))
    published = next(body for body in receiver.bodies if body["event"] == "publish")
    assert published["id"] == told["publish"].id
    assert published["text"] == f"publish: {told['publish'].message}"
    assert published["facts"]["url"] == told["publish"].facts["url"]
    assert receiver.ids == [event.id for event in told.values()]


def test_what_is_rolled_back_is_not_told_and_what_is_there_already_not_twice(tmp_path):
    with open_lineage(tmp_path / "lineage.db") as lineage:
        fill(lineage)
        once = [event.id for event in lineage.events()]
        [publication] = lineage.publications()
        lineage.add_publication(publication)
        with suppress(ZeroDivisionError), lineage.transaction():
            lineage.add_event("publish", "m9 as us/m9")
            raise ZeroDivisionError
        assert [event.id for event in lineage.events()] == once


def test_each_recipient_is_told_what_it_asked_for_from_its_first_start_on(tmp_path, receiver):
    with receiving() as other, open_lineage(tmp_path / "lineage.db") as lineage:
        lineage.add_event("publish", "before there was anyone to tell")
        both = to(receiver, "a", ["publish"]), to(other, "b", ["budget"])
        with telling(lineage, *both):
            lineage.add_event("publish", "m1")
            lineage.add_event("budget", "limits.x used up")
            receiver.wait_for(1)
            other.wait_for(1)
        assert [body["text"] for body in receiver.bodies] == ["publish: m1"]
        assert [body["text"] for body in other.bodies] == ["budget: limits.x used up"]
        assert lineage.delivered("a") == lineage.delivered("b") == lineage.last_event()


def test_errors_and_silence_lose_nothing_delay_nobody_and_show_no_secret(tmp_path, receiver):
    receiver.answers = [500, 302, 404]
    never, log = threading.Event(), Log()
    hangs = Target("hangs", lambda *_: never.wait(), frozenset(KINDS))

    def breaks(*_):
        raise RuntimeError(TOKEN)

    broken = Target("broken", breaks, frozenset(KINDS))
    with open_lineage(tmp_path / "lineage.db") as lineage:
        with telling(lineage, hangs, broken, to(receiver), log=log):
            begun = time.monotonic()
            for number in range(5):
                lineage.add_event("publish", f"m{number}")
            assert time.monotonic() - begun < PATIENCE / 2
            receiver.wait_for(5)
        assert [body["text"] for body in receiver.bodies] == [f"publish: m{n}" for n in range(5)]
        assert lineage.delivered("hangs") == 0
        never.set()
    said = "\n".join(log.lines)
    assert "warning: notifier chat: not told yet: it answered 500; tried again in" in said
    assert "warning: notifier broken: not told yet: RuntimeError; tried again in" in said
    assert TOKEN not in said


def test_waits_grow(tmp_path, monkeypatch):
    waits, log = [], Log()

    class Ended(threading.Event):
        def wait(self, seconds=None):
            waits.append(seconds)
            if len(waits) == 5:
                self.set()

    def away(*_):
        raise OSError

    monkeypatch.setattr(delivery, "_LONGEST_WAIT", 0.1)
    with open_lineage(tmp_path / "lineage.db") as lineage:
        lineage.delivered("x")
        lineage.add_event("publish", "m1")
        beside = Lineage.open(lineage.path, now=lambda: NOW, beside=True, whole=True)
        target = Target("x", away, frozenset(KINDS))
        delivery._Delivery(beside, target, log, lambda: NOW, Ended(), 600.0).run()
    assert waits[:5] == [0.02, 0.04, 0.08, 0.1, 0.1]


def test_what_is_too_old_or_too_much_is_given_up_and_said(tmp_path, receiver):
    log, path = Log(), tmp_path / "lineage.db"
    with Lineage.open(path, now=lambda: NOW - timedelta(days=8)) as lineage:
        lineage.delivered("chat")
        lineage.add_event("publish", "old")
    with open_lineage(path) as lineage:
        with telling(lineage, to(receiver), log=log):
            lineage.add_event("publish", "new")
            receiver.wait_for(1)
        assert [body["text"] for body in receiver.bodies] == ["publish: new"]
        assert "warning: notifier chat: 1 event too old to be told" in log.lines
        lineage._store.execute("UPDATE events SET number = ? WHERE number = 2", [KEPT + 1])
        lineage.add_event("publish", "newest")
        assert len(lineage.events()) == 2  # the one that is KEPT behind made room
        with telling(lineage, to(receiver), log=log):
            receiver.wait_for(3)
        assert any(line.endswith(f"{KEPT - 2:,} events too old to be told") for line in log.lines)


def test_killed_at_twenty_moments_every_event_arrives_with_one_id(tmp_path, receiver, monkeypatch):
    """
    The process is killed at once after a commit, or a moment later: before, during or after the
    delivery. Some deliveries fail besides.
    """
    path, moments = tmp_path / "lineage.db", random.Random(0)
    processes = multiprocessing.get_context("forkserver")  # imports once
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    processes.set_forkserver_preload(["outbox_daemon"])

    def start():
        ours, theirs = processes.Pipe()
        process = processes.Process(target=outbox_daemon.work, args=(path, receiver.url, theirs))
        process.start()
        assert ours.poll(PATIENCE)
        ours.recv()
        return process, ours

    process, pipe = start()
    for number in range(20):
        receiver.answers = [500] if number % 4 == 3 else []
        for kind in ("publish", "quarantine"):
            pipe.send((kind, f"{kind} {number}"))
            assert pipe.poll(PATIENCE)
            pipe.recv()
        time.sleep(moments.choice((0.0, 0.002, 0.005, 0.01, 0.02)))
        process.kill()
        process.join(PATIENCE)
        process, pipe = start()
    receiver.wait_for(20)
    pipe.send(None)
    process.join(PATIENCE)
    with open_lineage(path, readonly=True) as lineage:
        events = lineage.events()
    bodies = {body["id"]: body for body in receiver.bodies}
    told = [body for body in bodies.values() if body["event"] == "publish"]
    assert {body["id"]: body["text"] for body in told} == {
        event.id: f"publish: {event.message}" for event in events if event.kind == "publish"
    }
    assert [body["id"] for body in told] == [e.id for e in events if e.kind == "publish"]
    # Alone or with others, none is left out.
    assert set(told_ids(receiver)) == {event.id for event in events}


def quarantined(lineage, *numbers):
    with lineage.transaction():
        for n in numbers:
            lineage.add_event("quarantine", f"org/m{n}: NaN in layer {n}", model=f"org/m{n}")


def told_ids(receiver):
    """Every event that came, alone or with others."""
    for body in receiver.bodies:
        together = body["facts"].get("events")
        yield from [body["id"]] if together is None else [each["id"] for each in together]


def test_many_of_a_kind_are_told_as_one_and_hold_up_no_other(tmp_path, receiver):
    """The first at once, the next when their time has come or the daemon ends; here it ends."""
    with open_lineage(tmp_path / "lineage.db") as lineage:
        with telling(lineage, to(receiver)):
            quarantined(lineage, 0)
            receiver.wait_for(1)
            quarantined(lineage, *range(1, 500))
            lineage.add_event("publish", "m1 as us/m1", model="m1")
            receiver.wait_for(2)
            assert receiver.bodies[1]["text"] == "publish: m1 as us/m1"
        first, _, many = receiver.bodies
        ids = [event.id for event in lineage.events() if event.kind == "quarantine"]
    assert first["text"] == "quarantine: org/m0: NaN in layer 0"
    assert many["text"] == "quarantine: 499: 499  NaN in layer …: org/m1, org/m10, org/m100, …"
    assert many["facts"]["count"] == 499
    assert list(told_ids(receiver)) == [ids[0], receiver.bodies[1]["id"], *ids[1:]]


def test_a_digest_that_was_not_taken_is_told_again_with_its_id(tmp_path, receiver):
    """Whatever has come meanwhile: else nobody could tell that they are the same."""
    with open_lineage(tmp_path / "lineage.db") as lineage:
        asked = []

        def refuse_many(kind, text, facts):
            asked.append(facts["id"])
            if "count" in facts:
                raise OSError

        with telling(lineage, Target("chat", refuse_many, frozenset(KINDS))):
            quarantined(lineage, 0)
            deadline = time.monotonic() + PATIENCE
            while not asked and time.monotonic() < deadline:
                time.sleep(0.01)
            quarantined(lineage, 1, 2, 3)
        quarantined(lineage, 4)
        with telling(lineage, to(receiver)):
            receiver.wait_for(1)
        first, many = asked
        assert (receiver.bodies[0]["id"], receiver.bodies[0]["facts"]["count"]) == (many, 3)
        assert [first, *told_ids(receiver)] == [event.id for event in lineage.events()]
        assert len(receiver.bodies) == 2  # the fourth came meanwhile


def written(tmp_path, text):
    file = tmp_path / "config.yml"
    file.write_text(text)
    return file


def test_a_configuration_names_recipients_and_hides_their_settings(tmp_path, receiver):
    file = written(
        tmp_path,
        f"notify:\n  use:\n    webhook: {{url: '{receiver.url}'}}\n"
        f"    operations: {{notifier: webhook, url: '{receiver.url}/2', events: [gate_refused],"
        " template: '{model} at {time}'}\n",
    )
    config = load(file)
    told = {target.name: target for target in targets(config.notify)}
    assert told["operations"].kinds == {"gate_refused"}
    assert told["webhook"].kinds == set(KINDS) - {"gate_refused", "gate", "scores"}
    for shown in (to_yaml(config), repr(config), str(config.model_dump()), repr(config.notify)):
        assert TOKEN not in shown
    older = written(tmp_path, "notify: {events: [publish, warning]}\n")
    assert load(older).notify.events == ("publish", "hub_away", "budget")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{{webhook: {{url: 'ftp://{TOKEN}'}}}}", "notify.use.webhook: url must be an http or"),
        (f"{{webhook: {{ulr: 'http://{TOKEN}'}}}}", "notify.use.webhook: .*'ulr'"),
        (
            f"{{chat: {{url: 'http://{TOKEN}'}}}}",
            "no notifier 'chat'; installed: apprise, trackio, webhook",
        ),
        (
            f"{{webhook: {{url: '{TOKEN}', events: [publsh]}}}}",
            "events.0: must be 'publish'",
        ),
        (f"{{webhook: {{url: '{TOKEN}', template: '{{0}}'}}}}", "template: can hold {id}, "),
        (f"{{webhook: '{TOKEN}'}}", "notify.use.webhook: must be"),
        (
            f"{{apprise: {{url: '{TOKEN}'}}}}",
            "notify.use.apprise: url 1 is none that Apprise knows",
        ),
    ],
)
def test_mistakes_are_one_line_without_what_is_secret(tmp_path, text, said):
    file = written(tmp_path, f"notify: {{use: {text}}}\n")
    with pytest.raises(UsageError, match=said) as caught:
        targets(load(file).notify)
    assert TOKEN not in str(caught.value)
    assert TOKEN not in "".join(examine(file)[1])


def test_apprise_tells_its_services(receiver):
    address = receiver.url.replace("http://", "json://")
    tell = notifier("phone", {"url": [address]}, "apprise")
    tell("publish", "publish: m1", {"id": "12ab", "time": "2026-01-31T08:15:00Z"})
    [body] = receiver.bodies
    assert body["title"] == "kinship-daemon"
    assert body["message"] == "publish: m1\n2026-01-31T08:15:00Z, event 12ab"


def test_strangers_words_call_nobody():
    text = rendered("{kind}: {message}", kind="quarantine", message="a <!channel> b @everyone")
    assert "<!" not in text
    assert "@e" not in text


def test_a_test_event_says_who_took_it(tmp_path, receiver):
    use = f"a: {{notifier: webhook, url: '{receiver.url}'}}"
    file = written(tmp_path, f"notify: {{use: {{{use}}}}}\n")
    runner = CliRunner()
    good = runner.invoke(app, ["notify", "test", "--config", str(file)])
    assert (good.exit_code, good.output) == (0, "a: told\n")
    assert receiver.bodies[0]["event"] == "test"
    receiver.answers = [500]
    bad = runner.invoke(app, ["notify", "test", "--config", str(file)])
    assert bad.output == "a: not told: it answered 500\n"
    assert str(bad.exception) == "1 recipient of 1 could not be told"
    nobody = runner.invoke(app, ["notify", "test", "--config", str(written(tmp_path, "seed: 1\n"))])
    assert "notify.use names nobody" in str(nobody.exception)


def decided(lineage, number, generation, members):
    """A decision on members of (name, score, generation, parents)."""
    keys = ("name", "score", "generation", "parents")
    facts = [dict(zip(keys, member, strict=True)) for member in members]
    decision = {"merges": [], "top": [facts[-1]["name"]], "top_mean_kinship": 0.5}
    lineage.add_generation(
        Generation(number, generation, "topk-kinship", {}, 0, decision),
        {"generation": generation, "members": facts},
    )


def curves(lineage):
    """A founder generation, then a merge of two."""
    founders = [("demo/add", 0.5, 0, []), ("demo/sort", 0.25, 0, [])]
    decided(lineage, 3, 2, founders)
    decided(lineage, 4, 3, [*founders, ("m1", 0.625, 1, ["demo/add", "demo/sort"])])


def test_a_decision_tells_the_scores_that_are_new(tmp_path):
    with open_lineage(tmp_path / "lineage.db") as lineage:
        fill(lineage)
        [verdict] = [event for event in lineage.events() if event.kind == "gate"]
        curves(lineage)
        first, second = [event for event in lineage.events() if event.kind == "scores"]
    assert verdict.facts["passed"] is True
    assert verdict.facts["documents"] == 4
    assert [each["model"] for each in first.facts["models"]] == ["demo/add", "demo/sort"]
    assert second.facts["models"] == [
        {
            "model": "m1",
            "generation": 1,
            "score": 0.625,
            "stderr": None,
            "documents": None,
            "gain": 0.125,
            "kinship": 0.25,
        }
    ]
    assert (second.facts["best"], second.facts["after"], second.facts["kinship"]) == (0.625, 2, 0.5)


def drawn(folder):
    """What trackio has on the disk, in order."""
    with closing(sqlite3.connect(folder / "kinship-daemon.db")) as database:
        found = database.execute(
            "SELECT run_name, step, metrics FROM metrics ORDER BY id"
        ).fetchall()
    return [(run, step, json.loads(metrics)) for run, step, metrics in found]


def test_trackio_draws_curves_and_its_failures_are_told_again(tmp_path):
    pytest.importorskip("trackio", reason="NO TRACKIO: needs the extra `trackio`")
    folder, log = tmp_path / "curves", Log()
    folder.write_text("no folder: trackio cannot write")
    file = written(tmp_path, f"notify: {{use: {{trackio: {{name: home, folder: '{folder}'}}}}}}\n")
    [target] = targets(load(file).notify)
    assert target.kinds == {"scores", "gate"}
    with open_lineage(tmp_path / "lineage.db") as lineage:
        lineage.delivered(target.name)
        fill(lineage)
        with telling(lineage, target, log=log):
            deadline = time.monotonic() + PATIENCE
            while not log.lines and time.monotonic() < deadline:
                time.sleep(0.05)
            folder.unlink()
            curves(lineage)
            while lineage.delivered(target.name) < lineage.last_event():
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert "warning: notifier trackio: not told yet" in log.lines[0]
    found = drawn(folder)
    assert [step for _, step, _ in found] == list(range(len(found)))
    assert {run for run, _, _ in found} == {"home"}
    verdict, add, sort, generation, merged, last = [metrics for _, _, metrics in found]
    assert verdict["gate/passed"] == 1
    assert (add["score"], sort["score"], generation["generation/best"]) == (0.5, 0.25, 0.5)
    assert (merged["gain"], merged["kinship"], last["generation/best"]) == (0.125, 0.25, 0.625)


def test_trackio_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'kinship-daemon\[trackio\]'"):
        notifier("trackio", {"name": "home"})
