"""Schema 6: selection scores of which not all documents were asked."""

__all__ = ["SIXTH"]

SIXTH = (
    # Few rows: a score that is not named here is one of all its documents.
    """CREATE TABLE partials (
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
    ) STRICT, WITHOUT ROWID""",
)
