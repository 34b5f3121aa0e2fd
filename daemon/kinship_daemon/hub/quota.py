"""What a server allows per window: noted from its answers, kept by not asking."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

from kinship_daemon.errors import Transient

__all__ = ["PATIENCE_SECONDS", "Quota", "asked_wait", "origin"]

PATIENCE_SECONDS = 5.0  # a wait this short is waited for; a longer one is the loop's business
_LONGEST_SECONDS = 3600.0  # nonsense in a header must not silence us for ever
_BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
# As in `"api";r=0;t=55`: the kind of call, how many are left, the seconds until there are more.
_RATE = re.compile(r'"(\w{1,32})"\s*;\s*r\s*=\s*(\d{1,9})\s*;\s*t\s*=\s*(\d{1,9})')


class Quota:
    """Until when one server wants no calls of a kind (api, resolvers, pages)."""

    def __init__(self, server: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.server = server
        self._origin = origin(server)
        self._monotonic = monotonic
        self._closed: dict[str, float] = {}

    def left(self, url: str) -> float:
        """Seconds until this server wants such a call again; 0 if it does at once."""
        if origin(url) != self._origin:
            return 0.0
        return max(self._closed.get(_kind(url), 0.0) - self._monotonic(), 0.0)

    def check(self, url: str) -> float:
        """
        Seconds to wait before a call, a few at most.

        Raises:
            Transient: it takes longer.
        """
        left = self.left(url)
        if left > PATIENCE_SECONDS:
            raise Transient(
                f"{self.server} takes no more {_kind(url)} calls for {left:.0f} s", left
            )
        return left

    def note(self, url: str, status: int, headers: Mapping[str, str]) -> None:
        """
        Keep what an answer says of the calls to come.

        Raises:
            Transient: it refuses this one, for longer than is waited for.
        """
        ours = origin(url) == self._origin
        if ours:
            for kind, seconds in _used_up(headers).items():
                self._close(kind, seconds)
        wait = asked_wait(headers) if status in _BUSY else None
        if wait is None:
            return
        if ours:
            self._close(_kind(url), wait)
        if wait > PATIENCE_SECONDS:
            raise Transient(
                f"{url.partition('?')[0]} answered {status}: not before {wait:.0f} s have passed",
                wait,
            )

    def _close(self, kind: str, seconds: float) -> None:
        self._closed[kind] = self._monotonic() + min(seconds, _LONGEST_SECONDS)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a refusal asks us to wait; None if it does not say."""
    waits = list(_used_up(headers).values())
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        waits.append(float(text))
    elif text:
        waits += _until(text, headers.get("date", ""))
    return min(max(waits), _LONGEST_SECONDS) if waits else None


def _used_up(headers: Mapping[str, str]) -> dict[str, float]:
    """Kinds of which nothing is left, and for how many seconds."""
    found = _RATE.findall(headers.get("ratelimit", ""))
    return {kind: float(seconds) for kind, rest, seconds in found if int(rest) == 0}


def _until(moment: str, now: str) -> list[float]:
    """Seconds between two HTTP dates, by the server's own clock."""
    try:
        seconds = (parsedate_to_datetime(moment) - parsedate_to_datetime(now)).total_seconds()
    except (TypeError, ValueError):
        return []
    return [max(seconds, 0.0)]


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what a token may not leave."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "", "", -1  # no URL at all, so nobody's
    return parts.scheme, parts.hostname or "", port or {"http": 80, "https": 443}.get(parts.scheme)


def _kind(url: str) -> str:
    """Which of the Hub's counts a call goes to."""
    path = urlsplit(url).path
    if path.startswith("/api/"):
        return "api"
    return "resolvers" if "/resolve/" in path else "pages"
