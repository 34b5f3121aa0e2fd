"""
A receiver of the Hub's webhooks, which only hurries the next poll.

What a message says is not trusted: whoever knows the secret can make us look at the hub sooner,
once in a while, and nothing else. It speaks plain HTTP, so beyond one machine it belongs behind a
proxy that speaks TLS. How many may come at a time, and how slowly, is `connections.Bounded`'s.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from kinship_daemon.foreign.json_text import parse_json
from kinship_daemon.foreign.limits import Limits, Malformed

__all__ = ["PATH", "Webhook"]

PATH = "/webhook"

_MAX_BYTES = 1_000_000  # the Hub's messages have a few thousand
_LIMITS = Limits(nbytes=_MAX_BYTES)


class Webhook:
    """Every message with our secret asks for `hurry`."""

    def __init__(
        self,
        secret: str,
        hurry: Callable[[], None],
        *,
        every_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            secret: What `X-Webhook-Secret` must say.
            hurry: Called from a thread of ours, at most once per `every_seconds`.
            every_seconds: Messages that follow a hurry sooner make one more at the end of them.
            clock: Seconds.
        """
        self._secret = secret.encode()
        self._pace = _Pace(hurry, every_seconds, clock)
        self.app = Starlette(routes=[Route(PATH, self._take, methods=["POST"])])

    def close(self) -> None:
        """Nothing is hurried any more."""
        self._pace.close()

    async def _take(self, request: Request) -> Response:
        # Read whoever sent it: a connection closed over unread bytes can lose the answer.
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody hears
        if body is None:
            return Response(status_code=413)
        if not self._is_ours(request):
            return Response(status_code=401)
        if not _is_json(body):
            return Response(status_code=400)
        self._pace.ask()
        return Response(status_code=202)

    def _is_ours(self, request: Request) -> bool:
        # Headers are read as Latin-1, so this gives back the bytes that were sent.
        given = request.headers.get("X-Webhook-Secret", "").encode("latin-1", "replace")
        return hmac.compare_digest(given, self._secret)


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


async def _body(request: Request) -> bytes | None:
    """None where it is too long, which is seen before it is read if it says so."""
    said = request.headers.get("Content-Length", "")
    if said.isdecimal() and float(said) > _MAX_BYTES:
        return None
    read = bytearray()
    async for part in request.stream():
        read += part
        if len(read) > _MAX_BYTES:
            return None
    return bytes(read)


def _is_json(body: bytes) -> bool:
    try:
        parse_json(body, _LIMITS)
    except Malformed:
        return False
    return True
