"""
The lineage's tables, as numbered migrations.

A migration and its number (SQLite's `user_version`) are committed in one transaction, so that a
kill leaves the old schema or the new one. A released migration is never edited: add the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlite_utils import Database

from kinship_storage.errors import LineageError

__all__ = ["APPLICATION_ID", "MIGRATIONS", "migrate", "version"]

APPLICATION_ID = 0x4B494E53  # "KINS": tells our files from other programs' databases

Migration = tuple[str, ...]

_FIRST: Migration = (
    "CREATE TABLE home (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """CREATE TABLE models (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('base', 'finetune', 'adapter', 'merge')),
        status TEXT NOT NULL
            CHECK (status IN ('seen', 'proposed', 'admitted', 'refused', 'quarantined')),
        generation INTEGER NOT NULL,
        repo TEXT,
        revision TEXT,
        weights TEXT,
        parameters INTEGER,
        license TEXT,
        reason TEXT,
        role TEXT,
        why TEXT,
        recipe TEXT,
        joined INTEGER,
        created TEXT NOT NULL
    ) STRICT""",
    "CREATE INDEX models_by_weights ON models (weights)",
    "CREATE INDEX models_by_repo ON models (repo, revision)",
    """CREATE TABLE parents (
        model TEXT NOT NULL REFERENCES models (id),
        position INTEGER NOT NULL,
        parent TEXT NOT NULL REFERENCES models (id),
        PRIMARY KEY (model, position)
    ) STRICT""",
    "CREATE INDEX parents_by_parent ON parents (parent)",
    """CREATE TABLE files (
        model TEXT NOT NULL REFERENCES models (id),
        path TEXT NOT NULL,
        size INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (model, path)
    ) STRICT""",
    # By weights, not by model: the same bytes under two names have one kinship and one score.
    """CREATE TABLE kinships (
        metric TEXT NOT NULL,
        a TEXT NOT NULL,
        b TEXT NOT NULL,
        value REAL,
        PRIMARY KEY (metric, a, b),
        CHECK (a <= b)
    ) STRICT""",
    """CREATE TABLE scores (
        number INTEGER PRIMARY KEY,
        weights TEXT NOT NULL,
        task TEXT NOT NULL,
        split TEXT NOT NULL CHECK (split IN ('selection', 'validation')),
        settings TEXT NOT NULL,
        metric TEXT NOT NULL,
        task_version TEXT NOT NULL,
        score REAL NOT NULL,
        stderr REAL,
        n INTEGER NOT NULL,
        seed INTEGER NOT NULL,
        harness TEXT NOT NULL,
        samples TEXT NOT NULL,
        UNIQUE (weights, split, task, settings)
    ) STRICT""",
    """CREATE TABLE generations (
        number INTEGER PRIMARY KEY,
        policy TEXT NOT NULL,
        settings TEXT NOT NULL,
        seed INTEGER NOT NULL,
        facts TEXT NOT NULL,
        decision TEXT NOT NULL,
        stop TEXT,
        created TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE gates (
        model TEXT PRIMARY KEY REFERENCES models (id),
        parent TEXT NOT NULL REFERENCES models (id),
        passed INTEGER NOT NULL CHECK (passed IN (0, 1)),
        gain REAL NOT NULL,
        low REAL NOT NULL,
        high REAL NOT NULL,
        n INTEGER NOT NULL,
        reason TEXT NOT NULL,
        settings TEXT NOT NULL,
        created TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE publications (
        model TEXT PRIMARY KEY REFERENCES models (id),
        repo TEXT NOT NULL,
        revision TEXT NOT NULL,
        url TEXT NOT NULL,
        files TEXT NOT NULL,
        created TEXT NOT NULL
    ) STRICT""",
    # A job may be about a model that is not known yet (its download), so `model` is no reference.
    """CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        model TEXT,
        status TEXT NOT NULL
            CHECK (status IN ('pending', 'running', 'done', 'failed', 'quarantined')),
        attempts INTEGER NOT NULL,
        reason TEXT,
        started TEXT,
        finished TEXT
    ) STRICT""",
    "CREATE INDEX jobs_by_status ON jobs (status)",
    """CREATE TABLE hashes (
        path TEXT PRIMARY KEY,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        sha256 TEXT NOT NULL
    ) STRICT""",
)

_SECOND: Migration = (
    """CREATE TABLE candidates (
        model TEXT PRIMARY KEY REFERENCES models (id),
        modified TEXT NOT NULL CHECK (modified GLOB '????-??-??T??:??:??Z'),
        downloads INTEGER NOT NULL,
        likes INTEGER NOT NULL,
        bytes INTEGER,
        triaged INTEGER NOT NULL CHECK (triaged IN (0, 1)),
        novelty REAL,
        novelty_error REAL,
        read_bytes INTEGER NOT NULL,
        gone INTEGER NOT NULL CHECK (gone IN (0, 1))
    ) STRICT""",
    # Who was noticed before there were candidates is one, too: those who wait go on waiting.
    """INSERT INTO candidates
        SELECT id, created, 0, 0, NULL, status <> 'seen', NULL, NULL, 0, 0
        FROM models WHERE kind IN ('finetune', 'adapter') AND repo IS NOT NULL""",
    """CREATE TABLE samples (
        plan TEXT NOT NULL,
        model TEXT NOT NULL REFERENCES models (id),
        vector BLOB NOT NULL,
        PRIMARY KEY (plan, model)
    ) STRICT""",
    "CREATE INDEX samples_by_model ON samples (model)",
    # Ten thousand refused candidates must not be read to find the few models at work.
    "CREATE INDEX models_by_status ON models (status, id)",
    "CREATE INDEX models_by_kind ON models (kind, status)",
    "CREATE INDEX jobs_by_kind ON jobs (kind, status)",
)

MIGRATIONS: tuple[Migration, ...] = (_FIRST, _SECOND)


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
            for statement in migrations[number]:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {number + 1}")
            db.commit()
        except BaseException:
            db.rollback()
            raise
        applied += 1


def _pragma(db: Database, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
