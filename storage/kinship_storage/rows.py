"""Between records and rows: which fields are JSON, how time and missing numbers are written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from kinship_storage.errors import LineageError
from kinship_storage.records import Gate, Generation, Model, Publication, ScoreRow
from kinship_storage.store import Json, Row, Store, dumps

__all__ = ["add_once", "record", "row", "stamp"]

R = TypeVar("R")

_JSON: Mapping[type, frozenset[str]] = {
    Model: frozenset({"recipe"}),
    ScoreRow: frozenset({"samples"}),
    Generation: frozenset({"settings", "facts", "decision"}),
    Gate: frozenset({"settings"}),
    Publication: frozenset({"files"}),
}


def stamp(now: datetime) -> str:
    """UTC with seconds: `2026-01-31T08:15:00Z`."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def row(item: Json, *, without: Iterable[str] = (), **changes: object) -> Row:
    """The record as a table's row; `changes` replace its fields."""
    kind, left_out = type(item), set(without)
    values = {f.name: getattr(item, f.name) for f in fields(item) if f.name not in left_out}
    return cells(kind, {**values, **changes})


def cells(kind: type, values: Mapping[str, Any]) -> Row:
    """Some of a record's fields as SQLite holds them."""
    texts = _JSON.get(kind, frozenset())
    return {name: _cell(value, name in texts) for name, value in values.items()}


def _cell(value: Json, as_json: bool) -> Json:
    if as_json:
        return None if value is None else dumps(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def record(kind: type[R], values: Mapping[str, Any], **extra: Json) -> R:
    """The row as a record; columns that the record does not have are left out."""
    texts = _JSON.get(kind, frozenset())
    known: dict[str, Any] = {}
    for f in fields(kind):  # type: ignore[arg-type]  # every record is a dataclass
        if f.name in extra or f.name not in values:
            continue
        value = values[f.name]
        known[f.name] = json.loads(value) if f.name in texts and value is not None else value
    return kind(**known, **extra)


def add_once(store: Store, table: str, key: Mapping[str, Any], values: Row, what: str) -> None:
    """
    Inserts the row, or finds it there already, its time apart.

    Raises:
        LineageError: There is another row under the key; what happened is never rewritten.
    """
    where = " AND ".join(f"{name} = ?" for name in key)
    with store.transaction():
        there = store.row(table, where, *key.values())
        if there is None:
            store.insert(table, values)
            return
    differing = [n for n in values if n not in {"created"} and values[n] != there[n]]
    if differing:
        raise LineageError(
            f"{what} is in the lineage already with another {', '.join(differing)}; "
            "what happened is not rewritten"
        )
