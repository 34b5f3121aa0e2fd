"""The webhook: who knows the secret may hurry a poll, once in a while; nobody can do more."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import WebhookPayload

from kinship_daemon.errors import UsageError
from kinship_daemon.startup import webhook_secret
from kinship_daemon.web import connections
from kinship_daemon.web.serving import hooked
from kinship_daemon.web.webhook import Webhook

SECRET = "a long sécret of ours"
OURS = {"X-Webhook-Secret": SECRET.encode()}
# As the Hub sends it: the commit's key is headSha, which huggingface_hub's own class leaves out.
PAYLOAD = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {
        "type": "model",
        "name": "someone/mistral-7b-tuned",
        "id": "621ffdc036468d709f17434d",
        "private": False,
        "url": {
            "web": "https://huggingface.co/someone/mistral-7b-tuned",
            "api": "https://huggingface.co/api/models/someone/mistral-7b-tuned",
        },
        "owner": {"id": "628b753283ef59b5be89e937"},
        "headSha": "1" * 40,
        "tags": ["base_model:mistralai/Mistral-7B-v0.1"],
    },
    "webhook": {"id": "6390e855e30d9209411de93b", "version": 3},
    "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "0" * 40, "newSha": "1" * 40}],
}


BODY = json.dumps(PAYLOAD)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Open:
    """A webhook that listens, and how often it hurried."""

    def __init__(self, server, clock):
        self.port, self.clock = server.port, clock
        self.url = f"http://127.0.0.1:{self.port}/webhook"
        self.hurried = []

    def post(self, content=BODY, headers=OURS):
        return httpx.post(self.url, content=content, headers=headers).status_code

    @contextmanager
    def connection(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as raw:
            yield raw


@contextmanager
def listening(**options):
    clock, times = Clock(), []
    options = {"clock": clock, **options}
    hurry = options.pop("hurry", lambda: times.append(time.monotonic()))
    with hooked(Webhook(SECRET, hurry, **options), "127.0.0.1", 0) as server:
        opened = Open(server, clock)
        opened.hurried = times
        yield opened


@pytest.fixture
def webhook():
    with listening() as opened:
        yield opened


def answer(raw):
    """The status of a raw connection's answer; None if it was closed without one."""
    line = raw.makefile("rb").readline().split()
    return int(line[1]) if line else None


def test_a_message_of_the_hub_hurries_the_next_poll(webhook):
    assert WebhookPayload.model_validate(PAYLOAD).repo.head_sha is None
    answered = httpx.post(webhook.url, json=PAYLOAD, headers=OURS)
    assert (answered.status_code, answered.content) == (202, b"")
    assert len(webhook.hurried) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Webhook-Secret": ""},
        {"X-Webhook-Secret": SECRET[:-1].encode()},
        {"X-Webhook-Secret": SECRET.encode() + b"x"},
        {"X-Webhook-Secret": SECRET.encode("latin-1")},
        {"Authorization": f"Bearer {SECRET}".encode()},
    ],
)
def test_strangers_are_refused_and_nothing_of_them_is_told(webhook, capfd, headers):
    assert webhook.post(headers=headers) == 401
    assert webhook.post("no JSON", headers) == 401
    assert webhook.hurried == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 100_000])
def test_what_is_no_json_is_refused(webhook, capfd, body):
    assert webhook.post(body) == 400
    assert webhook.hurried == []
    assert capfd.readouterr() == ("", "")


def test_other_paths_and_methods_are_refused(webhook):
    for path in ("/", "/now", "/../webhook"):
        with webhook.connection() as raw:
            secret = b"X-Webhook-Secret: " + SECRET.encode()
            head = (
                b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n" + secret
            )
            raw.sendall(head + b"\r\n\r\n{}")
            assert answer(raw) == 404
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"):
        assert httpx.request(method, webhook.url, headers=OURS).status_code == 405
    assert webhook.hurried == []


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("", 400),
        ("Content-Length: 1000001\r\n", 413),
        ("Content-Length: " + "9" * 5000 + "\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length: two\r\n", 400),
        ("Content-Length: ²\r\n", 400),
    ],
)
def test_a_body_says_how_long_it_is_and_is_short(webhook, length, status):
    with webhook.connection() as raw:
        secret = f"X-Webhook-Secret: {SECRET}\r\n"
        raw.sendall(f"POST /webhook HTTP/1.1\r\nHost: x\r\n{length}{secret}\r\n".encode())
        assert answer(raw) == status
    assert webhook.hurried == []


def test_a_body_that_does_not_say_is_read_no_further_than_others(webhook):
    assert webhook.post(iter([b"{", b"}"])) == 202
    assert webhook.post(iter([b'"' + b"x" * 999_999, b'"'])) == 413
    assert len(webhook.hurried) == 1


def test_a_large_body_is_not_read(webhook):
    assert webhook.post(b'"' + b"x" * 999_998 + b'"') == 202
    with webhook.connection() as raw:
        raw.sendall(b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert answer(raw) == 413


@pytest.mark.parametrize(
    "sent", [b"\r\n", b"GET\r\n", b"\x16\x03\x01\x02\x00\r\n", b"POST /webhook HTTP/9.9\r\n\r\n"]
)
def test_what_is_hardly_http_is_survived(webhook, capfd, sent):
    with webhook.connection() as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        raw.makefile("rb").read()
    assert webhook.post() == 202
    assert capfd.readouterr() == ("", "")


def test_many_messages_are_one_poll_and_one_more_when_its_time_has_come(webhook):
    assert [webhook.post() for _ in range(20)] == [202] * 20
    assert len(webhook.hurried) == 1
    webhook.clock.now += 59.9
    webhook.post()
    assert len(webhook.hurried) == 1
    webhook.clock.now += 0.1
    webhook.post()
    assert len(webhook.hurried) == 2
    webhook.post()
    assert len(webhook.hurried) == 2


def test_what_came_too_soon_after_a_poll_is_not_forgotten():
    with listening(every_seconds=0.5, clock=time.monotonic) as webhook:
        for _ in range(3):
            webhook.post()
        time.sleep(1.5)
    assert len(webhook.hurried) == 2
    assert 0.4 < webhook.hurried[1] - webhook.hurried[0] < 1.2


def test_nothing_is_hurried_after_the_end():
    with listening(every_seconds=1.0, clock=time.monotonic) as webhook:
        webhook.post()
        webhook.post()
    time.sleep(1.2)
    assert len(webhook.hurried) == 1
    with pytest.raises(httpx.ConnectError):
        webhook.post()


def test_slow_clients_lose_their_places(monkeypatch):
    monkeypatch.setattr(connections, "_AT_ONCE", 8)
    monkeypatch.setattr(connections, "_SECONDS", 1.0)
    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.1)
    with listening() as webhook:
        slow = [socket.create_connection(("127.0.0.1", webhook.port)) for _ in range(8)]
        stop = threading.Event()

        def drip():
            while not stop.wait(0.1):
                for raw in slow:
                    with suppress(OSError):
                        raw.sendall(b"X")

        dripping = threading.Thread(target=drip)
        dripping.start()
        answered, deadline = None, time.monotonic() + 60
        while answered != 202 and time.monotonic() < deadline:
            with suppress(httpx.TransportError):  # sent away, while the places are taken
                answered = webhook.post()
        # A byte now and then does not keep a place for long.
        assert answered == 202
        stop.set()
        dripping.join()
        for raw in slow:
            raw.close()


def test_an_idle_client_does_not_delay_the_end():
    with listening() as webhook:
        idle = socket.create_connection(("127.0.0.1", webhook.port))
        half = socket.create_connection(("127.0.0.1", webhook.port))
        half.sendall(b"POST /webhook HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    idle.close()
    half.close()


def test_a_bug_in_what_it_calls_is_not_hidden(caplog):
    def broken():
        raise ZeroDivisionError("a bug")

    with listening(hurry=broken) as webhook:
        assert webhook.post() == 500
    assert "ZeroDivisionError: a bug" in caplog.text


def test_an_address_that_cannot_be_had_is_one_clear_line(webhook):
    for host, port, said in (
        ("127.0.0.1", webhook.port, "Address already in use"),
        ("127.0.0.1", 70_000, "port must be 0-65535"),
        ("192.0.2.1", 0, "Cannot assign requested address"),
    ):
        opening = hooked(Webhook(SECRET, list), host, port)
        with pytest.raises(UsageError) as caught, opening:
            pass
        message = str(caught.value)
        assert message.startswith(f"the webhook cannot listen at {host}:{port}: ")
        assert said in message
        assert "\n" not in message


def test_a_webhook_without_a_secret_is_refused(monkeypatch):
    def config(port):
        return SimpleNamespace(watch=SimpleNamespace(webhook_port=port))

    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("KINSHIP_WEBHOOK_SECRET", raising=False)
        else:
            monkeypatch.setenv("KINSHIP_WEBHOOK_SECRET", value)
        assert webhook_secret(config(None)) is None
        with pytest.raises(UsageError, match="webhook_port is 8080, but KINSHIP_WEBHOOK_SECRET"):
            webhook_secret(config(8080))
    monkeypatch.setenv("KINSHIP_WEBHOOK_SECRET", "s")
    assert webhook_secret(config(8080)) == "s"
