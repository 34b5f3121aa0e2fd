"""The Hub's endpoints that read one repo: its page, tree, commits, refs and files."""

from urllib.parse import quote, urlencode

from hub_server.cdn import signed
from hub_server.connection import Connection
from hub_server.content import Blob
from hub_server.listing import info_fields, unknown_fields
from hub_server.store import Facts, StoredRepo, object_id, stamp


class Reading(Connection):
    def found(self, repo_id: str, revision: str | None = None) -> StoredRepo | None:
        """The repo, or None after the answer has been given."""
        repo = self.hub.repos.get(repo_id)
        if repo is None and repo_id in self.hub.renamed:
            self.send(307, b"", [("Location", self._moved(repo_id))])
            return None
        if repo is None or (repo.private and not self.sees(repo_id)):
            # The Hub does not say whether a repo that you may not see exists.
            message = "Repository not found" if self.token else "Invalid username or password."
            self.error(404 if self.token else 401, message, "RepoNotFound")
            return None
        if revision is not None and repo.at(revision) is None:
            self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repo

    def _moved(self, repo_id: str) -> str:
        """The same request for a repo's new name; relative, as the Hub answers."""
        return self.path.replace(repo_id, self.hub.renamed[repo_id], 1)

    def whoami(self) -> None:
        if self.token is None:
            return self.error(401, "Invalid username or password.")
        return self.json(self.token.whoami())

    def harnesses(self) -> None:
        self.json({"standardEnvVars": [], "harnesses": {}})

    def model(self, repo_id: str, revision: str | None = None) -> None:
        keys = self.expanded()
        if wrong := unknown_fields(keys):
            return self.error(400, f'"expand" does not take {", ".join(wrong)}')
        repo = self.found(repo_id, revision)
        if repo is None:
            return None
        sha = repo.at(revision or "main")[0]
        facts = repo.facts if sha == repo.head[0] else Facts(sha, repo.blobs(sha))
        return self.json(info_fields(repo_id, repo, facts, keys, "blobs" in self.query))

    def tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        repo = self.found(repo_id, revision)
        if repo is None:
            return None
        sha = repo.at(revision)[0]
        recursive = self.query.get("recursive", [""])[0].lower() in {"true", "1"}
        rows = self._entries(repo, sha, folder.strip("/"), recursive)
        if not rows and folder:
            return self._no_entry(sha, folder)
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + min(int(self.query.get("limit", ["1000"])[0]), self.hub.tree_page)
        headers = [("X-Repo-Commit", sha)]
        if end < len(rows):
            query = urlencode(self.query | {"cursor": [str(end)]}, doseq=True)
            headers.append(("Link", f'<{self.hub.url}{self.raw}?{query}>; rel="next"'))
        return self.json(rows[start:end], headers)

    def _entries(self, repo: StoredRepo, sha: str, folder: str, recursive: bool) -> list[dict]:
        prefix = f"{folder}/" if folder else ""
        rows: dict[str, dict] = {}
        for path, blob in repo.blobs(sha).items():
            if not path.startswith(prefix):
                continue
            steps = path.removeprefix(prefix).split("/")
            for depth in range(1, len(steps)) if recursive else range(1, min(len(steps), 2)):
                place = prefix + "/".join(steps[:depth])
                rows[place] = self._folder_entry(place)
            if recursive or len(steps) == 1:
                rows[path] = entry(path, blob)
        if self.query.get("expand", [""])[0].lower() in {"true", "1"}:
            details = repo.details[sha]
            last = {"id": sha, "title": details.title, "date": stamp(details.date)}
            rows = {path: row | {"lastCommit": last} for path, row in rows.items()}
        return [rows[path] for path in sorted(rows)]

    @staticmethod
    def _folder_entry(path: str) -> dict:
        return {"type": "directory", "path": path, "oid": object_id(path) + "0" * 16, "size": 0}

    def paths_info(self, repo_id: str, revision: str) -> None:
        repo = self.found(repo_id, revision)
        if repo is None:
            return
        asked = self.form()
        blobs = repo.blobs(repo.at(revision)[0])
        rows = [entry(path, blobs[path]) for path in asked.get("paths", []) if path in blobs]
        folders = [
            self._folder_entry(path)
            for path in asked.get("paths", [])
            if any(held.startswith(f"{path}/") for held in blobs)
        ]
        self.json(rows + folders)

    def commits(self, repo_id: str, revision: str) -> None:
        repo = self.found(repo_id, revision)
        if repo is None:
            return
        last = [sha for sha, _ in repo.commits].index(repo.at(revision)[0])
        rows = []
        for sha, _ in reversed(repo.commits[: last + 1]):
            repo.blobs(sha)
            details = repo.details[sha]
            rows.append(
                {
                    "id": sha,
                    "title": details.title,
                    "message": details.message,
                    "date": stamp(details.date),
                    "authors": [{"user": details.author}],
                }
            )
        self.json(rows, [("X-Total-Count", str(len(rows)))])

    def refs(self, repo_id: str) -> None:
        repo = self.found(repo_id)
        if repo is not None:
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head[0]}
            tags = [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha}
                for name, sha in sorted(repo.tags.items())
            ]
            self.json({"branches": [branch], "converts": [], "tags": tags})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        opened = self._opened(repo_id, revision, path)
        if opened is None:
            return None
        sha, blob = opened
        commit = ("X-Repo-Commit", sha)
        if not blob.lfs:
            return self.ranged(blob, [commit])
        expired = self.fault is not None and self.fault.action == "expire"
        expires = int(self.hub.clock() + (-1 if expired else self.hub.signed_seconds))
        target = signed(self.hub.storage_url, f"/lfs/{blob.sha256}", expires)
        self.hub.lfs.setdefault(blob.sha256, blob.content)
        linked = [("X-Linked-Size", str(blob.size)), ("X-Linked-Etag", f'"{blob.sha256}"')]
        headers = [commit, ("Location", target), ("ETag", f'"{blob.oid}"'), *linked]
        return self.send(302, b"", [*headers, ("Accept-Ranges", "bytes")])

    def raw_file(self, repo_id: str, revision: str, path: str) -> None:
        """As git has it: of a large file, the pointer."""
        opened = self._opened(repo_id, revision, path)
        if opened is not None:
            sha, blob = opened
            held = Blob(path.replace(".", "_"), blob.pointer) if blob.lfs else blob
            self.ranged(held, [("X-Repo-Commit", sha)])

    def _opened(self, repo_id: str, revision: str, path: str) -> tuple[str, Blob] | None:
        """A file that may be read, and its commit; None after the answer has been given."""
        repo = self.found(repo_id, revision)
        if repo is None:
            return None
        sha = repo.at(revision)[0]
        commit = ("X-Repo-Commit", sha)
        if repo.disabled:
            self.error(403, "Access to this resource is disabled.", None, [commit])
        elif repo.gated and not self._admitted_to(repo_id, repo):
            what = f"Access to model {repo_id} is restricted"
            if self.token is None:
                what += ". You must have access to it and be authenticated to access it."
            self.error(403 if self.token else 401, what, "GatedRepo", [commit])
        elif path not in repo.blobs(sha):
            self._no_entry(sha, path)
        else:
            return sha, repo.blobs(sha)[path]
        return None

    def _admitted_to(self, repo_id: str, repo: StoredRepo) -> bool:
        return self.token is not None and (self.sees(repo_id) or self.token.user in repo.allowed)

    def _no_entry(self, sha: str, path: str) -> None:
        commit = ("X-Repo-Commit", sha)
        self.error(404, f"Entry not found: {quote(path)}", "EntryNotFound", [commit])

    def sees(self, name: str) -> bool:
        return self.token is not None and self.token.sees(name.partition("/")[0])


def entry(path: str, blob: Blob) -> dict:
    row = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    return row | ({"lfs": blob.lfs_fields("oid")} if blob.lfs else {})
