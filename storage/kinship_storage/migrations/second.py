"""Schema 2: candidates with what the hub says of them, and the vectors of samples."""

__all__ = ["SECOND"]

SECOND = (
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
