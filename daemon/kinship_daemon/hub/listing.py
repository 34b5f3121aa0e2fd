"""Who descends from a base: the hub's listings, read no further than they bring something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from kinship_daemon.errors import UsageError
from kinship_daemon.hub.description import utc
from kinship_daemon.hub.names import check_repo_id, check_revision
from kinship_daemon.hub.records import Listing

__all__ = ["Pages", "every_descendant", "recent_descendants"]

# The pages of one listing by its query, newest line first as far as the hub keeps to it.
Pages = Callable[[Sequence[tuple[str, str]]], Iterator[Sequence[Mapping[str, Any]]]]

_PAGE = 1000  # the most that the Hub gives in one page
_SMALL_PAGE = 100  # a poll mostly brings nothing
_FIELDS = ("sha", "lastModified", "tags", "gated", "private", "disabled", "downloads", "likes")


def every_descendant(pages: Pages, base: str) -> list[Listing]:
    """
    All that the hub lists under a base, by (modified, id).

    Every descendant bears `base_model:ID`, so that listing alone brings everyone, quantised
    copies too. The two others are there for whom it missed: a page shifts while it is read.
    """
    found = _Found()
    for tag in (f"base_model:{base}", f"base_model:finetune:{base}", f"base_model:adapter:{base}"):
        for page in pages(_query(tag, _PAGE)):
            found.add(page)
    return found.sorted()


def recent_descendants(pages: Pages, base: str, since: datetime) -> list[Listing]:
    """
    Those that changed at `since` or later, by (modified, id).

    Reading ends with the first page whose last quarter is older than that: one line out of place
    does not hide those behind it. A page that is in no order at all ends nothing.
    """
    found = _Found()
    for page in pages(_query(f"base_model:{base}", _SMALL_PAGE)):
        times = [line.modified for line in found.add(page)]
        tail = times[-max(len(times) // 4, 1) :]
        if tail and _ordered(times) and max(tail) < since:
            break
    return [line for line in found.sorted() if line.modified >= since]


class _Found:
    """Lines by id; of a repo that changed while we read, the newest counts."""

    def __init__(self) -> None:
        self._lines: dict[str, Listing] = {}
        self._tags: dict[str, str] = {}  # one copy of each: ten thousand lines share them

    def add(self, page: Sequence[Mapping[str, Any]]) -> list[Listing]:
        """Returns the page's lines that can be used."""
        lines = [line for item in page if (line := self._line(item)) is not None]
        for line in lines:
            known = self._lines.get(line.id)
            if known is None or line.modified > known.modified:
                self._lines[line.id] = line
        return lines

    def sorted(self) -> list[Listing]:
        return sorted(self._lines.values(), key=lambda line: (line.modified, line.id))

    def _line(self, item: Mapping[str, Any]) -> Listing | None:
        """None if it is not one that we can use."""
        try:
            return Listing(
                id=check_repo_id(item["id"], bare=True),
                revision=check_revision(item["sha"]),
                modified=utc(item["lastModified"]),
                tags=self._shared(item.get("tags")),
                gated=bool(item.get("gated")),
                private=bool(item.get("private")),
                disabled=bool(item.get("disabled")),
                downloads=_count(item.get("downloads")),
                likes=_count(item.get("likes")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UsageError):
            return None

    def _shared(self, tags: object) -> tuple[str, ...]:
        texts = tags if isinstance(tags, list) else []
        return tuple(self._tags.setdefault(tag, tag) for tag in texts if isinstance(tag, str))


def _query(tag: str, limit: int) -> list[tuple[str, str]]:
    query = [("filter", tag), ("sort", "lastModified"), ("limit", str(limit))]
    return query + [("expand", key) for key in _FIELDS]


def _ordered(times: Sequence[datetime]) -> bool:
    """Whether a page runs from new to old, a tenth of its lines apart."""
    wrong = sum(earlier < later for earlier, later in pairwise(times))
    return wrong <= len(times) // 10


def _count(value: object) -> int:
    """At most what SQLite holds."""
    return value if type(value) is int and 0 <= value < 1 << 63 else 0
