"""The Hub's endpoints that change things: repos, uploads and commits."""

import base64
import json
import re
from collections.abc import Mapping

from hub_server import cards
from hub_server.cdn import signed
from hub_server.connection import Connection
from hub_server.content import Content, is_lfs
from hub_server.store import StoredRepo

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(?<![.-])")


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Writing(Connection):
    def may_write(self, namespace: str, what: str) -> bool:
        """False after the answer has been given."""
        if self.token is None:
            self.error(401, "Invalid username or password.")
        elif not self.token.writes(namespace):
            right = f"You don't have the rights to {what} under the namespace {namespace!r}"
            read_only = self.token.role == "read"
            self.error(403, "Forbidden: you must use a write token" if read_only else right)
        else:
            return True
        return False

    def _named(self, asked: Mapping) -> str | None:
        """The id that a request to create or delete speaks of."""
        name = asked.get("name")
        if self.token is None:
            self.error(401, "Invalid username or password.")
        elif asked.get("type", "model") not in {"model", None}:
            self.error(400, "only models are kept here")
        elif not isinstance(name, str) or not all(map(_NAME.fullmatch, name.split("/"))):
            self.error(400, f"Invalid repo name: {name}")
        elif "/" in name:
            return name
        else:
            return f"{asked.get('organization') or self.token.user}/{name}"
        return None

    def create(self) -> None:
        asked = self.body_object()
        repo_id = None if asked is None else self._named(asked)
        if repo_id is None or not self.may_write(repo_id.partition("/")[0], "create a model"):
            return None
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repos:
            message = "You already created this model repo"
            headers = [("X-Error-Message", message)]
            return self.json({"error": message, "url": url}, headers, 409)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.add(repo_id, {}, private=private)
        files = self._initial_files(asked)
        if files:
            self.hub.commit(repo_id, files)
        return self.json({"url": url, "name": repo_id, "id": self.hub.object_id(repo_id)})

    def _initial_files(self, asked: Mapping) -> dict[str, Content]:
        """The npm client may send files along with the creation."""
        given = {
            file["path"]: base64.b64decode(file["content"])
            for file in asked.get("files") or ()
            if file.get("encoding") == "base64"
        }
        return given and {".gitattributes": b"*.safetensors filter=lfs\n", **given}

    def delete(self) -> None:
        asked = self.body_object()
        repo_id = None if asked is None else self._named(asked)
        if repo_id is None or self.found(repo_id) is None:
            return None
        if not self.may_write(repo_id.partition("/")[0], "delete a model"):
            return None
        del self.hub.repos[repo_id]
        return self.json({})

    def validate_yaml(self) -> None:
        asked = self.body_object()
        if asked is None:
            return None
        errors = [{"message": text} for text in cards.complaints(str(asked.get("content", "")))]
        return self.json({"errors": errors, "warnings": []}, (), 400 if errors else 200)

    def preupload(self, repo_id: str, revision: str) -> None:
        repo, asked = self.found(repo_id, revision), self.body_object()
        if repo is None or asked is None:
            return
        head = repo.blobs(repo.at(revision)[0])
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_lfs(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": head[file["path"]].oid if file["path"] in head else None,
            }
            for file in asked["files"]
        ]
        self.json({"files": files, "commitOid": repo.head[0]})

    def batch(self, repo_id: str) -> None:
        repo, asked = self.found(repo_id), self.body_object()
        if repo is None or asked is None:
            return
        if asked.get("operation") == "upload" and not self.may_write(
            repo_id.partition("/")[0], "upload"
        ):
            return
        objects = [self._transfer(repo_id, item["oid"], item["size"]) for item in asked["objects"]]
        named = {"transfer": "basic", "objects": objects, "hash_algo": "sha256"}
        self.json(named, [("Content-Type", "application/vnd.git-lfs+json")])

    def _transfer(self, repo_id: str, oid: str, size: int) -> dict:
        object_ = {"oid": oid, "size": size, "authenticated": True}
        if oid in self.hub.lfs:
            return object_
        expires = int(self.hub.clock() + self.hub.signed_seconds)
        upload = signed(self.hub.storage_url, f"/upload/{oid}", expires)
        verify = {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/verify"}
        return object_ | {"actions": {"upload": {"href": upload, "header": {}}, "verify": verify}}

    def verify(self, _repo_id: str) -> None:
        asked = self.body_object()
        if asked is None:
            return None
        oid = asked.get("oid")
        if oid not in self.hub.lfs or self.hub.lfs_blob(oid).size != asked.get("size"):
            return self.error(404, "not uploaded")
        return self.json({})

    def commit(self, repo_id: str, revision: str) -> None:
        repo = self.found(repo_id, revision)
        if repo is None or not self.may_write(repo_id.partition("/")[0], "commit to a model"):
            return None
        if revision != "main":
            return self.error(400, "only main takes commits here")
        try:
            header, content = self._changed(repo)
        except Refused as refused:
            return self.error(refused.status, str(refused), refused.code)
        except (ValueError, KeyError, TypeError) as odd:
            return self.error(400, f"cannot be read: {type(odd).__name__} {odd}")
        oid = self.hub.commit(repo_id, content)
        author = self.token.user if self.token else "tester"
        title, message = header.get("summary", ""), header.get("description", "")
        self.hub.describe(repo_id, oid, title, message, author)
        url = f"{self.hub.url}/{repo_id}/commit/{oid}"
        return self.json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _changed(self, repo: StoredRepo) -> tuple[dict, dict[str, Content]]:
        """A commit's header, and the content that its lines make of the head."""
        sha, files = repo.head
        content, header = dict(files), {}
        for line in filter(None, self.body.splitlines()):
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                header = value
                if value.get("parentCommit", sha) != sha:
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                content[value["path"]] = _decoded(value)
            elif key == "lfsFile":
                content[value["path"]] = self._uploaded(value)
            elif key == "deletedFile":
                if content.pop(value["path"], None) is None:
                    raise Refused(404, f"no such file: {value['path']}", "EntryNotFound")
            elif key == "deletedFolder":
                _delete_folder(content, value["path"])
            else:
                raise Refused(400, f"no such operation: {key}")
        _check_paths(content)
        return header, content

    def _uploaded(self, value: Mapping) -> Content:
        if value["oid"] not in self.hub.lfs:
            raise Refused(400, f"{value['path']}: its LFS pointer points to nothing")
        return self.hub.lfs[value["oid"]]

    def found(self, repo_id: str, revision: str | None = None) -> StoredRepo | None:
        raise NotImplementedError


def _decoded(value: Mapping) -> bytes:
    if value.get("encoding", "base64") == "base64":
        data = base64.b64decode(value["content"])
    else:
        data = value["content"].encode()
    if value["path"] == "README.md" and (said := cards.complaints(data.decode())):
        raise Refused(400, f"Invalid metadata in README.md: {said[0]}")
    return data


def _delete_folder(content: dict[str, Content], folder: str) -> None:
    inside = [path for path in content if path.startswith(folder.rstrip("/") + "/")]
    if not inside:
        raise Refused(404, f"no such folder: {folder}", "EntryNotFound")
    for path in inside:
        del content[path]


def _check_paths(content: Mapping[str, Content]) -> None:
    for path in content:
        steps = path.split("/")
        if not path or "" in steps or {".", "..", ".git"} & set(steps):
            raise Refused(400, f"not a path: {path!r}")
