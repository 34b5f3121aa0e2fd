"""Connections of strangers: so many at a time, and none that keeps us waiting for its question."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Bounded"]

_AT_ONCE = 64  # the daemon shares its file descriptors with them
_SECONDS = 10.0  # from a connection, or from the last answer, to the last byte of a question
_LOOK_SECONDS = 1.0


class Bounded(H11Protocol):
    """
    Closes what comes on top of so many, and what does not ask in time.

    A byte now and then does not prolong it; an answer may take as long as it does (live events).
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._asking_since = self.loop.time()
        if len(self.connections) > _AT_ONCE:
            transport.abort()
        else:
            self._look()

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self.conn.their_state not in {h11.IDLE, h11.SEND_BODY}:
            self._asking_since = now  # it has asked, and we are answering
        elif now - self._asking_since > _SECONDS:
            self.transport.abort()
            return
        self.loop.call_later(_LOOK_SECONDS, self._look)
