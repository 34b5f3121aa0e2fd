"""
The lineage's file: opened with the durability we promise, its errors turned into words.

Everything that talks to SQLite goes through `Store`, so that a full disk or a lock is one clear
line wherever it strikes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from kinship_storage.errors import LineageError
from kinship_storage.schema import MIGRATIONS, check, migrate

__all__ = ["Json", "Row", "Store", "dumps"]

Json = Any  # whatever JSON can say
Row = dict[str, Any]

_BUSY_SECONDS = 30.0

_READONLY = "cannot write {path}: it is read-only; make it writable, or choose another --home"
_LOCKED = (
    f"cannot write {{path}}: another program has kept it locked for {_BUSY_SECONDS:.0f} s; "
    "end that program and start again"
)
_WORDS: Mapping[int, str] = {
    sqlite3.SQLITE_NOTADB: "{path} is not a database; move it away, or choose another --home",
    sqlite3.SQLITE_CORRUPT: "{path} is damaged ({error}); put a backup in its place",
    sqlite3.SQLITE_FULL: "cannot write {path}: the disk is full; free some space and start again",
    sqlite3.SQLITE_READONLY: _READONLY,
    sqlite3.SQLITE_PERM: _READONLY,
    sqlite3.SQLITE_CANTOPEN: (
        "cannot open {path}: it or its folder is not accessible; "
        "make it readable and writable, or choose another --home"
    ),
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_IOERR: "cannot read or write {path}: {error}; look at the disk it is on",
    sqlite3.SQLITE_CONSTRAINT: "{path} refuses a row that contradicts the others: {error}",
}


def dumps(value: Json) -> str:
    """Canonical JSON: sorted keys, no spaces, exact floats, NaN and infinity refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


class Store:
    """One connection. For one thread at a time, which need not be the one that opened it."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        with self._in_words():
            connection = _read(path) if readonly else _write(path)
            self._db = Database(connection, recursive_triggers=False, execute_plugins=False)
        try:
            with self._in_words():
                self._prepare(readonly)
        except BaseException:
            self.close()
            raise

    def _prepare(self, readonly: bool) -> None:
        self._db.execute("PRAGMA foreign_keys = ON")
        if readonly:
            number = check(self._db, str(self.path))
            if number < len(MIGRATIONS):
                raise LineageError(
                    f"{self.path} has schema {number}, this version reads {len(MIGRATIONS)}; "
                    "`kinship-daemon run` on this home brings it up to date"
                )
            return
        check(self._db, str(self.path))  # before the next line would change a stranger's file
        self._db.enable_wal()
        # FULL, not WAL's usual NORMAL: a commit is on the disk when it returns, come a power cut.
        self._db.execute("PRAGMA synchronous = FULL")
        migrate(self._db, str(self.path))

    def close(self) -> None:
        self._db.close()

    @property
    def in_transaction(self) -> bool:
        return self._db.conn.in_transaction

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; an inner one alone can be rolled back by catching its exception."""
        with self._in_words():
            if self.in_transaction:
                with self._db.atomic():
                    yield
                return
            # IMMEDIATE: a deferred one fails at its first write when another writer was quicker.
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.commit()
            except BaseException:
                self._db.rollback()
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside is from one moment, whatever a daemon writes meanwhile."""
        with self._in_words():
            if self.in_transaction:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.rollback()

    def rows(
        self,
        table: str,
        where: str | None = None,
        args: Sequence[Any] = (),
        *,
        order: str,
        select: str = "*",
    ) -> list[Row]:
        with self._in_words():
            found = self._db.table(table).rows_where(where, args, order_by=order, select=select)
            return list(found)

    def query(self, sql: str, args: Sequence[Any] = ()) -> list[Row]:
        with self._in_words():
            return list(self._db.query(sql, args))

    def row(self, table: str, where: str, *args: object) -> Row | None:
        """The first row that matches, None if there is none."""
        with self._in_words():
            return next(self._db.table(table).rows_where(where, args, limit=1), None)

    def insert(self, table: str, *rows: Mapping[str, Any], ignore: bool = False) -> None:
        """All rows in one transaction; `ignore` leaves those alone whose key is there."""
        with self.transaction():
            self._db.table(table).insert_all([dict(row) for row in rows], ignore=ignore)

    def replace(self, table: str, row: Mapping[str, Any]) -> None:
        with self.transaction():
            self._db.table(table).insert(dict(row), replace=True)

    def execute(self, sql: str, args: Sequence[Any] = ()) -> int:
        """Runs one statement that changes rows and returns how many."""
        with self._in_words():
            return self._db.execute(sql, args).rowcount

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs one statement for every row, in one transaction; for rows by the thousand."""
        with self.transaction():
            self._db.conn.executemany(sql, rows)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            words = _words(error, self.path)
            if words is None:
                raise
            raise LineageError(words) from error


def _write(path: Path) -> sqlite3.Connection:
    if not path.parent.is_dir():
        raise LineageError(f"cannot open {path}: its folder does not exist; make it first")
    return sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _read(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise LineageError(f"no lineage at {path}; `kinship-daemon run` starts one")
    connection = _uri(path, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if _primary(error) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            raise
        wal = path.with_name(f"{path.name}-wal")
        if wal.exists() and wal.stat().st_size:
            raise LineageError(
                f"{path} was not closed in order and its folder is read-only; "
                "make it writable, or copy the folder to where it is"
            ) from error
        # A log-less file on a read-only disk: readers' shared memory cannot be made beside it, and
        # is not needed, for nobody can write.
        return _uri(path, "immutable=1")
    return connection


def _uri(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _primary(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _words(error: sqlite3.Error, path: Path) -> str | None:
    """One line for what the outside world did to us; None for what only a bug can cause."""
    code = _primary(error)
    words = None if code is None else _WORDS.get(code)
    return None if words is None else words.format(path=path, error=error)
