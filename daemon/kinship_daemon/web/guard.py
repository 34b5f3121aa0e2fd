"""Stands before the app: the password, names of this host, and headers that let nothing in."""

from __future__ import annotations

import base64
import binascii
import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["POLICY", "guarded"]

# Nothing but our own files, nothing inline, nothing from elsewhere.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Server": "kinship-daemon",
}
_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class guarded:  # noqa: N801 - an ASGI app is called like a function
    """An app whose every answer has our headers, and which answers only who may ask."""

    def __init__(self, app: ASGIApp, *, token: str | None, local: bool) -> None:
        """
        Args:
            token: Asked for as the password of HTTP's basic scheme under any name, which browsers
                and Prometheus know, or as a bearer token. None asks for nothing.
            local: Only questions to this machine by its own names are answered.
        """
        self._app = app
        self._token = None if token is None else token.encode()
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer: ASGIApp = self._app
        if self._local and _name(headers.get("host", "")) not in _OWN_NAMES:
            answer = PlainTextResponse("ask for localhost or 127.0.0.1\n", 421)
        elif self._token is not None and not self._knows(headers.get("authorization", "")):
            asks = {"WWW-Authenticate": 'Basic realm="kinship-daemon", charset="UTF-8"'}
            answer = PlainTextResponse("the password is the configured web.token\n", 401, asks)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await answer(scope, receive, with_headers)

    def _knows(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        said = given.encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                said = base64.b64decode(said, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        assert self._token is not None
        return hmac.compare_digest(said, self._token)


def _name(host: str) -> str:
    """Without the port."""
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
