"""GET /api/models and the fields of a model, fast with ten thousand repos."""

import base64
import heapq
import json
from collections.abc import Callable, Iterable
from urllib.parse import urlencode

from hub_server.connection import Connection
from hub_server.content import blob_id
from hub_server.store import Facts, StoredRepo, object_id, stamp

_Field = Callable[[str, StoredRepo, Facts], object]

FIELDS: dict[str, _Field] = {
    "author": lambda name, *_: name.partition("/")[0],
    "sha": lambda _n, _r, facts: facts.sha,
    "lastModified": lambda _n, repo, _f: stamp(repo.modified),
    "createdAt": lambda _n, repo, _f: stamp(repo.created),
    "private": lambda _n, repo, _f: repo.private,
    "gated": lambda _n, repo, _f: repo.gated,
    "disabled": lambda _n, repo, _f: repo.disabled,
    "downloads": lambda _n, repo, _f: repo.downloads,
    "likes": lambda _n, repo, _f: repo.likes,
    "trendingScore": lambda _n, repo, _f: repo.trending,
    "tags": lambda _n, _r, facts: facts.tags,
    "pipeline_tag": lambda _n, _r, facts: (facts.card or {}).get("pipeline_tag"),
    "library_name": lambda _n, _r, facts: (facts.card or {}).get("library_name"),
    "cardData": lambda _n, _r, facts: facts.card,
    "config": lambda _n, _r, facts: facts.config,
    "siblings": lambda _n, _r, facts: facts.siblings,
    "model-index": lambda _n, _r, facts: (facts.card or {}).get("model-index"),
    "baseModels": lambda _n, _r, facts: facts.base_models,
    "safetensors": lambda _n, _r, facts: facts.parameters,
    "usedStorage": lambda _n, _r, facts: sum(blob.size for blob in facts.blobs.values()),
}
# Names that the Hub takes too, and that nothing here has a value for.
_EMPTY = """
    childrenModelCount downloadsAllTime evalResults gguf inference inferenceProviderMapping
    mask_token resourceGroup spaces transformersInfo widgetData xetEnabled
"""
_BRIEF = [
    "likes",
    "trendingScore",
    "private",
    "downloads",
    "tags",
    "pipeline_tag",
    "library_name",
    "createdAt",
]
_FULL = [*_BRIEF, "author", "sha", "lastModified", "gated", "disabled", "siblings"]
_INFO = [*_FULL, "cardData", "config", "model-index", "safetensors", "usedStorage"]
_SORTS: dict[str, Callable[[StoredRepo], object]] = {
    "createdAt": lambda repo: repo.created.timestamp(),
    "lastModified": lambda repo: repo.modified.timestamp(),
    "downloads": lambda repo: repo.downloads,
    "likes": lambda repo: repo.likes,
    "trendingScore": lambda repo: repo.trending,
}


def fields(name: str, repo: StoredRepo, facts: Facts, keys: Iterable[str]) -> dict:
    row = {"_id": object_id(name), "id": name, "modelId": name}
    for key in keys:
        if key in FIELDS:
            row[key] = FIELDS[key](name, repo, facts)
        if key in repo.extra:
            row[key] = repo.extra[key]
    return row | {key: value for key, value in repo.extra.items() if key in row}


def unknown_fields(keys: Iterable[str]) -> list[str]:
    return sorted(set(keys) - FIELDS.keys() - set(_EMPTY.split()))


class TagIndex:
    """Which repos have a tag, by their heads; told of every commit and every new name."""

    def __init__(self) -> None:
        self._tags: dict[str, list[str]] = {}
        self._tagged: dict[str, set[str]] = {}

    def renew(self, name: str, facts: Facts) -> None:
        for tag in self._tags.get(name, ()):
            self._tagged[tag].discard(name)
        self._tags[name] = facts.tags
        for tag in facts.tags:
            self._tagged.setdefault(tag, set()).add(name)

    def having(self, tags: Iterable[str]) -> Iterable[str]:
        """Names with all tags; of repos that were deleted since, too."""
        sets = sorted((self._tagged.get(tag, set()) for tag in tags), key=len)
        return set.intersection(*sets) if sets else self._tags


class Listing(Connection):
    def expanded(self) -> list[str]:
        """The fields that were asked for, in either of the spellings that clients use."""
        return [*self.query.get("expand", []), *self.query.get("expand[]", [])]

    def models(self) -> None:
        keys = self.expanded()
        if wrong := unknown_fields(keys):
            return self.error(400, f'"expand" does not take {", ".join(wrong)}')
        sort = self.query.get("sort", ["trendingScore"])[0]
        if sort not in _SORTS:
            return self.error(400, f'"sort" must be one of [{", ".join(_SORTS)}]')
        limit = self.query.get("limit", [str(self.hub.page)])[0]
        if not limit.isdigit() or not int(limit):
            return self.error(400, '"limit" must be a positive number')
        size = min(int(limit), self.hub.page)
        rows = self._page(sort, size + 1)
        if rows is None:
            return self.error(400, "Invalid cursor")
        page = rows[:size]
        headers = []
        if len(rows) > size:
            link = self._link(self._cursor(page[-1]))
            headers = [("Link", f'<{link}>; rel="next"')]
        shown = keys or self._shown()
        return self.json([self._row(name, shown) for _, name in page], headers)

    def _row(self, name: str, keys: Iterable[str]) -> dict:
        repo = self.hub.repos[name]
        return fields(name, repo, repo.facts, keys)

    def _shown(self) -> list[str]:
        keys = list(_FULL if "full" in self.query else _BRIEF)
        return keys + [key for key in ("cardData", "config") if key in self.query]

    def _page(self, sort: str, size: int) -> list[tuple[object, str]] | None:
        """The first (sort value, name) after the cursor, largest first; ties by name."""
        after, shuffled = None, self.fault is not None and self.fault.action == "out-of-order"
        if cursor := self.query.get("cursor"):
            try:
                value, name, mode = json.loads(base64.urlsafe_b64decode(cursor[0]))
                after = (value, name)
            except (ValueError, TypeError):
                return None
            shuffled = mode == "shuffled"
        # Every page after a disordered one goes on in the same disorder: nothing is left out.
        self._mode = "shuffled" if shuffled else "sorted"
        key = _SORTS[sort]
        rows = [
            (blob_id(name.encode()) if shuffled else key(repo), name)
            for name, repo in self._matching()
        ]
        if after is not None:
            rows = [row for row in rows if row < after]
        if len(rows) > 4 * size:
            return heapq.nlargest(size, rows)
        return sorted(rows, reverse=True)[:size]

    def _matching(self) -> list[tuple[str, StoredRepo]]:
        repos = self.hub.repos
        wanted = [tag for text in self.query.get("filter", ()) for tag in text.split(",") if tag]
        wanted += [tag for key in ("pipeline_tag", "library") for tag in self.query.get(key, ())]
        found = [(name, repos[name]) for name in self.hub.index.having(wanted) if name in repos]
        found = [(name, repo) for name, repo in found if not repo.private or self.sees(name)]
        if search := self.query.get("search", [""])[0].lower():
            found = [(name, repo) for name, repo in found if search in name.lower()]
        if author := self.query.get("author", [""])[0]:
            found = [(name, repo) for name, repo in found if name.startswith(f"{author}/")]
        if gated := self.query.get("gated", [""])[0].lower():
            found = [(name, repo) for name, repo in found if bool(repo.gated) == (gated == "true")]
        return found

    def _cursor(self, last: tuple[object, str]) -> str:
        return base64.urlsafe_b64encode(json.dumps([*last, self._mode]).encode()).decode()

    def _link(self, cursor: str) -> str:
        query = urlencode(self.query | {"cursor": [cursor]}, doseq=True)
        return f"{self.hub.url}{self.raw}?{query}"

    def sees(self, name: str) -> bool:
        raise NotImplementedError


def info_fields(
    name: str, repo: StoredRepo, facts: Facts, keys: Iterable[str], blobs: bool
) -> dict:
    """A model's own page: every field, or those that were asked for."""
    row = fields(name, repo, facts, keys or _INFO)
    if blobs and "siblings" in row and "siblings" not in repo.extra:
        row["siblings"] = [sibling(path, blob) for path, blob in facts.blobs.items()]
    return row if keys else row | repo.extra


def sibling(path: str, blob) -> dict:
    entry = {"rfilename": path, "size": blob.size, "blobId": blob.oid}
    return entry | ({"lfs": blob.lfs_fields("sha256")} if blob.lfs else {})
