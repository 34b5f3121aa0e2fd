"""The server as tests hold it: its repos, its settings, and what is laid for requests to come."""

import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_server import cards
from hub_server.cdn import Storage
from hub_server.connection import Connection, Request
from hub_server.content import Blob, Content, folder_content
from hub_server.faults import CHAOS, Chaos, Fault
from hub_server.hub import Elsewhere, Hub
from hub_server.listing import TagIndex
from hub_server.people import TOKEN, Token
from hub_server.quotas import Quota
from hub_server.store import START, Details, StoredRepo, commit_name, make_blobs, object_id


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        # A client that went away is none of our business; anything else is a bug of this server.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class HubServer:
    """
    Use as a context manager.

    Settings are plain attributes, to be changed at any time: `page` and `tree_page` (most rows of
    a page), `signed_seconds` (life of a signed URL), `stall_seconds`, `gzip_ignores_range`, and
    `clock` (seconds; signed URLs and quotas go by it).
    """

    def __init__(self, page: int = 1000, port: int = 0) -> None:
        self.page, self.tree_page = page, 1000
        self.signed_seconds, self.stall_seconds = 3600.0, 30.0
        self.gzip_ignores_range = True
        self.clock: Callable[[], float] = time.time
        self.tokens: dict[str, Token] = {TOKEN: Token()}
        self.repos: dict[str, StoredRepo] = {}
        self.renamed: dict[str, str] = {}
        self.lfs: dict[str, Content] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.disorder: Chaos | None = None
        self.limits: Quota | None = None
        self.index = TagIndex()
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self.spool = ""
        self._port, self._minutes = port, 0
        self._servers: list[_Listener] = []

    def __enter__(self) -> "HubServer":
        self._scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.spool = self._scratch.name
        kinds: tuple[type[Connection], ...] = (Hub, Storage, Elsewhere)
        for kind, port in zip(kinds, (self._port, 0, 0), strict=True):
            handler = type("Handler", (kind,), {"hub": self})
            server = _Listener(("127.0.0.1", port), handler)
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._servers.append(server)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._scratch.cleanup()

    @property
    def url(self) -> str:
        return self._url(0)

    @property
    def storage_url(self) -> str:
        return self._url(1)

    @property
    def elsewhere_url(self) -> str:
        """Where the fault `redirect` sends to."""
        return self._url(2)

    def _url(self, number: int) -> str:
        return f"http://127.0.0.1:{self._servers[number].server_port}"

    def add(
        self,
        repo_id: str,
        files: Mapping[str, Content] | Path,
        card: Mapping[str, object] | None = None,
        *,
        modified: datetime | None = None,
        **attributes: object,
    ) -> str:
        """
        A repo, or its next commit. Returns the commit.

        Args:
            files: By path, bytes or a file on disk that is not read into memory; or a folder,
                whose large files stay where they are.
            modified: Otherwise a minute after the last commit to any repo.
            attributes: Fields of StoredRepo.
        """
        content = folder_content(files) if isinstance(files, Path) else files
        content = {".gitattributes": b"*.safetensors filter=lfs\n", **content}
        if card is not None:
            content["README.md"] = cards.dumped(card, repo_id)
        for path, data in content.items():
            if isinstance(data, Path):
                Blob(path, data).sha256  # noqa: B018 - hashed here, not while the lock is held
        with self.lock:
            repo = self.repos.setdefault(repo_id, StoredRepo())
            for name, value in attributes.items():
                if name not in StoredRepo.__dataclass_fields__:
                    raise TypeError(f"a stored repo has no {name!r}")
                setattr(repo, name, value)
            sha = self.commit(repo_id, content)
            repo.modified = modified or repo.modified
            return sha

    def commit(self, repo_id: str, content: dict[str, Content]) -> str:
        with self.lock:
            repo = self.repos[repo_id]
            parent = repo.commits[-1][0] if repo.commits else None
            blobs = make_blobs(content, repo.blobs(parent) if parent else {})
            sha = commit_name(repo_id, parent, blobs)
            for blob in blobs.values():
                if blob.lfs:
                    self.keep(blob.sha256, blob.content)
            self._minutes += 1
            repo.modified = START + timedelta(minutes=self._minutes)
            repo.commits.append((sha, content))
            repo.details[sha] = Details(blobs, date=repo.modified)
            self.index.renew(repo_id, repo.facts)
            return sha

    def describe(self, repo_id: str, sha: str, title: str, message: str, author: str) -> None:
        """Say of a commit what its header said; one that tests made themselves has no details."""
        details = self.repos[repo_id].details.get(sha)
        if details is not None:
            details.title, details.message, details.author = title, message, author

    def delete(self, repo_id: str) -> None:
        with self.lock:
            del self.repos[repo_id]

    def rename(self, old: str, new: str) -> None:
        """The old name answers with a redirect (307) until somebody takes it."""
        with self.lock:
            self.repos[new] = self.repos.pop(old)
            self.index.renew(new, self.repos[new].facts)
            self.renamed = {k: new if v == old else v for k, v in self.renamed.items()} | {old: new}

    def tag(self, repo_id: str, name: str, sha: str | None = None) -> None:
        repo = self.repos[repo_id]
        repo.tags[name] = sha or repo.head[0]

    def token(
        self,
        user: str = "tester",
        role: str = "write",
        *,
        orgs: Mapping[str, str] | None = None,
        scopes: Mapping[str, Sequence[str]] | None = None,
    ) -> str:
        """One more token. Org roles: admin, write, contributor, read."""
        text = f"hf_{user}{role}{len(self.tokens)}"
        self.tokens[text] = Token(user, role, orgs or {}, scopes or {})
        return text

    def keep(self, oid: str, content: Content) -> None:
        self.lfs[oid] = content

    def lfs_blob(self, oid: str) -> Blob:
        blob = Blob("stored.bin", self.lfs[oid])
        blob.__dict__["sha256"] = oid  # known: not hashed again
        return blob

    def object_id(self, repo_id: str) -> str:
        return object_id(repo_id)

    def fault(
        self, path: str, action: str = "status", *, method: str = "GET", n: int = 1, **kwargs
    ) -> Fault:
        """Lay a fault; `faults.py` has the actions and the other arguments."""
        fault = Fault(method, path, n, action, **kwargs)
        self.faults.append(fault)
        return fault

    def chaos(
        self,
        seed: int,
        rate: float,
        kinds: Sequence[str] = CHAOS,
        *,
        streak: int | None = None,
    ) -> Chaos:
        """Let requests fail at random from now on; `calm` ends it."""
        self.disorder = Chaos(seed, rate, kinds, streak=streak)
        return self.disorder

    def calm(self) -> None:
        self.disorder = None
        self.faults.clear()

    def quota(self, *, api: int | None = None, resolvers: int | None = None, seconds=300.0) -> None:
        """Requests that every caller has per window; None: as many as they like."""
        given = {"api": api, "resolvers": resolvers}
        self.limits = Quota({k: v for k, v in given.items() if v is not None}, seconds)

    def asked(self, method: str, path: str, server: str = "hub") -> list[Request]:
        """Logged requests whose whole path matches a regular expression."""
        return [
            request
            for request in list(self.log)
            if (request.server, request.method) == (server, method)
            and re.fullmatch(path, request.path)
        ]

    def leaks(self) -> list[Request]:
        """Requests that brought a token to another server than the Hub."""
        return [r for r in list(self.log) if r.server != "hub" and "authorization" in r.headers]
