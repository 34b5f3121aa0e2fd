"""
The lineage's file: opened with the durability we promise, its errors turned into words.

Everything that talks to SQLite goes through `Store`, so that a full disk or a lock is one clear
line wherever it strikes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from kinship_storage.connections import BUSY_SECONDS, in_a_line, primary_code, reading, writing
from kinship_storage.damage import damage
from kinship_storage.database import Database
from kinship_storage.errors import DamagedLineage, LineageError
from kinship_storage.schema import MIGRATIONS, check, migrate

__all__ = ["Json", "Row", "Store", "dumps"]

Json = Any  # whatever JSON can say
Row = dict[str, Any]

_READONLY = "cannot write {path}: it is read-only; make it writable, or choose another --home"
_LOCKED = (
    f"cannot write {{path}}: another program has kept it locked for {BUSY_SECONDS:.0f} s; "
    "end that program and start again"
)
_WORDS: Mapping[int, str] = {
    sqlite3.SQLITE_NOTADB: (
        "{path} is not a database; move it away, or `kinship-daemon restore` a backup"
    ),
    sqlite3.SQLITE_CORRUPT: (
        "{path} is damaged ({error}); `kinship-daemon restore` puts a backup in its place"
    ),
    sqlite3.SQLITE_FULL: "cannot write {path}: the disk is full; free some space and start again",
    sqlite3.SQLITE_READONLY: _READONLY,
    sqlite3.SQLITE_PERM: _READONLY,
    sqlite3.SQLITE_CANTOPEN: (
        "cannot open {path}: it or its folder is not accessible; "
        "make it readable and writable, or choose another --home"
    ),
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_IOERR: (
        "cannot read or write {path}: {error}; look at the disk it is on, and at the limit of a "
        "file's size (`ulimit -f`)"
    ),
    sqlite3.SQLITE_CONSTRAINT: "{path} refuses a row that contradicts the others: {error}",
}

_DAMAGE = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})


def dumps(value: Json) -> str:
    """Canonical JSON: sorted keys, no spaces, exact floats, NaN and infinity refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


class Store:
    """One connection. For one thread at a time, which need not be the one that opened it."""

    def __init__(
        self, path: Path, *, readonly: bool = False, beside: bool = False, whole: bool = False
    ) -> None:
        """
        Opens the file; for writing only if no cell of it is damaged.

        Args:
            readonly: Never writes.
            beside: A daemon may be at work on the same file; it alone changes more than the log.
            whole: This process has found every cell whole, and holds the file since.
        """
        self.path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._beside = beside
        self._guard: sqlite3.Connection | None = None
        self._held: _Held | None = None
        with self._in_words():
            if not (readonly or whole) and path.is_file() and path.stat().st_size:
                self._check_whole()
            self._db = Database(
                reading(path) if readonly else writing(path),
                recursive_triggers=False,
                execute_plugins=False,
            )
        try:
            with self._in_words():
                self._prepare(readonly, beside)
        except BaseException:
            self.close()
            raise

    def _check_whole(self) -> None:
        """Before anything is written: what is damaged is left as it is."""
        with closing(reading(self.path)) as connection:
            check(Database(connection, execute_plugins=False), str(self.path))
        if found := damage(self.path):
            raise self._damaged(found[0])

    def _damaged(self, what: str) -> DamagedLineage:
        return DamagedLineage(
            f"{self.path} is damaged: {what}; `kinship-daemon verify` lists all, "
            "`kinship-daemon restore` puts a backup in its place"
        )

    def _prepare(self, readonly: bool, beside: bool) -> None:
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
        if beside:
            self._db.execute("PRAGMA wal_autocheckpoint = 0")
        migrate(self._db, str(self.path))
        self._guard = reading(self.path)
        self._held = self._look()

    def close(self) -> None:
        """
        Closes the file. Of one that is not as we left it nothing is written over.

        The last writer to close copies its log into the file. A reader that is still there keeps
        it from that.
        """
        held, self._held = self._held, None
        now = None if held is None else self._look()
        if self._guard is not None and now == held:
            self._guard.close()
        self._db.close()
        if self._guard is not None:
            self._guard.close()
        if held is not None and now is not None and now.is_other_file_under_log_of(held):
            # SQLite would play our log into the file that has taken our file's name.
            self._log.rename(self._log.with_name(f"{self._log.name}.of-replaced-file"))

    def check_in_place(self) -> None:
        """
        Looks whether the file is still the one that was opened, as we left it.

        Raises:
            DamagedLineage: It was deleted, replaced or changed by another program meanwhile.
        """
        if self._held is None:
            return
        try:
            now = self._look()
        except PermissionError:
            return  # what may not be looked at is not known to be gone
        if now == self._held:
            return
        what = "deleted" if now.file is None else "replaced or changed by another program"
        raise DamagedLineage(
            f"{self.path} was {what} while it was open; nothing more is written to it: put it "
            "back, or `kinship-daemon restore` a backup, then start again"
        )

    def blame(self, error: Exception) -> None:
        """Raises the damage that explains an error; returns if all is whole."""
        if self.path.is_file() and (found := damage(self.path)):
            raise self._damaged(found[0]) from error

    def backup(self, target: Path) -> None:
        """SQLite's own online backup, to a file that is to be there whole before this returns."""
        with self._in_words(), closing(sqlite3.connect(target, isolation_level=None)) as copy:
            self._db.conn.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # no log beside it: one file is all
        if found := damage(target):
            raise self._damaged(found[0])

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
                self.check_in_place()
                self._db.commit()
                self._note_file()
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
            changed = self._db.execute(sql, args).rowcount
            if not self.in_transaction:
                self._note_file()
            return changed

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs one statement for every row, in one transaction; for rows by the thousand."""
        with self.transaction():
            self._db.conn.executemany(sql, rows)

    def _note_file(self) -> None:
        """A commit may have copied the log into the file."""
        if self._held is not None:
            self._held = self._look()

    def _look(self) -> _Held:
        found = _Held.of(self.path, self._log)
        if not self._beside or found.file is None:
            return found
        # The daemon's commits may copy the log into the file at any time.
        return replace(found, file=(*found.file[:2], 0, 0))

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            # A transaction looks when it begins and before it commits.
            if self._held is not None and not self.in_transaction:
                self.check_in_place()
            yield
        except UnicodeDecodeError as error:
            self.blame(error)  # of SQLite's own words, which quote what is damaged
            raise
        except sqlite3.Error as error:
            words = _words(error, self.path)
            if words is None:
                # A column that is gone, text that is no text: a damaged file, or else a bug.
                self.blame(error)
                raise
            kind = DamagedLineage if primary_code(error) in _DAMAGE else LineageError
            raise kind(words) from error


@dataclass(frozen=True)
class _Held:
    """
    By what a file is known again: (device, inode, size, time of change) of it; None if it is gone.

    Attributes:
        log: The same of its write-ahead log without size and time, which others may write, too.
    """

    file: tuple[int, int, int, int] | None
    log: tuple[int, int] | None

    def is_other_file_under_log_of(self, held: Self) -> bool:
        if self.file is None or held.file is None or self.log is None:
            return False
        return self.file[:2] != held.file[:2] and self.log == held.log

    @classmethod
    def of(cls, path: Path, log_path: Path) -> Self:
        try:
            file = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return cls(None, None)
        known = (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)
        try:
            log = log_path.stat()
        except FileNotFoundError:
            return cls(known, None)
        return cls(known, (log.st_dev, log.st_ino))


def _words(error: sqlite3.Error, path: Path) -> str | None:
    """One line for what the outside world did to us; None for what only a bug can cause."""
    code = primary_code(error)
    words = None if code is None else _WORDS.get(code)
    return None if words is None else words.format(path=path, error=in_a_line(error))
