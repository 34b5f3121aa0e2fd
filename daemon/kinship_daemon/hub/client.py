"""The Hugging Face Hub, or a server with its API. The only module that imports huggingface_hub."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import version
from json import JSONDecodeError
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    HfApi,
    ModelCardData,
    ModelInfo,
    constants,
    get_session,
    get_token,
    hf_hub_url,
    hf_raise_for_status,
    set_client_factory,
)
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined] # lazy there

from kinship_daemon.durable import hash_file
from kinship_daemon.errors import KinshipError, ModelError, Transient, UsageError
from kinship_daemon.hub.download import fetch
from kinship_daemon.hub.files import intact, local_files
from kinship_daemon.hub.names import check_endpoint, check_repo_id, check_revision, check_token
from kinship_daemon.hub.records import Listing, Publication, Repo, RepoFile, UnknownRepo

__all__ = ["ApiHub", "machine_token"]

_PAGE = 1000  # the most that the Hub gives in one page
_BOUND_SECONDS = 120.0  # for calls that take no timeout of their own, such as a large commit
_RETRY_STATUSES = {408, 425, 429}


class ApiHub:
    """A server that speaks the Hub's API."""

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        sha256: Callable[[Path], str] = hash_file,
        timeout_seconds: float = 30.0,
    ) -> None:
        """
        A client; nothing is sent yet.

        Args:
            endpoint: Such as https://huggingface.co.
            token: Sent to this server only. The machine's own is never used unasked.
            sha256: Of a file, hex; give one that remembers.
            timeout_seconds: How long the server may be silent.

        Raises:
            UsageError: the endpoint or the token cannot be one.
        """
        self._endpoint = check_endpoint(endpoint)
        self._token = check_token(token)
        self._sha256 = sha256
        self._timeout = timeout_seconds
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
            next(self._pages("/api/models", [("limit", "1")]), None)
            return f"{self._endpoint} answers (no token)"
        with self._speaking(f"{self._endpoint}/api/whoami-v2"):
            name = self._api.whoami().get("name")
        return f"{self._endpoint} answers; the token is {name}'s"

    def descendants(self, base: str) -> Iterator[Listing]:
        # `base_model:ID` is on every descendant, whatever its relation, or without one.
        query = [("filter", f"base_model:{base}"), ("sort", "lastModified"), ("limit", str(_PAGE))]
        query += [("expand", key) for key in ("sha", "lastModified", "tags")]
        quantised = f"base_model:quantized:{base}"
        found: dict[str, Listing] = {}
        for item in self._pages("/api/models", query):
            listing = _listing(item)
            if listing is not None and quantised not in (item.get("tags") or ()):
                # A repo that changes while we page can come twice; its newest line counts.
                known = found.get(listing.id, listing)
                found[listing.id] = max(known, listing, key=lambda line: line.modified)
        yield from sorted(found.values(), key=lambda listing: (listing.modified, listing.id))

    def repo(self, repo_id: str, revision: str | None = None) -> Repo:
        check_repo_id(repo_id)
        if revision is not None:
            check_revision(revision)
        with self._speaking(f"{self._endpoint}/api/models/{repo_id}", repo_id, revision):
            try:
                info = self._api.model_info(
                    repo_id, revision=revision, files_metadata=True, timeout=self._timeout
                )
                return _repo(repo_id, info)
            except JSONDecodeError:
                raise
            except (KeyError, TypeError, AttributeError, ValueError, UsageError):
                # UsageError: its commit is not a revision.
                raise ModelError(
                    f"{self._endpoint} describes {repo_id} in a way that cannot be read"
                ) from None

    def fetch(self, repo: Repo, into: Path, progress: Callable[[int], None] | None = None) -> Path:
        return fetch(repo, into, self._content, self._sha256, progress)

    def publish(self, repo_id: str, folder: Path, message: str, private: bool) -> Publication:
        check_repo_id(repo_id)
        if self._token is None:
            raise UsageError(
                f"publishing {repo_id} needs a token that may write: "
                "set HF_TOKEN, or log in with `hf auth login`"
            )
        head = self._head(repo_id) or self._create(repo_id, private)
        if not self._holds(head, folder):
            if any(_visible(file.path) for file in head.files):
                raise KinshipError(
                    f"{self._endpoint}/{repo_id} exists with other content; it is not ours to "
                    "replace: set another publish.namespace or publish.name, or remove it"
                )
            head = self._commit(head, folder, message)
        return Publication(repo_id, head.revision, f"{self._endpoint}/{repo_id}")

    @contextmanager
    def _content(
        self, repo: Repo, file: RepoFile, offset: int
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """
        A file's bytes from an offset on, and the offset they really start at.

        We stream this ourselves: hf_hub_download neither resumes nor checks a hash. A redirect to
        a storage server does not take the token along (httpx2 drops it when the origin changes).
        """
        url = hf_hub_url(repo.id, file.path, revision=repo.revision, endpoint=self._endpoint)
        # A compressed answer could neither be resumed nor counted.
        headers = self._headers() | {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with (
            self._speaking(url, repo.id, repo.revision),
            get_session().stream("GET", url, headers=headers, timeout=self._timeout) as response,
        ):
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                yield 0, iter(())
                return
            hf_raise_for_status(response)
            begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            yield int(begin[1]) if begin else 0, response.iter_bytes()

    def _head(self, repo_id: str) -> Repo | None:
        try:
            return self.repo(repo_id)
        except UnknownRepo:
            return None

    def _create(self, repo_id: str, private: bool) -> Repo:
        with self._speaking(f"{self._endpoint}/api/repos/create", repo_id):
            self._api.create_repo(repo_id, private=private, exist_ok=True)
        return self.repo(repo_id)

    def _holds(self, repo: Repo, folder: Path) -> bool:
        """Whether a repo has exactly a folder's files, by their hashes."""
        theirs = {file.path: file for file in repo.files if _visible(file.path)}
        return theirs.keys() == _content_of(folder).keys() and all(
            intact(folder / file.path, file, self._sha256) for file in theirs.values()
        )

    def _commit(self, head: Repo, folder: Path, message: str) -> Repo:
        """All files in one commit on top of `head`; read back and compared."""
        try:
            revision = self._send(head, folder, message)
        except Transient:
            # The commit may have landed although its answer did not reach us.
            now = self.repo(head.id)
            if not self._holds(now, folder):
                raise
            return now
        landed = self.repo(head.id, revision)
        if not self._holds(landed, folder):
            raise KinshipError(
                f"{self._endpoint}/{head.id} at {revision} does not hold what was sent; "
                "remove that repo, then publish again"
            )
        return landed

    def _send(self, head: Repo, folder: Path, message: str) -> str:
        """Returns the new commit."""
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
            for name, path in _content_of(folder).items()
        ]
        with self._speaking(f"{self._endpoint}/api/models/{head.id}/commit/main", head.id):
            try:
                commit = self._upload(head, additions, message)
            except JSONDecodeError:
                raise
            except ValueError as error:
                raise KinshipError(
                    f"{self._endpoint} does not take {head.id}: {self._line(error)}"
                ) from None
        return commit.oid

    def _upload(self, head: Repo, additions: list[CommitOperationAdd], message: str) -> CommitInfo:
        try:
            return self._api.create_commit(
                head.id, additions, commit_message=message, parent_commit=head.revision
            )
        except RuntimeError as error:
            # How huggingface_hub wraps what goes wrong while it uploads one file.
            raise error.__cause__ or error from None

    def _headers(self) -> dict[str, str]:
        headers = {"user-agent": f"kinship-daemon/{version('kinship-daemon')}"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        return headers

    def _pages(self, path: str, query: Sequence[tuple[str, str]]) -> Iterator[Mapping[str, Any]]:
        """
        The items of a paged listing.

        HfApi.list_models would sleep up to minutes between its own retries, and would follow a
        next page, with the token, to any server.
        """
        url: str | None = f"{self._endpoint}{path}?{urlencode(query)}"
        while url is not None:
            if not url.startswith(f"{self._endpoint}/"):
                raise KinshipError(
                    f"{self._endpoint} sends its next page to another server: {self._line(url)}"
                )
            with self._speaking(f"{self._endpoint}{path}"):
                response = get_session().get(url, headers=self._headers(), timeout=self._timeout)
                hf_raise_for_status(response)
                items = response.json()
            if not isinstance(items, list):
                raise Transient(f"{self._endpoint}{path} does not answer with a list; is it a Hub?")
            yield from (item for item in items if isinstance(item, dict))
            url = response.links.get("next", {}).get("url")

    @contextmanager
    def _speaking(self, url: str, repo_id: str = "", revision: str | None = None) -> Iterator[None]:
        """Every error of the client as one of ours, in one line, without the token."""
        try:
            yield
        except OfflineModeIsEnabled:
            raise UsageError(
                f"HF_HUB_OFFLINE is set, so {self._endpoint} cannot be asked; unset it"
            ) from None
        except GatedRepoError:
            raise ModelError(
                f"{repo_id} is gated: accept its terms at {self._endpoint}/{repo_id}, "
                "then use a token of that account"
            ) from None
        except RepositoryNotFoundError:
            hint = "" if self._token else "; if it is private, set HF_TOKEN"
            raise UnknownRepo(f"{self._endpoint} has no model {repo_id}{hint}") from None
        except RevisionNotFoundError:
            raise UnknownRepo(f"{self._endpoint}/{repo_id} has no revision {revision}") from None
        except RemoteEntryNotFoundError:
            raise ModelError(f"{url} is listed, but not there") from None
        except DisabledRepoError:
            raise ModelError(f"{self._endpoint} has disabled {repo_id}") from None
        except HfHubHTTPError as error:
            raise self._refused(url, error) from None
        except JSONDecodeError:
            # Such as the page of a proxy, or "back soon".
            raise Transient(
                f"{url} does not answer with JSON; is {self._endpoint} a Hub?"
            ) from None
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise Transient(
                f"{url} cannot be reached ({self._line(error) or type(error).__name__}); "
                "check the network and --hub, or try again later"
            ) from None

    def _refused(self, url: str, error: HfHubHTTPError) -> KinshipError:
        status = error.response.status_code
        said = self._line(error.server_message or "")
        if status >= 500 or status in _RETRY_STATUSES:
            return Transient(f"{url} answered {status} {said}".rstrip() + "; try again later")
        if status == HTTPStatus.PRECONDITION_FAILED:
            return Transient(f"{url}: someone else committed in between; try again later")
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return KinshipError(
                f"{url} answered {status} {said}".rstrip()
                + "; use a token that may do this (HF_TOKEN, or `hf auth login`)"
            )
        return KinshipError(f"{url} answered {status} {said}".rstrip())

    def _line(self, words: object) -> str:
        """Someone else's words as one short line without our token."""
        text = " ".join(str(words).split())
        return (text.replace(self._token, "***") if self._token else text)[:200]


def machine_token(endpoint: str) -> str | None:
    """The token that HF_TOKEN or `hf auth login` set, for the server that it was made for."""
    mine = {urlsplit(url)[:2] for url in ("https://huggingface.co", constants.ENDPOINT)}
    return get_token() if urlsplit(endpoint)[:2] in mine else None


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
    set_client_factory(_session)


def _session() -> httpx2.Client:
    # Without timeout=None its own 5 seconds would go before ours.
    hooks = {"request": [_offline, _bound]}
    return httpx2.Client(follow_redirects=True, timeout=None, event_hooks=hooks)


def _offline(request: httpx2.Request) -> None:
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled(f"HF_HUB_OFFLINE is set; {request.url.host} is not asked")


def _bound(request: httpx2.Request) -> None:
    """Give every call a time limit: huggingface_hub passes none, or says None, in most places."""
    given = request.extensions.get("timeout") or {}
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: given.get(kind) or _BOUND_SECONDS for kind in kinds}


def _listing(item: Mapping[str, Any]) -> Listing | None:
    """One line of the Hub's listing; None if it is not one that we can use."""
    try:
        repo_id, revision = check_repo_id(item["id"]), check_revision(item["sha"])
        modified = datetime.fromisoformat(item["lastModified"]).astimezone(UTC)
        return Listing(repo_id, revision, modified)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError):
        return None


def _repo(repo_id: str, info: ModelInfo) -> Repo:
    files = [
        RepoFile(
            path=sibling.rfilename,
            size=int((sibling.lfs.size if sibling.lfs else sibling.size) or 0),
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            blob=None if sibling.lfs else sibling.blob_id,
        )
        for sibling in info.siblings or ()
    ]
    return Repo(
        id=repo_id,
        revision=check_revision(info.sha or ""),
        modified=info.last_modified or datetime.fromtimestamp(0, UTC),
        card=_card(info.card_data),
        files=tuple(sorted(files, key=lambda file: file.path)),
        gated=bool(info.gated),
        private=bool(info.private),
        disabled=bool(info.disabled),
        config=info.config if isinstance(info.config, dict) else {},
    )


def _card(data: object) -> dict[str, Any]:
    """Front matter, less the evaluation results, which huggingface_hub makes into objects."""
    if not isinstance(data, ModelCardData):
        return {}
    dropped = {"eval_results", "model_name"}
    return {k: v for k, v in vars(data).items() if v is not None and k not in dropped}


def _visible(path: str) -> bool:
    """Files such as .gitattributes are the Hub's own doing."""
    return not any(part.startswith(".") for part in path.split("/"))


def _content_of(folder: Path) -> dict[str, Path]:
    """A folder's files by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path for path in local_files(folder, folder.resolve())
    }
