"""Between records and rows: which fields are JSON, how time and missing numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from kinship_storage.cells import TIME, decode, moment
from kinship_storage.errors import DamagedLineage, LineageError
from kinship_storage.records import (
    Candidate,
    Event,
    File,
    Gate,
    Generation,
    Job,
    Model,
    Partial,
    Publication,
    Score,
)
from kinship_storage.store import Json, Row, Store, dumps

__all__ = [
    "add_once",
    "cell",
    "cells",
    "damaged",
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
    Candidate: frozenset({"ancestry"}),
    Generation: frozenset({"settings", "decision"}),
    Gate: frozenset({"settings"}),
    Publication: frozenset({"files"}),
    Job: frozenset({"inputs"}),
    Event: frozenset({"facts"}),
}
_TABLES: Mapping[type, str] = {
    Model: "models",
    Candidate: "candidates",
    File: "files",
    Score: "scores",
    Partial: "partials",
    Generation: "generations",
    Gate: "gates",
    Publication: "publications",
    Job: "jobs",
    Event: "events",
}
# What a row is called, the first that it has.
_KEYS = ("id", "key", "number", "path", "decision")


def stamp(now: datetime) -> str:
    """UTC with seconds: `2026-01-31T08:15:00Z`."""
    return now.astimezone(UTC).strftime(TIME)


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
    """
    The row as a record; columns that the record does not have are left out.

    Raises:
        DamagedLineage: A cell holds what it cannot.
    """
    table = _TABLES[kind]
    known: dict[str, Any] = {}
    for f in fields(kind):  # type: ignore[arg-type]  # every record is a dataclass
        if f.name in extra or f.name not in values:
            continue
        value = cell(table, f.name, values)
        known[f.name] = bool(value) if f.type == "bool" else value
    return kind(**known, **extra)


def cell(table: str, column: str, values: Mapping[str, Any]) -> Json:
    """
    The value of one cell of a row.

    Raises:
        DamagedLineage: It holds what it cannot.
    """
    try:
        return decode(table, column, values[column])
    except ValueError as error:
        which = next((values[key] for key in _KEYS if key in values), "")
        raise damaged(table, which, column, str(error)) from None


def damaged(table: str, which: object, column: str, problem: str) -> DamagedLineage:
    return DamagedLineage(
        f"the lineage is damaged: {table}, row {which!r:.100}, column {column}: it {problem}; "
        "`kinship-daemon verify` lists all, `kinship-daemon restore` brings back a backup"
    )


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


def add_once(store: Store, table: str, key: Mapping[str, Any], values: Row, what: str) -> bool:
    """
    Inserts the row, or finds it there already, its time apart; returns whether it is new.

    Raises:
        LineageError: There is another row under the key; what happened is never rewritten.
    """
    where = " AND ".join(f"{name} = ?" for name in key)
    with store.transaction():
        there = store.row(table, where, *key.values())
        if there is None:
            store.insert(table, values)
            return True
    differing = [n for n in values if n not in {"created"} and values[n] != there[n]]
    if differing:
        raise LineageError(
            f"{what} is in the lineage already with another {', '.join(differing)}; "
            "what happened is not rewritten"
        )
    return False
