"""The Hugging Face Hub, or a server with its API. The only module that imports huggingface_hub."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_session,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined] # lazy there

from kinship_daemon.durable import hash_file
from kinship_daemon.errors import KinshipError, Transient, Unavailable, UsageError
from kinship_daemon.foreign.shown import shown
from kinship_daemon.hub.answers import Request
from kinship_daemon.hub.calls import AT_ONCE, Calls, allowance
from kinship_daemon.hub.description import described
from kinship_daemon.hub.download import fetch
from kinship_daemon.hub.listing import every_descendant, recent_descendants
from kinship_daemon.hub.names import check_endpoint, check_repo_id, check_revision, check_token
from kinship_daemon.hub.publishing import Publisher
from kinship_daemon.hub.quota import Quota
from kinship_daemon.hub.range_requests import Connections
from kinship_daemon.hub.records import Listing, Repo
from kinship_daemon.hub.repo_ranges import RepoRanges
from kinship_daemon.hub.rights import writing_right
from kinship_daemon.hub.wire import Wire, bounded_session

__all__ = ["ApiHub", "machine_token", "open_api", "token_advice"]

T = TypeVar("T")

_INLINE_BYTES = 10_000_000
_COMMIT = re.compile("[0-9a-f]{40}")


class ApiHub:
    """A server that speaks the Hub's API."""

    copies = True

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        sha256: Callable[[Path], str] = hash_file,
        timeout_seconds: float = 30.0,
        stop: threading.Event | None = None,
        connections: int = AT_ONCE,
    ) -> None:
        """
        A client; nothing is sent yet.

        Args:
            endpoint: Such as https://huggingface.co.
            token: Sent to this server only. The machine's own is never used unasked.
            sha256: Of a file, hex; give one that remembers.
            timeout_seconds: How long the server may be silent.
            stop: Ends every call with Stopped, also one that waits or hangs.
            connections: At a time, at most.

        Raises:
            UsageError: the endpoint or the token cannot be one.
        """
        self._endpoint = check_endpoint(endpoint)
        self._token = check_token(token)
        self.is_anonymous = self._token is None
        self._sha256 = sha256
        self.at_once = connections
        self._calls = Calls(Quota(self._endpoint), stop, connections)
        self._wire = Wire(self._endpoint, self._token, timeout_seconds, self._calls, get_session)
        self._connections = Connections(self._endpoint, self._wire.headers(), timeout_seconds)
        _settle()
        self._api = HfApi(
            self._endpoint,
            token=self._token or False,
            library_name="kinship-daemon",
            library_version=version("kinship-daemon"),
        )

    @property
    def name(self) -> str:
        return self._endpoint

    def about(self) -> str:
        if self._token is None:
            next(self._wire.pages([("limit", "1")]))
            return f"{self._endpoint} answers (no token)"
        return f"{self._endpoint} answers; the token is {shown(self._whoami()['name'])}'s"

    def descendants(self, base: str, since: datetime | None = None) -> Iterator[Listing]:
        if since is None:
            yield from every_descendant(self._wire.pages, base)
        else:
            yield from recent_descendants(self._wire.pages, base, since)

    def passed_over(
        self,
        base: str,  # noqa: ARG002 - nobody is named
        listed: Collection[str],  # noqa: ARG002
    ) -> Iterator[tuple[str, str]]:
        """None: a server has a million repos, and lists those alone that it holds for related."""
        return iter(())

    def repo(self, repo_id: str, revision: str | None = None) -> Repo:
        return self.look(repo_id, revision)[0]

    def ranges(self, repo: Repo) -> RepoRanges:
        check_repo_id(repo.id, bare=True)
        check_revision(repo.revision)
        request = partial(
            Request, self._endpoint, repo_id=repo.id, revision=repo.revision, token=self._token
        )
        return RepoRanges(self._connections, self._calls, repo, request)

    def fetch(self, repo: Repo, into: Path, progress: Callable[[int], None] | None = None) -> Path:
        return fetch(repo, into, self._wire.content, self._sha256, progress, self._calls.wait)

    def publish(self, repo_id: str, folder: Path, message: str, private: bool) -> tuple[str, str]:
        check_repo_id(repo_id)
        self._check_token(f"publishing {repo_id}")
        publisher = Publisher(self, self._calls, self._sha256)
        return publisher.publish(repo_id, folder, message, private)

    def may_write(self, namespace: str) -> str:
        check_repo_id(f"{namespace}/name")
        self._check_token(f"publishing under {namespace}")
        try:
            return writing_right(self._whoami(), namespace)
        except UsageError as error:
            found = str(error)
        # No hash guards an answer: what ends a start is heard twice.
        try:
            return writing_right(self._whoami(), namespace)
        except UsageError as error:
            if str(error) == found:
                raise
            raise Transient(f"{self._endpoint} says each time otherwise: {found}") from None

    def look(self, repo_id: str, revision: str | None = None) -> tuple[Repo, str]:
        """A repo, and what it is called today: a renamed one still answers to its old name."""
        path = f"/api/models/{check_repo_id(repo_id, bare=True)}"
        request = self._wire.request(path, repo_id, revision)
        if revision is not None:
            path += f"/revision/{quote(check_revision(revision), safe='')}"
        answer, _ = self._wire.ask(request, f"{self._endpoint}{path}?blobs=true")
        today = answer.get("id") if isinstance(answer, dict) else None
        repo = described(repo_id, answer)
        if _COMMIT.fullmatch(revision or "") and repo.revision != revision:
            raise Unavailable(f"the hub describes {repo_id} at another commit than was asked for")
        return repo, today if isinstance(today, str) else repo_id

    def _whoami(self) -> Mapping[str, Any]:
        """Whose our token is; a `name` is there in any case."""
        request = self._wire.request("/api/whoami-v2")
        answer, _ = self._wire.ask(request)
        if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
            raise Transient(f"{request.url} does not say whose the token is; try again later")
        return answer

    def create(self, repo_id: str, private: bool) -> None:
        """
        An empty repo; one that is there already stays as it is.

        Not HfApi.create_repo, which asks again without end or pause while the Hub is busy with
        another repo of ours.
        """
        namespace, _, name = repo_id.partition("/")
        visibility = "private" if private else "public"
        body = {"name": name, "organization": namespace, "visibility": visibility}
        request = self._wire.request("/api/repos/create", repo_id, writes=True)
        self._wire.ask(request, body=body, fine={HTTPStatus.CONFLICT})

    def send(self, head: Repo, files: Mapping[str, Path], message: str) -> str:
        """
        One commit on top of `head`, not tried twice. Returns it.

        Large files go up one by one before it: of several, huggingface_hub makes threads that
        the process could not leave behind at its end.
        """
        request = self._wire.request(f"/api/models/{head.id}/commit/main", head.id, writes=True)
        additions = []
        for name, path in files.items():
            addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
            addition.upload_info.sha256 = bytes.fromhex(self._sha256(path))
            upload = partial(self._api.preupload_lfs_files, head.id, [addition], free_memory=False)
            self._through(request, upload, addition.upload_info.size)
            additions.append(addition)
        options = {"commit_message": message, "parent_commit": head.revision}
        commit = partial(self._api.create_commit, head.id, additions, **options)
        return str(self._through(request, commit, sum(map(_inline, additions))).oid)

    def _through(self, request: Request, work: Callable[[], T], count: int) -> T:
        """What huggingface_hub does for us, in as long as so many bytes may take."""
        return self._calls.once(request.url, lambda: _done(request, work), allowance(count))

    def _check_token(self, what: str) -> None:
        if self._token is None:
            raise UsageError(f"{what} needs a token that may write: {token_advice(self._endpoint)}")


def open_api(where: str, *, token: str | None = None, **arguments: Any) -> ApiHub:
    """A server by its URL, with the machine's own token if that is for it."""
    return ApiHub(where, token=token or machine_token(where), **arguments)


def machine_token(endpoint: str) -> str | None:
    """The token that HF_TOKEN or `hf auth login` set, for the server that it was made for."""
    mine = {urlsplit(url)[:2] for url in ("https://huggingface.co", constants.ENDPOINT)}
    return get_token() if urlsplit(check_endpoint(endpoint))[:2] in mine else None


def token_advice(endpoint: str) -> str:
    """What gives us a token for a server for which `machine_token` has none."""
    if get_token() is None:
        return "run `hf auth login`, or set HF_TOKEN"
    return (
        f"the one that is set is for {constants.ENDPOINT}; "
        f"if it is for this hub, set HF_ENDPOINT={endpoint}"
    )


def _done(request: Request, work: Callable[[], T]) -> T:
    """The result of huggingface_hub's work, every error as one of ours."""
    try:
        try:
            return work()
        except RuntimeError as error:
            # How it wraps what goes wrong while it uploads one file.
            raise error.__cause__ or error from None
    except HfHubHTTPError as error:
        answer, said = error.response, error.server_message or ""
        raise request.refusal(answer.status_code, answer.headers, said, str(answer.url)) from None
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise request.unreachable(error) from None
    except (JSONDecodeError, KeyError, TypeError):
        # It may have been done all the same.
        raise request.no_json() from None
    except ValueError as error:
        raise KinshipError(
            f"{request.endpoint} does not take {request.repo_id}: {request.line(error)}"
        ) from None


@functools.cache
def _settle() -> None:
    """
    Set, once and only when a hub is really used, what huggingface_hub takes no argument for.

    The same as HF_HUB_DISABLE_TELEMETRY=1 (else it asks the server how to describe us first) and
    HF_HUB_DISABLE_XET=1 (plain uploads, whose time we can bound).
    """
    constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.HF_HUB_DISABLE_XET = True
    disable_progress_bars()
    # Its warnings about retries show signed addresses.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    set_client_factory(_session)


def _session() -> httpx2.Client:
    return bounded_session(_online)


def _online(request: httpx2.Request) -> None:
    if constants.is_offline_mode():
        raise UsageError(f"HF_HUB_OFFLINE is set, so {request.url.host} is not asked; unset it")


def _inline(addition: CommitOperationAdd) -> int:
    """At most so many bytes of a file go along with the commit itself."""
    return min(addition.upload_info.size, _INLINE_BYTES)
