"""Single ranges of a hub's files over HTTP, over connections that are kept."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urljoin

import httpx

from kinship_daemon.errors import Unavailable
from kinship_daemon.hub.answers import Request, check_unchanged
from kinship_daemon.hub.byte_ranges import ByteRange
from kinship_daemon.hub.calls import connection, note_answer, note_request
from kinship_daemon.hub.records import RangesRefused, Repo, RepoFile

__all__ = ["Connections", "check_piece", "receive", "redirect"]


class Connections:
    """Kept open to one server and its storage, shared by all repos."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], timeout_seconds: float) -> None:
        """
        Nothing is sent yet.

        Args:
            headers: Sent to this server only, such as the token.
        """
        self.endpoint = endpoint
        self._own = dict(headers)
        self._timeout = httpx.Timeout(timeout_seconds).as_dict()
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    @contextmanager
    def get(self, url: httpx.URL, wanted: ByteRange, *, signed: bool) -> Iterator[httpx.Response]:
        """An answer whose body is not read yet. For the threads of a call."""
        headers = {
            "Accept-Encoding": "identity",
            "Range": f"bytes={wanted[0]}-{wanted[1] - 1}",
        }
        if not signed:
            headers |= self._own
        request = httpx.Request("GET", url, headers=headers, extensions={"timeout": self._timeout})
        with connection():
            note_request(str(url))
            response = self._connected().send(
                request, stream=True, auth=None, follow_redirects=False
            )
            try:
                note_answer(str(url), response.status_code, response.headers)
                yield response
            finally:
                response.close()

    def _connected(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                # Calls have a bound of their own; as many are kept as may be in use.
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
                self._client = httpx.Client(limits=limits)
            return self._client


def check_piece(
    answer: httpx.Response, repo: Repo, file: RepoFile, request: Request, wanted: ByteRange
) -> None:
    """
    That an answer's body is exactly the wanted asked for, of the file that was listed.

    Raises:
        UnknownRepo: The repo is not there. Transient: Not now, or it is another file.
        RangesRefused: it is something else.
    """
    status, headers = answer.status_code, answer.headers
    where = f"{repo.id} {file.path}"
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise Unavailable(f"{where}: ends before byte {wanted[1]}; changed since it was listed")
    if status == HTTPStatus.OK:
        raise RangesRefused(f"{where}: the server sends the whole file instead of a range")
    if status != HTTPStatus.PARTIAL_CONTENT:
        raise request.refusal(status, headers, url=str(answer.url))
    check_unchanged(request, file, str(answer.url), headers)
    sent = re.fullmatch(
        r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", headers.get("content-range", "").strip()
    )
    if sent is None or (int(sent[1]), int(sent[2]) + 1) != wanted:
        raise RangesRefused(f"{where}: the server sends other bytes than were asked for")
    if sent[3] not in {"*", str(file.size)}:
        raise Unavailable(f"{where}: has {sent[3]} bytes, {file.size} when it was listed")
    if headers.get("content-encoding", "identity") != "identity":
        raise RangesRefused(f"{where}: the server compresses ranges unasked")


def receive(answer: httpx.Response, wanted: ByteRange, into: list[bytes]) -> None:
    """The body of an answer, no further than it may go."""
    rest = wanted[1] - wanted[0]
    for data in answer.iter_raw():
        into.append(data)
        rest -= len(data)
        if rest < 0:
            raise RangesRefused(f"more than the {wanted[1] - wanted[0]} bytes asked for came")
    if rest:
        raise httpx.RemoteProtocolError("the answer ends too early")


def redirect(answer: httpx.Response, url: httpx.URL) -> httpx.URL | None:
    """
    Where an answer sends us; None if nowhere.

    Raises:
        httpx.InvalidURL: that is no URL.
    """
    if not answer.has_redirect_location:
        return None
    try:
        return httpx.URL(urljoin(str(url), answer.headers["location"]))
    except ValueError as error:
        raise httpx.InvalidURL(f"it is redirected to no URL: {error}") from None
