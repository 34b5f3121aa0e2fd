"""Between records and rows: which fields are JSON, how time and missing numbers are written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from kinship_storage.errors import LineageError
from kinship_storage.records import Gate, Generation, Job, Model, Publication
from kinship_storage.store import Json, Row, Store, dumps

__all__ = [
    "add_once",
    "cells",
    "model_number",
    "moment",
    "record",
    "row",
    "stamp",
    "weights_number",
]

R = TypeVar("R")

_JSON: Mapping[type, frozenset[str]] = {
    Model: frozenset({"recipe"}),
    Generation: frozenset({"settings", "decision"}),
    Gate: frozenset({"settings"}),
    Publication: frozenset({"files"}),
    Job: frozenset({"inputs"}),
}
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def stamp(now: datetime) -> str:
    """UTC with seconds: `2026-01-31T08:15:00Z`."""
    return now.astimezone(UTC).strftime(_TIME)


def moment(time: str) -> datetime:
    """The time that `stamp` wrote."""
    return datetime.strptime(time, _TIME).replace(tzinfo=UTC)


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
        if f.name in texts and value is not None:
            value = json.loads(value)
        known[f.name] = bool(value) if f.type == "bool" else value
    return kind(**known, **extra)


def model_number(store: Store, model: str) -> int:
    """
    The key of a model inside the file.

    Raises:
        LineageError: No model of that id.
    """
    found = store.query("SELECT number FROM models WHERE id = ?", [model])
    if not found:
        raise LineageError(
            f"no model {model!r} in {store.path}; `kinship-daemon lineage` lists them"
        )
    return int(found[0]["number"])


def weights_number(store: Store, identity: str) -> int:
    """The key of these weights inside the file; they are written down if they are new."""
    store.execute("INSERT OR IGNORE INTO weights (identity) VALUES (?)", [identity])
    found = store.query("SELECT number FROM weights WHERE identity = ?", [identity])
    return int(found[0]["number"])


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
