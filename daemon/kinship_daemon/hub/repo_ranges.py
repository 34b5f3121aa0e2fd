"""Ranges of a repo's files: many small ones at once, lost ones asked for again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

import httpx

from kinship_daemon.errors import ModelError, Transient, Unavailable
from kinship_daemon.hub.answers import Request, check_unchanged
from kinship_daemon.hub.byte_ranges import ByteRange, cut, joined_ranges
from kinship_daemon.hub.calls import Calls, allowance
from kinship_daemon.hub.names import check_repo_id, check_revision
from kinship_daemon.hub.quota import origin
from kinship_daemon.hub.range_requests import (
    Connections,
    check_piece,
    receive,
    redirect,
)
from kinship_daemon.hub.records import RangesRefused, Repo, RepoFile

__all__ = ["RepoRanges"]

_HOPS = 5
_EXPIRED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE}


@dataclass(frozen=True)
class _Address:
    """Where a file's bytes are; a signed one is a secret that expires, and gets no token."""

    url: httpx.URL
    signed: bool


@dataclass(frozen=True)
class _Answer:
    """What came of one request."""

    wanted: ByteRange
    received: int
    data: bytes = b""
    error: Transient | RangesRefused | None = None
    expired: bool = False


@dataclass
class RepoRanges:
    """
    Pieces of a repo's files at its revision.

    Every file is looked up once, and checked against the hash that was listed; its address is
    used until it expires.

    Attributes:
        request: Of a URL of this repo, for the words of an error.
    """

    connections: Connections
    calls: Calls
    repo: Repo
    request: Callable[[str], Request]
    bytes_read: int = 0
    _addresses: dict[str, _Address] = field(default_factory=dict)

    def read(self, file: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        """
        As `Ranges.read`.

        Raises:
            RangesRefused: the server answers with something else than the ranges asked for.
        """
        known = self._known(file, ranges)
        wanted = joined_ranges(ranges)
        got: dict[ByteRange, bytes] = {}
        failures = 0
        while missing := [each for each in wanted if each not in got]:
            before = len(got)
            error = self._round(known, missing, got)
            # As long as something comes it goes on: every round leaves less to do.
            failures = 0 if len(got) > before else failures + 1
            if isinstance(error, Unavailable):
                raise error
            if error is not None:
                self._pause(error, failures)
        starts = [start for start, _ in wanted]
        return [cut(wanted, starts, got, each) for each in ranges]

    def close(self) -> None:
        """The connections are the hub's; only the addresses are forgotten."""
        self._addresses.clear()

    def _known(self, file: str, ranges: Sequence[ByteRange]) -> RepoFile:
        known = next((each for each in self.repo.files if each.path == file), None)
        if known is None:
            raise ModelError(f"{self.repo.id} has no file {file}")
        for start, end in ranges:
            if not 0 <= start <= end <= known.size:
                raise ModelError(
                    f"{self.repo.id} {file}: no bytes {start} to {end}; it has {known.size}"
                )
        return known

    def _pause(self, error: Transient | RangesRefused, failures: int) -> None:
        pause = self.calls.backoff(max(failures, 1))
        if pause is None:
            raise error
        if isinstance(error, Transient):
            self.calls.pause(error, pause)
        else:
            self.calls.wait(pause)

    def _round(
        self, file: RepoFile, ranges: Sequence[ByteRange], got: dict[ByteRange, bytes]
    ) -> Transient | RangesRefused | None:
        """Ask once for every range; returns the last thing that went wrong."""
        request = self.request(self._url(file))
        try:
            address = self._address(file, request)
        except (Transient, RangesRefused) as error:
            return error
        jobs, fault = deque(ranges), None
        work = partial(self._work, address, file, request, jobs)
        seconds = allowance(sum(end - start for start, end in ranges))
        crew = [work] * min(len(ranges), self.calls.at_once)
        with closing(self.calls.stream(request.url, crew, seconds)) as answers:
            for answer in answers:
                self.bytes_read += answer.received
                if answer.error is None:
                    got[answer.wanted] = answer.data
                    continue
                fault = answer.error
                if answer.expired:
                    self._addresses.pop(file.path, None)
        return fault

    def _work(
        self, address: _Address, file: RepoFile, request: Request, jobs: deque[ByteRange]
    ) -> Iterator[_Answer]:
        """In a thread: range after range, until none is left or none would come."""
        while True:
            try:
                wanted = jobs.popleft()
            except IndexError:
                return
            answer = self._ask(address, file, request, wanted)
            slow = isinstance(answer.error, Transient) and answer.error.retry_seconds is not None
            if answer.expired or slow or isinstance(answer.error, RangesRefused):
                jobs.clear()
            yield answer

    def _ask(
        self, address: _Address, file: RepoFile, request: Request, wanted: ByteRange
    ) -> _Answer:
        received: list[bytes] = []
        expired = False
        try:
            with self.connections.get(address.url, wanted, signed=address.signed) as answer:
                moved = redirect(answer, address.url) is not None
                expired = moved or (address.signed and answer.status_code in _EXPIRED)
                if moved:
                    raise Transient(f"{request.url} lies elsewhere now; try again later")
                check_piece(answer, self.repo, file, request, wanted)
                receive(answer, wanted, received)
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            return _Answer(wanted, sum(map(len, received)), error=request.unreachable(error))
        except (Transient, RangesRefused) as error:
            return _Answer(wanted, sum(map(len, received)), error=error, expired=expired)
        return _Answer(wanted, sum(map(len, received)), b"".join(received))

    def _address(self, file: RepoFile, request: Request) -> _Address:
        known = self._addresses.get(file.path)
        if known is None:
            known = self.calls.retried(request.url, partial(self._resolved, file, request))
            self._addresses[file.path] = known
            self.bytes_read += 1
        return known

    def _resolved(self, file: RepoFile, request: Request) -> _Address:
        """
        Where a file lies, in a thread, found out by its first byte.

        The token follows no redirect to another server; from there on there may be more of them.
        """
        url, signed = httpx.URL(self._url(file)), False
        try:
            for _ in range(_HOPS):
                with self.connections.get(url, (0, 1), signed=signed) as answer:
                    target = redirect(answer, url)
                    if target is None:
                        check_piece(answer, self.repo, file, request, (0, 1))
                        receive(answer, (0, 1), [])
                        return _Address(url, signed)
                    check_unchanged(request, file, str(url), answer.headers)
                url = target
                signed = signed or origin(str(url)) != origin(self.connections.endpoint)
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise request.unreachable(error) from None
        raise Transient(f"{request.url} is redirected without end")

    def _url(self, file: RepoFile) -> str:
        repo_id, revision = (
            check_repo_id(self.repo.id, bare=True),
            check_revision(self.repo.revision),
        )
        return (
            f"{self.connections.endpoint}/{repo_id}/resolve/{quote(revision, safe='')}"
            f"/{quote(file.path)}"
        )
