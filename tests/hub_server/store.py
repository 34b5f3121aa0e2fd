"""What the server keeps: repos with their commits, and what the Hub derives from a head."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hub_server import cards
from hub_server.content import Blob, Content, parameters

START = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass
class Details:
    """A commit beyond its content."""

    blobs: dict[str, Blob]
    title: str = "commit"
    message: str = ""
    author: str = "tester"
    date: datetime = START


@dataclass
class StoredRepo:
    """Tests may read and change every field at any time, `extra` and `allowed` too."""

    commits: list[tuple[str, dict[str, Content]]] = field(default_factory=list)
    modified: datetime = START
    created: datetime = START
    private: bool = False
    gated: bool | str = False
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    trending: int = 0
    allowed: set[str] = field(default_factory=set)  # users who may read the files when gated
    tags: dict[str, str] = field(default_factory=dict)  # git's: name to commit
    extra: dict = field(default_factory=dict)  # goes into model info and listings as it is
    details: dict[str, Details] = field(default_factory=dict)
    _facts: "Facts | None" = None

    @property
    def head(self) -> tuple[str, dict[str, Content]]:
        return self.commits[-1]

    def at(self, revision: str) -> tuple[str, dict[str, Content]] | None:
        if revision in {"main", "HEAD", "refs/heads/main"}:
            return self.head
        sha = self.tags.get(revision.removeprefix("refs/tags/"), revision)
        return next((commit for commit in reversed(self.commits) if commit[0] == sha), None)

    def blobs(self, sha: str) -> dict[str, Blob]:
        if sha not in self.details:
            content = next(content for name, content in self.commits if name == sha)
            self.details[sha] = Details(make_blobs(content, {}))
        return self.details[sha].blobs

    @property
    def facts(self) -> "Facts":
        """Read out of the head once for every commit."""
        sha = self.head[0]
        if self._facts is None or self._facts.sha != sha:
            self._facts = Facts(sha, self.blobs(sha))
        return self._facts


def make_blobs(content: Mapping[str, Content], known: Mapping[str, Blob]) -> dict[str, Blob]:
    """A commit's blobs; those of its parent that did not change keep their hashes."""
    return {
        path: known[path] if path in known and known[path].content is data else Blob(path, data)
        for path, data in sorted(content.items())
    }


def commit_name(repo_id: str, parent: str | None, blobs: Mapping[str, Blob]) -> str:
    listed = [(path, blob.etag) for path, blob in blobs.items()]
    return hashlib.sha1(repr((repo_id, parent, listed)).encode()).hexdigest()


class Facts:
    """What the Hub derives from a commit's files."""

    def __init__(self, sha: str, blobs: dict[str, Blob]) -> None:
        self.sha = sha
        self.blobs = blobs

    @functools.cached_property
    def card(self) -> dict | None:
        readme = self.blobs.get("README.md")
        card = cards.front_matter(readme.whole()) if readme else None
        try:
            # Dates and the like, which YAML has and JSON has not.
            return None if card is None else json.loads(json.dumps(card, default=str))
        except (ValueError, TypeError, RecursionError):  # it holds itself, or has a list as a key
            return None

    @functools.cached_property
    def tags(self) -> list[str]:
        kinds = {path.rpartition(".")[2] for path in self.blobs} & {"safetensors", "gguf"}
        return list(dict.fromkeys([*sorted(kinds), *cards.card_tags(self.card or {})]))

    @functools.cached_property
    def config(self) -> dict | None:
        """The part of config.json that the Hub shows; here, all of it."""
        try:
            return json.loads(self.blobs["config.json"].whole())
        except (KeyError, ValueError, RecursionError):
            return {}

    @functools.cached_property
    def siblings(self) -> list[dict]:
        return [{"rfilename": path} for path in self.blobs]

    @functools.cached_property
    def parameters(self) -> dict | None:
        return parameters(self.blobs)

    @functools.cached_property
    def base_models(self) -> dict | None:
        bases = cards.as_names((self.card or {}).get("base_model"))
        if not bases:
            return None
        models = [{"_id": object_id(base), "id": base} for base in bases]
        relation = (self.card or {}).get("base_model_relation") or "finetune"
        return {"relation": relation, "models": models}


@functools.lru_cache(maxsize=1 << 16)
def object_id(repo_id: str) -> str:
    return hashlib.md5(repo_id.encode()).hexdigest()[:24]


@functools.lru_cache(maxsize=1 << 16)
def stamp(moment: datetime) -> str:
    milliseconds = moment.microsecond // 1000
    return moment.astimezone(UTC).strftime(f"%Y-%m-%dT%H:%M:%S.{milliseconds:03d}Z")
