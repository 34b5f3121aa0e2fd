"""Schema 6: scores of which not all documents were asked; what a sample tells of ancestry."""

__all__ = ["SIXTH"]

# Few rows: a score that is not named here is one of all its documents.
_PARTIALS = """CREATE TABLE partials (
        weights INTEGER NOT NULL REFERENCES weights (number),
        settings TEXT NOT NULL,
        rung INTEGER NOT NULL,
        best INTEGER,
        share REAL,
        mean REAL,
        stderr REAL,
        PRIMARY KEY (weights, settings),
        CHECK ((best IS NULL) = (share IS NULL)),
        CHECK ((mean IS NULL) = (stderr IS NULL)),
        CHECK (best IS NOT NULL OR mean IS NULL)
    ) STRICT, WITHOUT ROWID"""
_ANCESTRY = "ALTER TABLE candidates ADD COLUMN ancestry TEXT"

SIXTH = (_PARTIALS, _ANCESTRY)
