"""Calls that hang, wait and are refused: none of them outlives a stop, a deadline or a quota."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial

import huggingface_hub
import pytest

from hub_server import TOKEN
from kinship_daemon.errors import Stopped, Transient
from kinship_daemon.hub.calls import Calls
from kinship_daemon.hub.client import ApiHub
from kinship_daemon.hub.quota import Quota, asked_wait

HUB = "http://hub.test"
API, RESOLVE = f"{HUB}/api/models", f"{HUB}/org/a/resolve/main/x"
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 512,
}
SOON = 4  # seconds in which a stop must be through, on a busy machine; the daemon has as many


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture
def hub(server, stop):
    return ApiHub(server.url, token=TOKEN, stop=stop)


def merge(tmp_path):
    place = tmp_path / "merge"
    place.mkdir()
    for number in range(3):
        (place / f"part{number}.safetensors").write_bytes(bytes([number]) * 100_000)
    (place / "config.json").write_text("{}")
    return place


@contextmanager
def stopped(stop, after: float = 0.4):
    """A stop is asked for while the block runs, and it ends by it at once."""
    asked = []

    def ask() -> None:
        asked.append(time.monotonic())
        stop.set()

    timer = threading.Timer(after, ask)
    timer.start()
    with pytest.raises(Stopped):
        yield
    assert asked, "it ended before the stop"
    assert time.monotonic() - asked[0] < SOON
    timer.join()


def test_a_stop_ends_a_stalled_listing(server, hub, stop):
    server.fault("/api/models", "stall")
    with stopped(stop):
        list(hub.descendants("org/base"))


def test_a_stop_ends_a_stalled_download_and_what_came_stays(server, hub, stop, tmp_path):
    sha = server.add("org/a", MODEL)
    repo = hub.repo("org/a")
    server.fault("/lfs/.*", "stall-body")
    with stopped(stop):
        hub.fetch(repo, tmp_path)
    part = tmp_path / "org--a" / f".{sha}.part" / ".model.safetensors.part"
    assert part.stat().st_size > 0
    stop.clear()
    place = hub.fetch(repo, tmp_path)
    assert (place / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    ranges = [request.headers.get("range") for request in server.asked("GET", "/lfs/.*", "storage")]
    assert ranges[1] is not None


@pytest.mark.parametrize("action", ["stall", "stall-body", "trickle"])
def test_a_stop_ends_a_stalled_range_read(server, hub, stop, action):
    server.add("org/a", MODEL)
    parts = hub.ranges(hub.repo("org/a"))
    server.fault("/lfs/.*", action, n=-1)
    with stopped(stop):
        parts.read("model.safetensors", [(0, 60_000)])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("POST", ".*/preupload/main"),
        ("POST", ".*/objects/batch"),
        ("PUT", "/upload/.*"),
        ("POST", ".*/commit/main"),
    ],
)
def test_a_stop_ends_a_stalled_publication(server, hub, stop, tmp_path, method, path):
    server.fault(path, "stall", method=method)
    with stopped(stop, after=0.8):
        hub.publish("tester/merge", merge(tmp_path), "a merge", private=True)


@pytest.mark.parametrize("status", [429, 503])
def test_a_stop_ends_the_clients_own_sleep_and_nothing_is_sent_after_it(
    server, hub, stop, tmp_path, status
):
    server.add("tester/merge", {}, private=True)
    soon = {"Retry-After": "2"}
    server.fault(".*/preupload/main", method="POST", status=status, n=-1, headers=soon)
    with stopped(stop, after=0.8):
        hub.publish("tester/merge", merge(tmp_path), "a merge", private=True)
    sent = len(server.log)
    time.sleep(3.2)
    assert len(server.log) == sent


def test_a_wait_of_minutes_inside_a_commit_is_not_slept(server, hub, tmp_path):
    limited = {"RateLimit": '"api";r=0;t=300'}
    server.fault(".*/preupload/main", method="POST", status=429, n=-1, headers=limited)
    begin = time.monotonic()
    with pytest.raises(Transient) as refused:
        hub.publish("tester/merge", merge(tmp_path), "a merge", private=True)
    assert time.monotonic() - begin < SOON
    assert refused.value.retry_seconds == pytest.approx(300, abs=3)
    assert len(server.asked("POST", ".*/preupload/main")) == 1


def test_a_stop_ends_the_wait_between_tries(server, hub, stop):
    server.fault("/api/models/org/a", status=503, n=-1, headers={"Retry-After": "5"})
    with stopped(stop):
        hub.repo("org/a")


def test_nothing_is_sent_once_the_stop_is_there(server, hub, stop):
    stop.set()
    for call in (hub.about, partial(hub.repo, "org/a"), partial(next, hub.descendants("org/b"))):
        with pytest.raises(Stopped):
            call()
    assert server.log == []


def test_a_used_up_quota_is_not_asked_again(server, hub):
    server.add("org/a", MODEL)
    server.quota(api=2)
    repo = hub.repo("org/a")
    hub.about()  # a good answer, and the last one
    for _ in range(3):
        with pytest.raises(Transient, match="no more api calls for") as refused:
            hub.repo("org/a")
        assert 290 < refused.value.retry_seconds <= 300
    assert len(server.log) == 2
    assert hub.ranges(repo).read("config.json", [(0, 1)]) == [b"{"]  # another count


def test_a_refusal_of_minutes_is_passed_on_at_once_and_kept_to(server, hub):
    server.fault("/api/models/org/a", status=429, headers={"Retry-After": "120"})
    for _ in range(3):
        with pytest.raises(Transient) as refused:
            hub.repo("org/a")
        assert refused.value.retry_seconds == pytest.approx(120, abs=3)
    assert len(server.log) == 1


def test_a_short_wait_is_waited_for(server, hub):
    server.add("org/a", MODEL)
    server.fault("/api/models/org/a", status=429, headers={"RateLimit": '"api";r=0;t=1'})
    begin = time.monotonic()
    assert hub.repo("org/a").id == "org/a"
    assert 0.9 < time.monotonic() - begin < 10


def test_three_tries_are_made_and_no_more(server, hub):
    server.add("org/a", MODEL)
    server.fault("/api/models/org/a", "reset", n=2)
    assert hub.repo("org/a").id == "org/a"
    server.fault("/api/models/org/a", status=500, n=-1)
    with pytest.raises(Transient):
        hub.repo("org/a")
    assert len(server.log) == 6


def test_a_call_ends_at_its_deadline():
    calls = Calls(Quota(HUB))
    begin = time.monotonic()
    with pytest.raises(Transient, match="it takes too long"):
        calls.retried("it", partial(time.sleep, 9), seconds=0.3)
    assert time.monotonic() - begin < 5


def test_an_error_in_a_thread_is_raised_where_it_is_waited_for():
    calls = Calls(Quota(HUB))
    with pytest.raises(ZeroDivisionError):
        calls.once("it", lambda: 1 // 0)
    assert calls.once("it", lambda: 7) == 7


def test_a_quota_opens_again_when_its_time_is_over():
    now = 1000.0
    quota = Quota(HUB, lambda: now)
    quota.note(API, 200, {"ratelimit": '"api";r=0;t=60'})
    with pytest.raises(Transient):
        quota.check(API)
    assert quota.check(RESOLVE) == 0
    assert quota.check("http://cdn.test/api/x") == 0
    now += 57
    assert quota.check(API) == pytest.approx(3)
    now += 4
    assert quota.check(API) == 0
    quota.note(API, 200, {"ratelimit": '"api";r=1;t=60'})
    assert quota.check(API) == 0


def test_what_a_storage_server_asks_for_is_not_held_against_the_hub():
    quota = Quota(HUB)
    with pytest.raises(Transient):
        quota.note("http://cdn.test/lfs/x", 503, {"retry-after": "60"})
    assert quota.check(API) == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"ratelimit": '"api";r=0;t=9', "retry-after": "7"}, 9),
        ({"ratelimit": '"api"; r=3; t=9'}, None),
        ({"ratelimit": "nonsense", "retry-after": "soon"}, None),
        ({"retry-after": "999999999"}, 3600),
        ({"retry-after": "-5"}, None),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:30 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            30,
        ),
    ],
)
def test_the_wait_that_an_answer_asks_for(headers, seconds):
    assert asked_wait(headers) == seconds


SCRIPT = """
import sys, threading
from pathlib import Path
from kinship_daemon.hub.client import ApiHub
from kinship_daemon.errors import Stopped
stop = threading.Event() if sys.argv[3] == "stop" else None
hub = ApiHub(sys.argv[1], token="hf_tokenoftests", stop=stop)
if stop:
    threading.Timer(1.0, stop.set).start()
print("begun", flush=True)
try:
    hub.publish("tester/merge", Path(sys.argv[2]), "a merge", True)
except Stopped:
    print("stopped")
"""


@pytest.mark.parametrize("how", ["stop", "ctrl-c"])
def test_a_process_ends_though_its_upload_hangs(server, tmp_path, monkeypatch, how):
    server.fault("/upload/.*", "stall", method="PUT", n=-1)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    command = [sys.executable, "-c", SCRIPT, server.url, str(merge(tmp_path)), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        while not server.asked("PUT", "/upload/.*", "storage"):
            time.sleep(0.05)
        begin = time.monotonic()
        if how == "ctrl-c":
            process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
        took = time.monotonic() - begin
    if how == "stop":
        assert (process.returncode, out) == (0, b"stopped\n")
    else:
        assert b"KeyboardInterrupt" in error
    assert took < 15
