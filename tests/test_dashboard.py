"""The dashboard's server: pages and their twins, hostile names, passwords, speed, the report."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

import command
import large_home
from documented import leaves, tables
from kinship_daemon.activity import recorded, recording
from kinship_daemon.cli import app
from kinship_daemon.errors import BudgetReached, KinshipError, Transient, Unavailable, UsageError
from kinship_daemon.faults import _hub_fault
from kinship_daemon.home import Home
from kinship_daemon.report import LineReporter
from kinship_daemon.web.app import PAGES
from kinship_daemon.web.guard import POLICY
from kinship_daemon.web.metrics import METRICS
from kinship_daemon.web.serving import served
from kinship_storage.records import Candidate
from small_candidates import TIME
from small_lineage import finetune, merge, open_lineage, score

ROOT = Path(__file__).parent.parent
DOCUMENTED = (ROOT / "docs" / "dashboard.md").read_text()
# What a stranger may call a model, or a hub give as a reason.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</title></script><svg onload=alert(1)>",
    "\u202egnp.exe",
    "{{ 7 * 7 }}",
    "javascript:alert(1)",
    "x" * 10_000,
)


FEW = {"founders": 6, "generations": 2, "merges": 8, "candidates": 8}
MODEL = "model-1-2"  # published


@contextmanager
def showing(home, token=None, host="127.0.0.1"):
    """A client of a served home."""
    auth = None if token is None else ("anyone", token)
    with (
        served(Home(home), host, 0, token) as server,
        httpx.Client(base_url=server.url, auth=auth, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A home whose lists all have something in them."""
    home = tmp_path_factory.mktemp("family")
    large_home.make(home, **FEW)
    with open_lineage(home / "lineage.db") as lineage:
        key = lineage.submit("score", {"model": "a"}, MODEL).key
        lineage.start(key)
        lineage.wait(key, "no memory", None)
        lineage.spend("merges", f"{time.strftime('%Y-%m-%d', time.gmtime())}", 3)
        lineage.put(
            "settings_then", {"limits.merges_per_day": 100, "notify.use": {"w": {"url": "s3cret"}}}
        )
    with recording(LineReporter(io.StringIO()), home / "activity.json", {}) as report:
        report.event("publish", "one as kinship/one", model=MODEL)
    (home / "logs").mkdir()
    (home / "activity.json").rename(home / "logs" / "activity.json")
    return home


@pytest.fixture(scope="module")
def client(family):
    with showing(family) as opened:
        yield opened


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


ADDRESSES = [
    "now",
    "tree",
    "kinship",
    "evolution",
    "candidates?status=refused",
    f"model?id={MODEL}",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_twin_of_every_page_has_the_fields_that_are_documented(client, page):
    asked = {"model": f"?id={MODEL}"}.get(page.name, "")
    (section,) = re.findall(rf"^## /{page.name}\.json\n(.*?)(?=^## |\Z)", DOCUMENTED, re.M | re.S)
    known = {field for fields in tables(section).values() for field in fields}
    assert leaves(client.get(f"/{page.name}.json{asked}").json(), known) == known


@pytest.mark.parametrize("address", ADDRESSES)
def test_pages_load_nothing_from_elsewhere_and_hold_nothing_inline(client, address):
    answer = client.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    for tag, attributes in Page(answer.text).tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or "src" in attributes or attributes["type"] == "application/json"
        for name in ("src", "action"):
            assert not attributes.get(name, "").startswith(("http:", "https:", "//"))


def test_what_explain_says_stands_on_the_models_page(client):
    told = client.get(f"model?id={MODEL}").text
    for words in ("published", "the best two", f"kinship/{MODEL}", "slerp", "+0.0200"):
        assert words in told
    assert client.get("model?id=nobody").status_code == 404
    assert client.get("model.json?id=nobody").json()["error"].startswith("no model 'nobody'")


def test_candidates_are_filtered_sorted_and_paged(tmp_path):
    with open_lineage(tmp_path / "lineage.db") as lineage:
        for number in range(120):
            model = finetune(f"n{number:03}", status="seen", weights=None)
            lineage.add_model(model)
            lineage.add_candidate(Candidate(model.id, TIME, downloads=number, triaged=True))
    with showing(tmp_path) as client:

        def names(**asked):
            found = client.get("candidates.json", params=asked).json()
            return [row["model"] for row in found["rows"]], found["pages"], found["total"]

        first, pages, total = names()
        assert (first[0], len(first), pages, total) == ("demo/n119", 50, 3, 120)
        assert len(names(page=3)[0]) == 20
        assert names(order="model")[0][0] == "demo/n000"
        assert names(q="N00")[0] == [f"demo/n00{n}" for n in range(9, -1, -1)]
        assert names(q="%")[2] == 0
        assert names(order="likes; DROP TABLE models", page="-1", status="nobody")[2] == 120


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_only_text(tmp_path, name):
    large_home.make(tmp_path, **FEW)
    with open_lineage(tmp_path / "lineage.db") as lineage:
        lineage.add_model(finetune("x", repo=name))
        mine = merge(name, ("demo/founder-000", "demo/founder-001"), role=name, why=name)
        lineage.add_model(mine)
        lineage.add_scores([score(mine.weights, 1, 1, task=name)])
        lineage.move_model(name, "quarantine", reason=name, cause="settings", setting=name)
        lineage.add_model(finetune("far", status="refused", reason=name, cause="model"))
        lineage.add_candidate(Candidate("demo/far", TIME))
    addresses = [*ADDRESSES[:-1], f"candidates?status=refused&q={name[:50]}"]
    with showing(tmp_path) as client:
        texts = [client.get(address).text for address in addresses]
        texts.append(client.get("model", params={"id": name}).text)
        assert client.get("model.json", params={"id": name}).json()["id"] == name
        assert "7 * 7" in texts[-1] or "7 * 7" not in name
    out = tmp_path / "report.html"
    assert CliRunner().invoke(app, ["report", str(out), "--home", str(tmp_path)]).exit_code == 0
    for text in (*texts, out.read_text()):
        page = Page(text)
        assert not [tag for tag, _ in page.tags if tag in {"img", "iframe", "object", "embed"}]
        assert not [n for _, attributes in page.tags for n in attributes if n.startswith("on")]
        links = [a["href"] for tag, a in page.tags if tag == "a" and "href" in a]
        assert not [link for link in links if link.startswith("javascript")]
        assert "\u202e" not in text
        assert max(map(len, page.words)) < 200_000  # the style of the report


def test_nothing_is_written(family, client):
    before = (family / "lineage.db").read_bytes()
    for page in PAGES:
        client.get(f"/{page.name}?id={MODEL}")
    assert client.post("now").status_code == 405
    assert (family / "lineage.db").read_bytes() == before


def test_secrets_of_the_configuration_are_not_shown(client):
    for page in PAGES:
        assert "s3cret" not in client.get(f"/{page.name}.json?id={MODEL}").text


def test_it_asks_for_the_password_that_is_set(family):
    with showing(family, token="t\u00f6ken") as client:
        assert client.get("now").status_code == 200
        for given in ({}, {"Authorization": "Basic !"}, {"Authorization": "Bearer token"}):
            for address in ("now", "now.json", "metrics", "live", "static/app.js"):
                with httpx.Client(base_url=client.base_url) as stranger:
                    answer = stranger.get(address, headers=given)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Basic")
        bearer = {"Authorization": "Bearer t\u00f6ken".encode()}
        assert httpx.get(f"{client.base_url}now", headers=bearer).status_code == 200


def test_a_page_of_the_web_cannot_ask_under_a_name_of_its_own(client):
    assert client.get("now", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("now", headers={"Host": "localhost:1"}).status_code == 200


def test_it_says_that_it_has_no_password_where_others_may_look(family):
    with served(Home(family), "0.0.0.0", 0, None) as server:
        assert server.is_open
    with served(Home(family), "0.0.0.0", 0, "token") as server:
        assert not server.is_open
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}: Address already in use"):
            served(Home(family), "127.0.0.1", port, None).__enter__()


def test_a_change_is_told_within_seconds(tmp_path):
    large_home.make(tmp_path, **FEW)
    with (
        open_lineage(tmp_path / "lineage.db") as lineage,
        showing(tmp_path) as client,
        client.stream("GET", "live") as stream,
    ):
        threading.Timer(0.2, lineage.put, ("base", "demo/other")).start()
        began = time.monotonic()
        told = (line for line in stream.iter_lines() if line.startswith("event"))
        assert next(told) == "event: change"
        assert time.monotonic() - began < 15
        # How far a step is is told apart: three open pages ask for little while it goes on.
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "activity.json").write_text('{"step": null}')
        assert next(told) == "event: step"
        assert "Nothing runs" in client.get("step").text


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_at_once_and_quietly_also_under_an_open_page(family, tmp_path, sent):
    process = command.start(["dashboard", "--home", family, "--port", "0"], tmp_path)
    with process:
        url = process.stdout.readline().split(" at ")[1].split(";")[0]
        with httpx.stream("GET", f"{url}live", timeout=30) as stream:
            next(stream.iter_lines())
            began = time.monotonic()
            process.send_signal(sent)
            process.wait(20)
            assert time.monotonic() - began < 15
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""


def test_idle_and_slow_visitors_lose_their_places(family, monkeypatch, capfd):
    """However many there are, they take few of the daemon's file descriptors, and not for long."""
    monkeypatch.setattr("kinship_daemon.web.connections._SECONDS", 2.0)
    with showing(family) as client:
        address = client.base_url.host, client.base_url.port
        idle = [socket.create_connection(address) for _ in range(200)]
        for each in idle[:60]:
            with suppress(OSError):
                each.sendall(b"GET /now HTTP/1.1\r\nHost: localhost\r\n")  # and no more
        for garbage in (b"\x16\x03\x01", b"GET\r\n\r\n"):
            with suppress(OSError):
                idle[-1].sendall(garbage)
        statuses, deadline = [], time.monotonic() + 60
        while 200 not in statuses and time.monotonic() < deadline:
            try:
                statuses.append(client.get("now").status_code)
            except httpx.TransportError:
                time.sleep(0.2)
        assert statuses[-1] == 200
        for each in idle:
            each.close()
    assert capfd.readouterr() == ("", "")


def test_pages_asked_for_in_the_first_second_wait_for_what_they_import(tmp_path):
    """In a process of its own, for here everything is imported."""
    large_home.make(tmp_path, **FEW)
    asked = """
import sys, threading
from pathlib import Path
import httpx
from kinship_daemon.home import Home
from kinship_daemon.web.serving import served

with served(Home(Path(sys.argv[1])), "127.0.0.1", 0, None) as server:
    def get(page):
        print(page, httpx.get(server.url + page, timeout=300).status_code)
    threads = [threading.Thread(target=get, args=[page]) for page in sys.argv[2:]]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
    pages = ["evolution", "now", "model?id=model-1-2", "kinship", "evolution.json"]
    done = subprocess.run(
        [sys.executable, "-c", asked, tmp_path, *pages], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == sorted(f"{page} 200" for page in pages)


def test_metrics_are_read_by_prometheus_own_parser_and_documented(client):
    families = {
        family.name: family for family in text_string_to_metric_families(client.get("metrics").text)
    }
    assert {name.removesuffix("_total") for name in METRICS} == families.keys()
    assert families["kinship_up"].samples[0].value == 0
    models = {tuple(s.labels.values()): s.value for s in families["kinship_models"].samples}
    assert models["merge", "admitted"] == 14
    assert families["kinship_budget_spent"].samples
    for name in METRICS:
        assert f"`{name}`" in DOCUMENTED


def test_the_board_and_the_rules_ask_for_metrics_that_exist():
    for file in ("grafana.json", "alerts.yaml"):
        asked = set(re.findall(r"kinship_[a-z_]+", (ROOT / "deploy" / file).read_text()))
        assert asked
        assert asked <= METRICS.keys()


def test_faults_of_the_hub_are_counted_by_kind(tmp_path):
    log = tmp_path / "activity.json"
    with recording(LineReporter(io.StringIO()), log, {}) as report:
        for fault in ("away", "asked to wait", "away"):
            report.event("warning", "the hub does not answer", fault=fault)
    assert recorded(log)["faults"] == {"away": 2, "asked to wait": 1}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Transient("no answer"), "away"),
        (Transient("too many requests", 30.0), "asked to wait"),
        (Unavailable("org/a is listed, but not there"), "repo"),
        (KinshipError("401"), "refused"),
        (BudgetReached("limits.download_gb_per_day"), None),
    ],
)
def test_what_a_fault_of_the_hub_is(error, kind):
    assert _hub_fault(error) == kind


def test_the_report_is_one_file_that_needs_nothing_else(family, tmp_path):
    out = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", str(out), "--home", str(family)])
    assert done.exit_code == 0, done.output
    page = Page(out.read_text())
    assert not [a for tag, a in page.tags if tag in {"link", "script"} and a.get("src")]
    ids = {a["id"] for _, a in page.tags if "id" in a}
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert MODEL in "".join(page.words)


def test_a_thousand_models_and_ten_thousand_candidates_are_quick(tmp_path):
    """Seconds of this thread, which others on the machine do not stretch."""
    from kinship_daemon.web.app import rendered
    from kinship_daemon.web.kinships import Kinships
    from kinship_daemon.web.view import View
    from kinship_daemon.web.words import ServerLinks, environment

    large_home.make(tmp_path)
    home, templates = Home(tmp_path), environment()
    kinships = Kinships(home)
    kinships.prepare()
    for page in PAGES:
        seconds = []
        for _ in range(3):
            began = time.thread_time()
            with View.of(home, kinships) as view:
                facts = page.facts(view, {"id": "model-40-3"})
            text = rendered(templates, page, facts, ServerLinks())
            seconds.append(time.thread_time() - began)
        assert min(seconds) < 0.3, page.name
        assert len(text.encode()) < 1e6, page.name
        assert len(json.dumps(facts)) < 1e6, page.name


def test_what_a_daemon_does_is_there_for_others_to_read(tmp_path):
    file = tmp_path / "activity.json"
    with recording(LineReporter(io.StringIO()), file, {"pid": 7}) as report:
        with report.progress("score of m1", 10, "documents") as advance:
            advance(4, label="score of m1, 2 of 6")
            report.event("warning", "hub\naway", model="m1")
            deadline = time.monotonic() + 60
            while (recorded(file).get("step") or {}).get("done") != 4:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        found = recorded(file)
        assert (found["pid"], found["step"]["total"]) == (7, 10)
        assert found["step"]["label"] == "score of m1, 2 of 6"
        assert found["events"][-1]["message"] == "hub\\naway"
    with recording(LineReporter(io.StringIO()), file, {}):
        pass
    after = recorded(file)
    assert (after["step"], after["counts"]) == (None, {})
    assert [event["kind"] for event in after["events"]] == ["warning"]
    file.write_text("[")
    assert recorded(file) == {}


def test_commands_that_do_not_serve_import_no_web_server(tmp_path):
    servers = "{'starlette', 'uvicorn', 'jinja2', 'prometheus_client'}"
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, kinship_daemon.cli as c; c.app(['bases'], standalone_mode=False);"
            f" print(sorted({servers} & set(sys.modules)))",
        ],
        env=command.environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
