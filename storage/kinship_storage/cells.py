"""What each cell of the file may hold, and its value: one notion for reading and for `verify`."""

from __future__ import annotations

import json
import re
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, get_args

from kinship_storage.database import Database
from kinship_storage.records import Kind, Split, StopKind
from kinship_storage.schema import create
from kinship_storage.transitions import Cause, JobStatus, Status

__all__ = ["TIME", "decode", "moment", "schema"]

TIME = "%Y-%m-%dT%H:%M:%SZ"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\dZ", re.ASCII)

_TYPES: Mapping[str, type] = {"TEXT": str, "INTEGER": int, "REAL": float, "BLOB": bytes}
_TIMES = frozenset({"created", "modified", "retry_at", "due", "started", "finished"})
_FLAGS = frozenset({"gated", "triaged", "gone", "passed"})
_CHOICES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("models", "kind"): get_args(Kind),
    ("models", "status"): get_args(Status),
    ("models", "cause"): get_args(Cause),
    ("scores", "split"): get_args(Split),
    ("generations", "stop_kind"): get_args(StopKind),
    ("jobs", "status"): get_args(JobStatus),
    ("jobs", "cause"): get_args(Cause),
}


def decode(table: str, column: str, value: object) -> Any:
    """
    The value of a cell: JSON is parsed, packed facts are unpacked, all else stays as it is.

    Args:
        value: As SQLite gives it; text that is no UTF-8 as bytes.

    Raises:
        ValueError: The cell cannot hold that; the message says what it holds.
    """
    kind, needed = schema().columns[table][column]
    if value is None:
        if needed:
            raise ValueError("is empty")
        return None
    if type(value) is not _TYPES[kind]:
        raise ValueError(f"holds {_shown(value)}, not {kind.lower()}")
    if (choices := _CHOICES.get((table, column))) is not None and value not in choices:
        raise ValueError(f"holds {_shown(value)}, not one of {', '.join(choices)}")
    if column in _FLAGS and value not in (0, 1):
        raise ValueError(f"holds {_shown(value)}, not 0 or 1")
    if column in _TIMES:
        moment(str(value))
    read = _PARSED.get((table, column))
    return value if read is None else read(value)


def moment(time: str) -> datetime:
    """The time that `rows.stamp` wrote; ValueError for any other text."""
    try:
        # Not strptime, which takes half the time of a read of thousands.
        if _TIME.fullmatch(time):
            return datetime.fromisoformat(time)
    except ValueError:
        pass
    raise ValueError(f"holds {_shown(time)}, not a time")


class _Schema:
    """The newest schema: statements by (type, name), and (type, NOT NULL) by table and column."""

    def __init__(self, db: Database) -> None:
        found = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
        self.statements = {(kind, name): sql for kind, name, sql in found}
        self.columns = {
            name: {
                column: (kind, bool(needed or key))
                for _, column, kind, needed, _, key in db.execute(f"PRAGMA table_info({name})")
            }
            for kind, name in self.statements
            if kind == "table"
        }


@cache
def schema() -> _Schema:
    """Of a lineage that was made just now."""
    db = Database(sqlite3.connect(":memory:", isolation_level=None), execute_plugins=False)
    try:
        create(db)
        return _Schema(db)
    finally:
        db.close()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"holds {_shown(text)}, which is no JSON") from None


def _mapping(text: str) -> Any:
    found = _json(text)
    if not isinstance(found, dict):
        raise ValueError(f"holds {_shown(text)}, not a JSON object")
    return found


def _decision(text: str) -> Any:
    found = _mapping(text)
    merges, mean = found.get("merges", []), found.get("top_mean_kinship")
    if not isinstance(merges, list) or not all(
        isinstance(merge, dict) and _are_names(merge.get("parents")) for merge in merges
    ):
        raise ValueError("holds merges that are none")
    if not _are_names(found.get("top", [])):
        raise ValueError("holds a top that is no list of models")
    if not (mean is None or isinstance(mean, int | float)):
        raise ValueError(f"holds {_shown(mean)} as the mean kinship of its top")
    return found


def _ancestry(text: str) -> Any:
    found = _mapping(text)
    parts = found.get("parts")
    if not (
        all(isinstance(found.get(name), bool) for name in ("stranger", "merge"))
        and all(isinstance(found.get(name), int) for name in ("matrices", "unlike"))
        and all(_is_number(found.get(name), needed=False) for name in ("likeness", "rest"))
        and isinstance(parts, list)
        and all(isinstance(part, dict) and isinstance(part.get("model"), str) for part in parts)
        and all(_is_number(part.get(name)) for part in parts for name in ("coefficient", "error"))
    ):
        raise ValueError(f"holds {_shown(text)}, which is no ancestry")
    return found


def _is_number(value: object, *, needed: bool = True) -> bool:
    return isinstance(value, int | float) or (value is None and not needed)


def _files(text: str) -> Any:
    found = _mapping(text)
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"holds {_shown(text)}, not the hashes of files")
    return found


def _facts(packed: bytes) -> Any:
    try:
        found = json.loads(zlib.decompress(packed))
    except (zlib.error, ValueError, RecursionError):
        raise ValueError("holds facts that cannot be unpacked") from None
    members = found.get("members", []) if isinstance(found, dict) else None
    if not isinstance(members, list) or not all(
        isinstance(member, dict) and isinstance(member.get("name"), str) for member in members
    ):
        raise ValueError("holds facts that are none")
    return found


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _shown(value: object) -> str:
    return f"{value!r:.60}"


_PARSED: Mapping[tuple[str, str], Callable[[Any], Any]] = {
    ("home", "value"): _json,
    ("models", "recipe"): _mapping,
    ("candidates", "ancestry"): _ancestry,
    ("generations", "settings"): _mapping,
    ("generations", "decision"): _decision,
    ("gates", "settings"): _mapping,
    ("publications", "files"): _files,
    ("jobs", "inputs"): _mapping,
    ("events", "facts"): _mapping,
    ("facts", "value"): _facts,
}
