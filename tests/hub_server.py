"""
A small Hub on 127.0.0.1 for the tests, speaking real HTTP to the real client.

Two ports: the Hub itself, and a storage server that large files are redirected to and uploaded
to, so that leaving the Hub's origin is a thing that can be observed. Every request is logged, and
faults can be laid for the requests to come.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

TOKEN = "hf_tokenoftests"
START = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass
class Request:
    server: str  # "hub" or "storage"
    method: str
    path: str  # without the query
    query: dict[str, list[str]]
    headers: dict[str, str]  # lower case names


@dataclass
class Fault:
    """What goes wrong with the next `n` requests that match."""

    method: str
    path: str  # a regular expression that the whole path matches
    n: int
    # status; lost (done, but answered with `status`); truncate; corrupt (same size); stall; html
    # (with 200); pass (only adds `headers`)
    action: str
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class StoredRepo:
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    modified: datetime = START
    private: bool = False
    gated: bool | str = False
    disabled: bool = False
    extra: dict = field(default_factory=dict)  # goes into model info as it is

    @property
    def head(self) -> tuple[str, dict[str, bytes]]:
        return self.commits[-1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in {"main", "HEAD"}:
            return self.head
        return next((commit for commit in self.commits if commit[0] == revision), None)


class HubServer:
    """Use as a context manager."""

    def __init__(self, page: int = 1000) -> None:
        self.page = page
        self.repos: dict[str, StoredRepo] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._servers: list[ThreadingHTTPServer] = []

    def __enter__(self) -> "HubServer":
        for handler in (_Hub, _Storage):
            server = ThreadingHTTPServer(
                ("127.0.0.1", 0), type("Handler", (handler,), {"hub": self})
            )
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._servers.append(server)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | Path,
        card: Mapping[str, object] | None = None,
        **attributes: object,
    ) -> str:
        """A repo, or its next commit. Returns the commit."""
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes()
                for path in sorted(files.rglob("*"))
                if path.is_file()
            }
        content = {".gitattributes": b"*.safetensors filter=lfs\n", **files}
        if card is not None:
            content["README.md"] = f"---\n{yaml.safe_dump(dict(card))}---\n# {repo_id}\n".encode()
        with self.lock:
            repo = self.repos.setdefault(repo_id, StoredRepo())
            for name, value in attributes.items():
                setattr(repo, name, value)
            return self.commit(repo_id, content)

    def commit(self, repo_id: str, content: dict[str, bytes]) -> str:
        repo = self.repos[repo_id]
        text = repr((repo_id, len(repo.commits), sorted(content.items())))
        sha = hashlib.sha1(text.encode()).hexdigest()
        for data in (data for path, data in content.items() if is_lfs(path)):
            self.lfs[hashlib.sha256(data).hexdigest()] = data
        repo.commits.append((sha, content))
        repo.modified = START + timedelta(minutes=sum(len(r.commits) for r in self.repos.values()))
        return sha

    def fault(
        self, path: str, action: str = "status", *, method: str = "GET", n: int = 1, **kwargs
    ) -> None:
        self.faults.append(Fault(method, path, n, action, **kwargs))

    def asked(self, method: str, path: str, server: str = "hub") -> list[Request]:
        """Logged requests whose whole path matches a regular expression."""
        return [
            request
            for request in self.log
            if (request.server, request.method) == (server, method)
            and re.fullmatch(path, request.path)
        ]


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".model"))


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_fields(data: bytes, key: str) -> dict:
    return {key: hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}


class _Handler(BaseHTTPRequestHandler):
    """Reading, answering, logging and faults; subclasses say what is answered."""

    hub: HubServer
    name = ""
    protocol_version = "HTTP/1.1"
    # Without these every small answer takes 44 ms (delayed acknowledgement).
    disable_nagle_algorithm = True
    wbufsize = 65536

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        self.where, self.query = unquote(parts.path), parse_qs(parts.query)
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = int(headers.get("content-length", 0))
        self.body = self.rfile.read(length) if length else self._chunks(headers)
        with self.hub.lock:
            self.hub.log.append(Request(self.name, self.command, self.where, self.query, headers))
            self.fault = self._fault()
        if self.fault is not None and self.fault.action == "stall":
            self.hub.closing.wait(30)
            self.close_connection = True
        elif self.fault is not None and self.fault.action == "html":
            self.send(200, b"<html>back soon</html>", [("Content-Type", "text/html")])
        elif self.fault is not None and self.fault.action == "status":
            self.error(self.fault.status, "laid fault")
        else:
            with self.hub.lock:
                self.answer()

    do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815 - http.server's names

    def _chunks(self, headers: Mapping[str, str]) -> bytes:
        """The body of a request with chunked transfer encoding."""
        if headers.get("transfer-encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _fault(self) -> Fault | None:
        for fault in self.hub.faults:
            if fault.n and fault.method == self.command and re.fullmatch(fault.path, self.where):
                fault.n -= 1
                return fault
        return None

    def answer(self) -> None:
        raise NotImplementedError

    def send(self, status: int, data: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> None:
        fault = self.fault
        if fault is not None and fault.action == "lost":
            self.fault = None
            return self.error(fault.status, "laid fault")
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        for name, value in (fault.headers if fault else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault is not None and fault.action == "truncate":
            data, self.close_connection = data[: len(data) // 2], True
        if fault is not None and fault.action == "corrupt":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()
        return None

    def json(
        self, value: object, headers: Iterable[tuple[str, str]] = (), status: int = 200
    ) -> None:
        self.send(
            status, json.dumps(value).encode(), [("Content-Type", "application/json"), *headers]
        )

    def error(self, status: int, message: str, code: str | None = None) -> None:
        headers = [("X-Error-Message", message)] + ([("X-Error-Code", code)] if code else [])
        if self.fault is not None:
            headers += list(self.fault.headers.items())
            self.fault = None
        self.json({"error": message}, headers, status)

    def ranged(self, data: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """The whole of `data`, or the single range that was asked for."""
        headers = [*headers, ("Accept-Ranges", "bytes")]
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.send(200, data, headers)
        if not asked[1]:
            start, end = max(len(data) - int(asked[2]), 0), len(data)
        else:
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1) + 1, len(data))
        if start >= len(data):
            return self.send(416, b"", [("Content-Range", f"bytes */{len(data)}")])
        span = ("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        return self.send(206, data[start:end], [*headers, span])

    def log_message(self, *_: object) -> None:
        pass


class _Storage(_Handler):
    """Where large files lie. It never asks for a token, and must never get one."""

    name = "storage"

    def answer(self) -> None:
        oid = self.where.rpartition("/")[2]
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                return self.error(400, "content is not what was announced")
            self.hub.lfs[oid] = self.body
            return self.send(200)
        if "Signature" not in self.query or oid not in self.hub.lfs:
            return self.error(403, "not signed")
        return self.ranged(self.hub.lfs[oid], [("ETag", f'"{oid}"')])


class _Hub(_Handler):
    name = "hub"

    def answer(self) -> None:
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, self.where)
            if match and self.command in method.split():
                return getattr(self, answer)(*match.groups())
        return self.error(404, f"no such endpoint: {self.command} {self.where}")

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def found(self, repo_id: str, revision: str | None = None) -> StoredRepo | None:
        """The repo, or None after the answer has been given."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self.known):
            # The Hub does not say whether a repo that you may not see exists.
            self.error(404 if self.known else 401, "Repository not found", "RepoNotFound")
            return None
        if revision is not None and repo.at(revision) is None:
            self.error(404, "Invalid rev id", "RevisionNotFound")
            return None
        return repo

    def whoami(self) -> None:
        if not self.known:
            return self.error(401, "Invalid username or password.")
        access = {"displayName": "tests", "role": "write"}
        return self.json(
            {
                "type": "user",
                "name": "tester",
                "fullname": "",
                "orgs": [],
                "auth": {"accessToken": access},
            }
        )

    def models(self) -> None:
        wanted, search = set(self.query.get("filter", ())), self.query.get("search", [""])[0]
        limit = min(int(self.query.get("limit", [self.hub.page])[0]), self.hub.page)
        start = int(self.query.get("cursor", ["0"])[0])
        rows = [
            self.item(repo_id, repo)
            for repo_id, repo in self.hub.repos.items()
            if wanted <= set(repo_tags(repo))
            and search in repo_id
            and (not repo.private or self.known)
        ]
        rows.sort(key=lambda row: row["lastModified"], reverse=True)
        if keys := self.query.get("expand"):
            rows = [{k: row[k] for k in ("_id", "id", "modelId", *keys)} for row in rows]
        headers = []
        if start + limit < len(rows):
            query = self.query | {"cursor": [str(start + limit)]}
            link = f"{self.hub.url}/api/models?{urlencode(query, doseq=True)}"
            headers = [("Link", f'<{link}>; rel="next"')]
        self.json(rows[start : start + limit], headers)

    def item(
        self, repo_id: str, repo: StoredRepo, revision: str = "main", blobs: bool = False
    ) -> dict:
        sha, files = repo.at(revision) or repo.head
        siblings = [sibling(path, data, blobs) for path, data in sorted(files.items())]
        return {
            "_id": hashlib.md5(repo_id.encode()).hexdigest()[:24],
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.partition("/")[0],
            "sha": sha,
            "lastModified": stamp(repo.modified),
            "createdAt": stamp(START),
            "private": repo.private,
            "gated": repo.gated,
            "disabled": repo.disabled,
            "downloads": 0,
            "likes": 0,
            "tags": repo_tags(repo),
            "cardData": front_matter(files),
            "config": parsed(files.get("config.json", b"{}")),
            "siblings": siblings,
            **repo.extra,
        }

    def model(self, repo_id: str, revision: str | None = None) -> None:
        if repo := self.found(repo_id, revision):
            self.json(self.item(repo_id, repo, revision or "main", "blobs" in self.query))

    def tree(self, repo_id: str, revision: str) -> None:
        if repo := self.found(repo_id, revision):
            files = repo.at(revision)[1]
            rows = [
                {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
                | ({"lfs": lfs_fields(data, "oid")} if is_lfs(path) else {})
                for path, data in sorted(files.items())
            ]
            self.json(rows)

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self.found(repo_id, revision)
        if repo is None:
            return None
        sha, files = repo.at(revision)
        commit = ("X-Repo-Commit", sha)
        if repo.gated and not self.known:
            return self.error(403, f"Access to model {repo_id} is restricted", "GatedRepo")
        if path not in files:
            headers = [commit, ("X-Error-Code", "EntryNotFound"), ("X-Error-Message", "no entry")]
            return self.json({"error": "no entry"}, headers, 404)
        data = files[path]
        if not is_lfs(path):
            return self.ranged(data, [commit, ("ETag", f'"{blob_id(data)}"')])
        oid = hashlib.sha256(data).hexdigest()
        target = f"{self.hub.storage_url}/lfs/{oid}?Signature=secret&Expires=3600"
        linked = [("X-Linked-Size", str(len(data))), ("X-Linked-Etag", f'"{oid}"')]
        return self.send(302, b"", [commit, ("Location", target), *linked])

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        if not self.known:
            return self.error(401, "Invalid username or password.")
        if repo_id.startswith("forbidden/"):
            return self.error(403, "You don't have the rights to create a model under 'forbidden'")
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repos:
            return self.json({"error": "You already created this model repo", "url": url}, (), 409)
        self.hub.add(repo_id, {}, private=asked.get("visibility") == "private")
        return self.json({"url": url})

    def validate_yaml(self) -> None:
        text = json.loads(self.body)["content"]
        try:
            yaml.safe_load(text.split("---")[1])
        except yaml.YAMLError as error:
            return self.json({"errors": [{"message": str(error)}], "warnings": []}, (), 400)
        return self.json({"errors": [], "warnings": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        if repo := self.found(repo_id, revision):
            head = repo.head[1]
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_lfs(file["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": blob_id(head[file["path"]]) if file["path"] in head else None,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.json({"files": files})

    def batch(self, repo_id: str) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs:
                entry["actions"] = {
                    "upload": {
                        "href": f"{self.hub.storage_url}/upload/{item['oid']}",
                        "header": {},
                    },
                    "verify": {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/verify"},
                }
            objects.append(entry)
        self.json({"transfer": "basic", "objects": objects})

    def verify(self, _repo_id: str) -> None:
        asked = json.loads(self.body)
        data = self.hub.lfs.get(asked["oid"])
        if data is None or len(data) != asked["size"]:
            return self.error(404, "not uploaded")
        return self.json({})

    def commit(self, repo_id: str, revision: str) -> None:
        repo = self.found(repo_id, revision)
        if repo is None:
            return None
        if not self.known:
            return self.error(401, "Invalid username or password.")
        sha, files = repo.head
        content = dict(files)
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header" and value.get("parentCommit", sha) != sha:
                return self.error(412, "A commit has happened since. Please refresh and try again.")
            if entry["key"] == "file":
                content[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                content[value["path"]] = self.hub.lfs[value["oid"]]
        oid = self.hub.commit(repo_id, content)
        return self.json({"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"})


_ID = r"([^/]+/[^/]+)"
_ROUTES = (
    ("GET", "/api/whoami-v2", "whoami"),
    ("GET", "/api/models", "models"),
    ("GET", f"/api/models/{_ID}", "model"),
    ("GET", f"/api/models/{_ID}/revision/(.+)", "model"),
    ("GET", f"/api/models/{_ID}/tree/([^/]+)", "tree"),
    ("GET HEAD", f"/{_ID}/resolve/([^/]+)/(.+)", "resolve"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", f"/api/models/{_ID}/preupload/(.+)", "preupload"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{_ID}\.git/info/lfs/verify", "verify"),
    ("POST", f"/api/models/{_ID}/commit/(.+)", "commit"),
)


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def parsed(data: bytes) -> dict | None:
    try:
        return json.loads(data)
    except ValueError:
        return None


def sibling(path: str, data: bytes, blobs: bool) -> dict:
    if not blobs:
        return {"rfilename": path}
    entry = {"rfilename": path, "size": len(data), "blobId": blob_id(data)}
    return entry | ({"lfs": lfs_fields(data, "sha256")} if is_lfs(path) else {})


def front_matter(files: Mapping[str, bytes]) -> dict | None:
    text = files.get("README.md", b"").decode()
    try:
        return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except yaml.YAMLError:
        return None


def repo_tags(repo: StoredRepo) -> list[str]:
    """A card's own tags, and those that the Hub makes of its base models."""
    card = front_matter(repo.head[1]) or {}
    bases = card.get("base_model") or []
    bases = [bases] if isinstance(bases, str) else bases
    relation = card.get("base_model_relation")
    related = [f"base_model:{relation}:{base}" for base in bases] if relation else []
    return [*card.get("tags", ()), *(f"base_model:{base}" for base in bases), *related]
