"""A hub's description of a repo, checked before anything believes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kinship_daemon.errors import Unavailable, UsageError
from kinship_daemon.foreign.shown import shown
from kinship_daemon.hub.names import check_revision
from kinship_daemon.hub.records import Repo, RepoFile

__all__ = ["described", "utc"]

_MOST_BYTES = 1 << 50
_LONGEST_PATH = 1000
_EPOCH = datetime.fromtimestamp(0, UTC)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


def described(repo_id: str, data: object) -> Repo:
    """
    A repo from the JSON of `GET /api/models/ID?blobs=true`.

    Args:
        repo_id: What we asked for. It stays our name for it, also when the repo was renamed.

    Raises:
        Unavailable: The answer makes no sense, names a file that could not be one, or leaves out
            what files are checked by.
    """
    try:
        return _described(repo_id, data)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, UsageError):
        # UsageError: its commit is not a revision.
        # Perhaps a bit that flipped on the way: never final by itself.
        raise Unavailable(f"the hub describes {repo_id} in a way that cannot be read") from None


def utc(text: str) -> datetime:
    """
    A moment as the hub writes it; one without a zone is taken for UTC.

    One before 1970, such as the year 1 of a hub that does not know, is the beginning of 1970.
    """
    moment = datetime.fromisoformat(text)
    return max(moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC), _EPOCH)


def _described(repo_id: str, data: Any) -> Repo:
    card, config, modified = data.get("cardData"), data.get("config"), data.get("lastModified")
    if not isinstance(data["siblings"], list):
        raise TypeError
    files = [_file(repo_id, sibling) for sibling in data["siblings"]]
    if sum(file.size for file in files) >= _MOST_BYTES:
        raise ValueError
    readable = card is None or isinstance(card, dict)
    return Repo(
        id=repo_id,
        revision=check_revision(data["sha"]),
        modified=utc(modified) if modified else _EPOCH,
        card=_card(card) if isinstance(card, dict) else {},
        files=tuple(sorted(files, key=lambda file: file.path)),
        gated=bool(data.get("gated")),
        private=bool(data.get("private")),
        disabled=bool(data.get("disabled")),
        config=config if isinstance(config, dict) else {},
        problem=None if readable else "README.md's front matter is not a mapping",
    )


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Front matter, less the evaluation results, which nobody here reads and some are long."""
    return {k: v for k, v in card.items() if v is not None and k != "model-index"}


def _file(repo_id: str, sibling: Any) -> RepoFile:
    path, lfs = sibling["rfilename"], sibling.get("lfs")
    if not isinstance(path, str):
        raise TypeError
    odd = len(path) > _LONGEST_PATH or _CONTROL.search(path)
    if odd or any(part in {"", ".", ".."} for part in path.split("/")):
        raise Unavailable(
            f"{repo_id} has a file named '{shown(path)}', which is not a path in a repo"
        )
    size = lfs["size"] if lfs else sibling.get("size")
    if size is None:
        # Taken for empty, it would be fetched as an empty file. No fault of the repo's.
        raise Unavailable(
            f"the hub tells no sizes of {repo_id}'s files, as some mirrors do not; "
            "use another --hub"
        )
    if type(size) is not int or not 0 <= size < _MOST_BYTES:
        raise Unavailable(
            f"{repo_id} {shown(path)}: its size is said to be {shown(size, 40)} bytes"
        )
    return RepoFile(
        path=path,
        size=size,
        sha256=_hex(lfs["sha256"], 64) if lfs else None,
        blob=None if lfs else _hex(sibling.get("blobId"), 40),
    )


def _hex(text: Any, length: int) -> str | None:
    if text is None and length == 40:
        return None
    if not re.fullmatch(rf"[0-9a-f]{{{length}}}", text):
        raise ValueError
    return str(text)
