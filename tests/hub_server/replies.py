"""An answer before it is sent, and what a fault makes of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from hub_server.content import Blob
from hub_server.faults import Fault


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | tuple[Blob, int, int] = b""  # or a span of a blob
    value: object = None  # JSON, where there is no body
    has_value: bool = False

    def settle(self) -> None:
        """JSON into bytes."""
        if self.has_value:
            self.body, self.has_value = json.dumps(self.value).encode(), False

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body[2] - self.body[1]

    def blocks(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body
        else:
            blob, start, end = self.body
            yield from blob.chunks(start, end)


def spoil(reply: Reply, fault: Fault) -> None:
    """What a fault does to an answer before it is sent."""
    if fault.action == "changed":
        etag = f'"{"e" * 64}"'
        named = {"etag": etag, "x-linked-etag": etag, "x-repo-commit": "c" * 40}
        reply.headers = [(name, named.get(name.lower(), value)) for name, value in reply.headers]
    edit = {"tags-null": _tags_null, "card": _odd_card, "shape": _reshaped, "edit": fault.edit}.get(
        fault.action
    )
    if edit is not None and reply.has_value:
        # A copy: the value may share parts with what the server keeps.
        reply.value = edit(json.loads(json.dumps(reply.value)))


def _rows(value: object) -> list[dict]:
    return [row for row in (value if isinstance(value, list) else [value]) if isinstance(row, dict)]


def _reshaped(value: object) -> object:
    return {"items": value} if isinstance(value, list) else [value]


def _tags_null(value: object) -> object:
    for row in _rows(value):
        row["tags"] = None
    return value


def _odd_card(value: object) -> object:
    for row in _rows(value):
        row.update(cardData="not an object", config=["neither"])
    return value
