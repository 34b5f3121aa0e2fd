"""
A receiver of the Hub's webhooks, which only hurries the next poll.

What a message says is not trusted: whoever knows the secret can make us look at the hub sooner,
once in a while, and nothing else. It speaks plain HTTP, so beyond one machine it belongs behind a
proxy that speaks TLS.
"""

from __future__ import annotations

import hmac
import io
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from kinship_daemon.config import Config
from kinship_daemon.errors import UsageError
from kinship_daemon.foreign.json_text import parse_json
from kinship_daemon.foreign.limits import Limits, Malformed

__all__ = ["PATH", "SECRET", "Webhook", "webhook_secret"]

PATH = "/webhook"
SECRET = "KINSHIP_WEBHOOK_SECRET"  # noqa: S105 - the variable's name

_MAX_BYTES = 1_000_000  # the Hub's messages have a few thousand
_LIMITS = Limits(nbytes=_MAX_BYTES)
_REQUEST_SECONDS = 5.0  # from the first byte to the last, however slowly they come
_AT_ONCE = 8


def webhook_secret(config: Config) -> str | None:
    """
    What the Hub must send with its messages; None where no webhook is wanted.

    Raises:
        UsageError: watch.webhook_port is set, the secret is not.
    """
    if config.watch.webhook_port is None:
        return None
    secret = os.environ.get(SECRET, "")
    if not secret:
        raise UsageError(
            f"watch.webhook_port is {config.watch.webhook_port}, but {SECRET} is not set; set it "
            "to the secret that the Hub's webhook was given"
        )
    return secret


class Webhook:
    """
    Listens while inside `with`; every message with our secret asks for `hurry`.

    Attributes:
        port: Where it listens; of its own choice if 0 was asked for.
    """

    def __init__(
        self,
        host: str,
        port: int,
        secret: str,
        hurry: Callable[[], None],
        *,
        every_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Get ready to listen.

        Args:
            host: An address of this machine.
            port: 0 for any that is free.
            secret: What `X-Webhook-Secret` must say.
            hurry: Called from a thread of ours, at most once per `every_seconds`.
            every_seconds: Messages that follow a hurry sooner make one more at the end of them.
            clock: Seconds.
        """
        self.port = port
        self._host = host
        self._secret = secret.encode()
        self._pace = _Pace(hurry, every_seconds, clock)
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        """
        Start to listen.

        Raises:
            UsageError: The address cannot be listened at.
        """
        try:
            server = _Server(self._host, self.port, self._secret, self._pace.ask)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"the webhook cannot listen at {self._host}:{self.port}: {reason}; "
                "set another watch.webhook_port or watch.webhook_host"
            ) from None
        self._server = server
        self.port = server.server_port
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._pace.close()


class _Pace:
    """At most one call per `seconds`; those asked for in between are one, at their end."""

    def __init__(
        self, call: Callable[[], None], seconds: float, clock: Callable[[], float]
    ) -> None:
        self._call = call
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._last: float | None = None
        self._waiting: threading.Timer | None = None
        self._closed = False

    def ask(self) -> None:
        with self._lock:
            left = 0.0 if self._last is None else self._last + self._seconds - self._clock()
            if self._closed or (left > 0 and self._waiting is not None):
                return
            if left > 0:
                self._waiting = threading.Timer(left, self._go)
                self._waiting.daemon = True
                self._waiting.start()
                return
            self._now()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._waiting is not None:
                self._waiting.cancel()

    def _go(self) -> None:
        with self._lock:
            # Another message may have been quicker than this timer, which is then not ours.
            if not self._closed and self._waiting is threading.current_thread():
                self._now()

    def _now(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._last = self._clock()
        self._call()


class _Server(ThreadingHTTPServer):
    """Answers a few at a time; who comes on top of them is sent away."""

    daemon_threads = True

    def __init__(self, host: str, port: int, secret: bytes, ask: Callable[[], None]) -> None:
        self.secret = secret
        self.ask = ask
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the DNS for our name and may wait for it.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # str and int for our two families

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            _send_away(request)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is no event
            super().handle_error(request, client_address)


def _send_away(request: socket.socket) -> None:
    request.settimeout(_REQUEST_SECONDS)
    try:
        request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    except OSError:
        return  # it is gone already


class _InTime(io.RawIOBase):
    """What a client sends until its time is up; a byte now and then does not prolong it."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    """One message, one answer without a body."""

    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_InTime(self.connection, _REQUEST_SECONDS))

    def do_POST(self) -> None:
        status = self._read()
        if status is HTTPStatus.ACCEPTED:
            self.server.ask()
        self._answer(status)

    def _read(self) -> HTTPStatus:
        if self.path != PATH:
            return HTTPStatus.NOT_FOUND
        length = self.headers.get("Content-Length")
        if length is None or "Transfer-Encoding" in self.headers:
            return HTTPStatus.LENGTH_REQUIRED
        if not (length.isascii() and length.isdecimal()):
            return HTTPStatus.BAD_REQUEST
        # By its digits first: Python refuses to read a number of thousands of them.
        if len(length) > 12 or int(length) > _MAX_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        # Read whoever sent it: a connection closed over unread bytes can lose the answer.
        body = self.rfile.read(int(length))
        if not self._is_ours():
            return HTTPStatus.UNAUTHORIZED
        return HTTPStatus.ACCEPTED if _is_json(body) else HTTPStatus.BAD_REQUEST

    def _is_ours(self) -> bool:
        # http.server reads headers as Latin-1, so this gives back the bytes that were sent.
        given = self.headers.get("X-Webhook-Secret", "").encode("latin-1", "replace")
        return hmac.compare_digest(given, self.server.secret)

    def _answer(self, status: int) -> None:
        self.connection.settimeout(_REQUEST_SECONDS)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_error(self, code: int, *_: Any, **__: Any) -> None:
        """Answer what is no POST, or hardly HTTP, without repeating it."""
        known = code != HTTPStatus.NOT_IMPLEMENTED
        self._answer(code if known else HTTPStatus.METHOD_NOT_ALLOWED)

    def version_string(self) -> str:
        return "kinship-daemon"

    def log_message(self, *_: Any) -> None:
        """Nothing: what strangers send belongs in no log."""


def _is_json(body: bytes) -> bool:
    try:
        parse_json(body, _LIMITS)
    except Malformed:
        return False
    return True
