"""How the lineage's file is opened, for writing and for reading alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from kinship_storage.errors import DamagedLineage, LineageError

__all__ = ["BUSY_SECONDS", "empty_log", "in_a_line", "primary_code", "reading", "writing"]

BUSY_SECONDS = 30.0


def writing(path: Path) -> sqlite3.Connection:
    if not path.parent.is_dir():
        raise LineageError(f"cannot open {path}: its folder does not exist; make it first")
    return sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def reading(path: Path) -> sqlite3.Connection:
    """A connection that never writes; beside a running daemon, and on a read-only disk."""
    if not path.is_file():
        raise LineageError(f"no lineage at {path}; `kinship-daemon run` starts one")
    connection = _uri(path, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if primary_code(error) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
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
    except UnicodeDecodeError as error:
        # Python cannot read SQLite's complaint, which quotes the damaged schema.
        connection.close()
        raise DamagedLineage(
            f"{path} is damaged: its schema is no text; `kinship-daemon restore` puts a backup "
            "in its place"
        ) from error
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def empty_log(path: Path) -> bool:
    """
    Write what a file's log holds into the file itself; False where it is damaged.

    Raises:
        LineageError: Another program reads it, which needs the log.
    """
    try:
        with closing(writing(path)) as connection:
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return False
    if busy:
        raise LineageError(f"{path} is read by another program; end that program and try again")
    return True


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its extension; None where Python itself complains."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def in_a_line(error: sqlite3.Error) -> str:
    """SQLite's words, which may quote a statement of many lines."""
    return " ".join(f"{error}".split())[:200]


def _uri(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
