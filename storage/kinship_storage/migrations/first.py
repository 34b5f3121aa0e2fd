"""Schema 1: models, measurements, decisions and jobs."""

__all__ = ["FIRST"]

FIRST = (
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
