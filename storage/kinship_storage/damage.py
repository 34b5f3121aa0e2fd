"""Finds what is damaged in a lineage's file, down to the cell; trusts nothing that it reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from kinship_storage.cells import decode, schema
from kinship_storage.connections import in_a_line, primary_code, reading
from kinship_storage.errors import DamagedLineage, LineageError
from kinship_storage.schema import MIGRATIONS

__all__ = ["damage"]

_MOST = 20  # lines of one kind: a page of a table that is gone is hundreds of rows
# What only a damaged file fails with, where the statement is right.
_NOT_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
# Long, and of numbers alone: SQLite tells whether their types are right.
_NUMBERS = frozenset({"documents", "kinships", "parents"})


def damage(path: Path) -> list[str]:
    """
    A line per damaged cell or part of the file; empty for one that is whole.

    Raises:
        LineageError: It cannot be read at all: it is not there, or this user may not.
    """
    found: list[str] = []
    try:
        with closing(reading(path)) as connection:
            connection.text_factory = _text
            connection.execute("BEGIN")  # all of one moment, whatever a daemon writes meanwhile
            for look in (_schema, _cells, _descent, _references):
                found += islice(look(connection), _MOST)
            # Last, as it names no row.
            found += _pages(connection)
    except sqlite3.Error as error:
        if primary_code(error) in _NOT_DAMAGE:
            raise LineageError(f"cannot read {path}: {in_a_line(error)}") from error
        found.append(f"{path.name}: {in_a_line(error)}")
    except (DamagedLineage, UnicodeDecodeError):
        found.append(f"{path.name}: its schema is no text")
    return found


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _schema(connection: sqlite3.Connection) -> Iterator[str]:
    """The statements that made the tables; without them no cell has a meaning."""
    number = connection.execute("PRAGMA user_version").fetchone()[0]
    if number != len(MIGRATIONS):
        return
    there = {
        (kind, name): sql
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_schema")
    }
    for (kind, name), sql in schema().statements.items():
        if there.get((kind, name)) != sql:
            state = "is gone" if (kind, name) not in there else "is not as it was made"
            yield f"{kind} {name} {state}"


def _cells(connection: sqlite3.Connection) -> Iterator[str]:
    names = _names(connection)
    for table in _tables(connection):
        columns = schema().columns[table]
        if table in _NUMBERS:
            continue
        key = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[5]]
        for row in _rows(connection, table):
            values = dict(zip(columns, row, strict=True))
            for column, value in values.items():
                try:
                    decode(table, column, value)
                except ValueError as error:
                    which = _called(table, values, key, names)
                    yield f"{table}, row {which}, column {column}: {error}"


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[Sequence[Any]]:
    listed = ", ".join(schema().columns[table])
    yield from connection.execute(f"SELECT {listed} FROM {table}")  # noqa: S608  # our own names


def _tables(connection: sqlite3.Connection) -> list[str]:
    """Of our tables those that are there; an older schema has other ones."""
    if connection.execute("PRAGMA user_version").fetchone()[0] != len(MIGRATIONS):
        return []
    return sorted(schema().columns)


def _names(connection: sqlite3.Connection) -> dict[object, object]:
    """What people call the models, by number."""
    if not _tables(connection):
        return {}
    return dict(connection.execute("SELECT number, id FROM models").fetchall())


def _called(table: str, values: dict[str, Any], key: Sequence[str], names: dict[Any, Any]) -> str:
    """The row's id, or its key, with models by id."""
    for name in ("id", "identity", "key"):
        if name in values:
            return f"{values[name]!r:.100}"
    shown = (names.get(values[name], values[name]) if name == "model" else values[name]
             for name in key)  # fmt: skip
    return " ".join(f"{each!r:.100}" for each in shown) or table


def _descent(connection: sqlite3.Connection) -> Iterator[str]:
    """A model that descends from itself would be followed for ever."""
    if not _tables(connection):
        return
    for child, parent in connection.execute(
        "SELECT m.id, p.id FROM parents JOIN models AS m ON m.number = model"
        " JOIN models AS p ON p.number = parent WHERE p.generation >= m.generation"
    ):
        yield f"parents, row {child!r}: its parent {parent!r} is not from an earlier generation"


def _references(connection: sqlite3.Connection) -> Iterator[str]:
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        which = "a row" if row is None else f"row {row}"
        yield f"{table}: {which} refers to a row of {parent} that is gone"


def _pages(connection: sqlite3.Connection) -> Iterator[str]:
    for (line,) in connection.execute(f"PRAGMA integrity_check({_MOST})"):
        if line != "ok":
            yield f"the file: {line}"
