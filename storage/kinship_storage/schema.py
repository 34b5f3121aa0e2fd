"""
The lineage's tables, as numbered migrations: SQL statements, or a function of the database.

A migration and its number (SQLite's `user_version`) are committed in one transaction, so that a
kill leaves the old schema or the new one. A released migration is never edited: add the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kinship_storage.database import Database
from kinship_storage.errors import LineageError
from kinship_storage.migrations.fifth import FIFTH
from kinship_storage.migrations.first import FIRST
from kinship_storage.migrations.fourth import FOURTH
from kinship_storage.migrations.second import SECOND
from kinship_storage.migrations.sixth import SIXTH
from kinship_storage.migrations.third import third

__all__ = ["APPLICATION_ID", "MIGRATIONS", "check", "create", "migrate", "version"]

APPLICATION_ID = 0x4B494E53  # "KINS": tells our files from other programs' databases

Migration = tuple[str, ...] | Callable[[Database], None]

MIGRATIONS: tuple[Migration, ...] = (FIRST, SECOND, third, FOURTH, FIFTH, SIXTH)


def create(db: Database) -> None:
    """The newest schema in an empty database, in no transaction of its own."""
    for migration in MIGRATIONS:
        _apply(db, migration)


def version(db: Database) -> int:
    """Number of the last migration that was applied; 0 for an empty file."""
    return _pragma(db, "user_version")


def check(db: Database, name: str, latest: int = len(MIGRATIONS)) -> int:
    """
    The file's version, if it is a lineage that we can read.

    Raises:
        LineageError: Another program's database, or one that a newer version of ours wrote.
    """
    number = version(db)
    if number == 0 and not db.table_names():
        return 0
    if _pragma(db, "application_id") != APPLICATION_ID:
        raise LineageError(
            f"{name} is another program's SQLite database, not a lineage; choose another --home"
        )
    if number > latest:
        raise LineageError(
            f"{name} has schema {number}, this version knows up to {latest}; "
            "upgrade kinship-daemon, or choose another --home"
        )
    return number


def migrate(db: Database, name: str, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """
    Brings the file to the latest schema; nothing where it has it already.

    Args:
        db: Outside a transaction, in autocommit mode.
        name: The file, for messages.
        migrations: Number n is at position n - 1.

    Returns:
        How many migrations were applied.
    """
    applied = 0
    while True:
        # The lock comes before the look: another process may be migrating the same file.
        db.execute("BEGIN IMMEDIATE")
        try:
            number = check(db, name, len(migrations))
            if number == len(migrations):
                db.rollback()
                return applied
            _apply(db, migrations[number])
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {number + 1}")
            db.commit()
        except BaseException:
            db.rollback()
            raise
        applied += 1


def _apply(db: Database, migration: Migration) -> None:
    if callable(migration):
        migration(db)
        return
    for statement in migration:
        db.execute(statement)


def _pragma(db: Database, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
