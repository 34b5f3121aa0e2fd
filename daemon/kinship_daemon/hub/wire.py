"""Small calls, pages and streams of a server with the Hub's API, in JSON and bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, urlencode, urljoin

import httpx2

from kinship_daemon.errors import KinshipError, Transient
from kinship_daemon.hub.answers import Request, check_unchanged, message_of
from kinship_daemon.hub.calls import (
    Calls,
    allowance,
    asked_server,
    connection,
    note_answer,
    note_request,
)
from kinship_daemon.hub.quota import origin
from kinship_daemon.hub.records import Repo, RepoFile

__all__ = ["Wire", "bounded_session"]

_BOUND_SECONDS = 120.0  # of silence, for calls that take no timeout of their own
_MOST_BYTES = 100_000_000  # of a small answer: a repo of 300,000 files is described in less
_MOST_PAGES = 10_000
_A_FILE = {"is_file": True}  # marks a request, and where it is redirected to


class Wire:
    """One server, spoken to as one user."""

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        timeout_seconds: float,
        calls: Calls,
        session: Callable[[], httpx2.Client],
    ) -> None:
        self.endpoint = endpoint
        self.calls = calls
        self._token = token
        self._timeout = timeout_seconds
        self._session = session

    def request(
        self, path: str, repo_id: str = "", revision: str | None = None, *, writes: bool = False
    ) -> Request:
        url = f"{self.endpoint}{path}"
        return Request(self.endpoint, url, repo_id, revision, writes, self._token)

    def headers(self) -> dict[str, str]:
        headers = {"user-agent": f"kinship-daemon/{version('kinship-daemon')}"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        return headers

    def pages(self, query: Sequence[tuple[str, str]]) -> Iterator[list[Mapping[str, Any]]]:
        """
        The pages of a listing of models.

        HfApi.list_models would sleep up to minutes between its own retries, and would follow a
        next page, with the token, to any server.
        """
        request = self.request("/api/models")
        url: str | None = f"{request.url}?{urlencode(query)}"
        for _ in range(_MOST_PAGES):
            items, url = self.ask(request, url)
            if not isinstance(items, list):
                raise Transient(f"{request.url} does not answer with a list; is it a Hub?")
            yield [item for item in items if isinstance(item, dict)]
            if url is None:
                return
            if origin(url) != origin(self.endpoint):
                raise Transient(
                    f"{self.endpoint} sends its next page to another server: {request.line(url)}"
                )
        raise Transient(f"{request.url} goes on for more than {_MOST_PAGES} pages")

    def ask(
        self,
        request: Request,
        url: str | None = None,
        *,
        body: Mapping[str, str] | None = None,
        fine: Set[int] = frozenset(),
    ) -> tuple[Any, str | None]:
        """
        One small call, tried a few times.

        Args:
            url: The request's, with its query.
            body: To POST as JSON.
            fine: Statuses that are no errors.

        Returns:
            The JSON answered, and the URL of the next page.
        """
        work = partial(self._exchange, request, url or request.url, body, fine)
        return self.calls.retried(request.url, work)

    def _exchange(
        self, request: Request, url: str, body: Mapping[str, str] | None, fine: Set[int]
    ) -> tuple[Any, str | None]:
        method = "GET" if body is None else "POST"
        headers = self.headers()
        with (
            _speaking(request),
            connection(),
            self._session().stream(
                method, url, headers=headers, timeout=self._timeout, json=body
            ) as response,
        ):
            data = _all_of(response)
            if not response.is_success and response.status_code not in fine:
                raise request.refusal(response.status_code, response.headers, message_of(data))
            return request.parsed(data), response.links.get("next", {}).get("url")

    @contextmanager
    def content(
        self, repo: Repo, file: RepoFile, offset: int
    ) -> Iterator[Iterator[tuple[int, bytes]]]:
        """A file's bytes from an offset on, or from 0 where the server cannot resume."""
        request = self.request(
            f"/{repo.id}/resolve/{quote(repo.revision, safe='')}/{quote(file.path)}",
            repo.id,
            repo.revision,
        )
        source = partial(self._blocks, request, file, offset)
        with closing(
            self.calls.stream(request.url, [source], allowance(file.size - offset))
        ) as blocks:
            yield blocks

    def _blocks(self, request: Request, file: RepoFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """
        Blocks with their offsets, in a thread.

        We stream this ourselves: hf_hub_download neither resumes nor checks a hash. A redirect to
        a storage server does not take the token along (httpx2 drops it when the origin changes).
        """
        # A compressed answer could neither be resumed nor counted.
        headers = self.headers() | {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with (
            _speaking(request),
            self._session().stream(
                "GET", request.url, headers=headers, timeout=self._timeout, extensions=_A_FILE
            ) as response,
        ):
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return
            if not response.is_success:
                raise request.refusal(response.status_code, response.headers, url=str(response.url))
            for answer in (*response.history, response):
                check_unchanged(request, file, str(answer.url), answer.headers)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise KinshipError(f"{request.url} is compressed unasked; is a proxy in between?")
            if response.headers.get("Content-Type", "").startswith("text/html"):
                # Its beginning would be taken for the file's, and gone on from.
                raise Transient(f"{request.url} answers with a web page; try again later")
            begin = re.match(r"bytes (\d{1,19})-", response.headers.get("Content-Range", ""))
            at = int(begin[1]) if begin else 0
            for block in response.iter_raw():
                yield at, block
                at += len(block)


def bounded_session(*hooks: Callable[[httpx2.Request], None]) -> httpx2.Client:
    """
    A client whose every request has a time limit, and is part of the call it is made in.

    Args:
        hooks: Called before a request.
    """
    # Without timeout=None its own 5 seconds would go before ours.
    events: dict[str, list[Callable[..., Any]]] = {
        "request": [*hooks, _bound, _keep_token, _announced],
        "response": [_noted, _keep_answer],
    }
    return httpx2.Client(follow_redirects=True, timeout=None, event_hooks=events)


def _bound(request: httpx2.Request) -> None:
    """Give every call a time limit: huggingface_hub passes none, or says None, in most places."""
    given = request.extensions.get("timeout") or {}
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: given.get(kind) or _BOUND_SECONDS for kind in kinds}


def _announced(request: httpx2.Request) -> None:
    note_request(str(request.url))


def _noted(response: httpx2.Response) -> None:
    """Before huggingface_hub sees a wait of minutes, and sleeps it."""
    url = str(response.request.url)
    note_answer(url, response.status_code, response.headers)


def _keep_token(request: httpx2.Request) -> None:
    """The token goes to its own server alone, whatever address an answer gave for the next step."""
    server = asked_server()
    if server is not None and "authorization" in request.headers:
        _check_origin(server, str(request.url), "wants its token sent to")


def _keep_answer(response: httpx2.Response) -> None:
    """Nobody else answers for a server. Only files may come from elsewhere: they have hashes."""
    server, request = asked_server(), response.request
    if server is None or not response.has_redirect_location:
        return
    is_ours = origin(str(request.url)) == origin(server)
    if is_ours and not request.extensions.get("is_file"):
        url = str(request.url).partition("?")[0]
        try:
            target = urljoin(url, response.headers["location"])
        except ValueError:
            target = ""  # no URL at all
        _check_origin(server, target, f"redirects {url} to")


def _check_origin(server: str, url: str, does: str) -> None:
    if origin(url) != origin(server):
        where = url.partition("?")[0]
        raise Transient(f"{server} {does} another server ({where}); it is asked again later")


@contextmanager
def _speaking(request: Request) -> Iterator[None]:
    """The client's errors as ours."""
    try:
        yield
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise request.unreachable(error) from None


def _all_of(response: httpx2.Response) -> bytes:
    """A small answer's body."""
    data = bytearray()
    for block in response.iter_bytes():
        data += block
        if len(data) > _MOST_BYTES:
            raise httpx2.DecodingError(f"the answer is longer than {_MOST_BYTES} bytes")
    return bytes(data)
