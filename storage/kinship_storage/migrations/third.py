"""
Schema 3: integer keys inside, causes, results by document, decisions apart from their facts.

A lineage of thousands of models and hundreds of decisions stays small and quick. What was text in
the home's key-value table becomes columns. The old tables are set aside under other names, copied
and dropped.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from kinship_storage.database import Database

__all__ = ["third"]

_TABLES = (
    # Written once each: the identities are long, and stand in every score and kinship.
    "CREATE TABLE weights (number INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE) STRICT",
    """CREATE TABLE models (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL CHECK (kind IN ('base', 'finetune', 'merge')),
        status TEXT NOT NULL
            CHECK (status IN ('seen', 'proposed', 'admitted', 'refused', 'quarantined')),
        generation INTEGER NOT NULL,
        repo TEXT,
        revision TEXT,
        weights INTEGER REFERENCES weights (number),
        parameters INTEGER,
        license TEXT,
        reason TEXT,
        cause TEXT CHECK (cause IN ('model', 'world', 'settings')),
        setting TEXT,
        retry_at TEXT CHECK (retry_at GLOB '????-??-??T??:??:??Z'),
        faults INTEGER NOT NULL,
        folder TEXT,
        size INTEGER,
        gated INTEGER NOT NULL CHECK (gated IN (0, 1)),
        screen REAL,
        not_published TEXT,
        role TEXT,
        why TEXT,
        recipe TEXT,
        created TEXT NOT NULL,
        CHECK ((cause IS NOT NULL) = (status IN ('refused', 'quarantined')))
    ) STRICT""",
    """CREATE TABLE parents (
        model INTEGER NOT NULL REFERENCES models (number),
        position INTEGER NOT NULL,
        parent INTEGER NOT NULL REFERENCES models (number),
        PRIMARY KEY (model, position)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE files (
        model INTEGER NOT NULL REFERENCES models (number),
        path TEXT NOT NULL,
        size INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (model, path)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE candidates (
        model INTEGER PRIMARY KEY REFERENCES models (number),
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
    """CREATE TABLE samples (
        plan TEXT NOT NULL,
        model INTEGER NOT NULL REFERENCES models (number),
        vector BLOB NOT NULL,
        PRIMARY KEY (plan, model)
    ) STRICT""",
    # By weights, not by model: the same bytes under two names have one kinship and one score.
    """CREATE TABLE kinships (
        metric TEXT NOT NULL,
        a INTEGER NOT NULL REFERENCES weights (number),
        b INTEGER NOT NULL REFERENCES weights (number),
        value REAL,
        PRIMARY KEY (metric, a, b),
        CHECK (a <= b)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE scores (
        number INTEGER PRIMARY KEY,
        weights INTEGER NOT NULL REFERENCES weights (number),
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
        UNIQUE (weights, split, task, settings)
    ) STRICT""",
    # Millions of rows: no row number, and 0 and 1 take no byte of their own.
    """CREATE TABLE documents (
        score INTEGER NOT NULL REFERENCES scores (number),
        document INTEGER NOT NULL,
        value REAL NOT NULL,
        PRIMARY KEY (score, document)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE generations (
        number INTEGER PRIMARY KEY,
        generation INTEGER UNIQUE,
        policy TEXT NOT NULL,
        settings TEXT NOT NULL,
        seed INTEGER NOT NULL,
        decision TEXT NOT NULL,
        stop TEXT,
        stop_kind TEXT
            CHECK (stop_kind IN ('converged', 'policy failed', 'budget', 'nothing new')),
        created TEXT NOT NULL,
        CHECK ((stop IS NULL) = (stop_kind IS NULL))
    ) STRICT""",
    """CREATE TABLE facts (
        decision INTEGER PRIMARY KEY REFERENCES generations (number),
        value BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE gates (
        number INTEGER PRIMARY KEY,
        model INTEGER NOT NULL REFERENCES models (number),
        parent INTEGER NOT NULL REFERENCES models (number),
        passed INTEGER NOT NULL CHECK (passed IN (0, 1)),
        gain REAL NOT NULL,
        low REAL NOT NULL,
        high REAL NOT NULL,
        n INTEGER NOT NULL,
        reason TEXT NOT NULL,
        evaluation TEXT NOT NULL,
        settings TEXT NOT NULL,
        created TEXT NOT NULL,
        UNIQUE (model, evaluation)
    ) STRICT""",
    """CREATE TABLE publications (
        model INTEGER PRIMARY KEY REFERENCES models (number),
        repo TEXT NOT NULL,
        revision TEXT NOT NULL,
        url TEXT NOT NULL,
        files TEXT NOT NULL,
        created TEXT NOT NULL
    ) STRICT""",
    # A job may be about a model that is not known yet, so `model` is its id and no reference.
    """CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        inputs TEXT NOT NULL,
        model TEXT,
        status TEXT NOT NULL
            CHECK (status IN ('pending', 'running', 'waiting', 'done', 'failed')),
        cause TEXT CHECK (cause IN ('model', 'world', 'settings')),
        reason TEXT,
        due TEXT CHECK (due GLOB '????-??-??T??:??:??Z'),
        attempts INTEGER NOT NULL,
        started TEXT,
        finished TEXT,
        seconds REAL NOT NULL,
        CHECK ((cause IS NOT NULL) = (status IN ('waiting', 'failed')))
    ) STRICT""",
    """CREATE TABLE budgets (
        day TEXT NOT NULL,
        name TEXT NOT NULL,
        amount REAL NOT NULL,
        PRIMARY KEY (day, name)
    ) STRICT, WITHOUT ROWID""",
)

_INDEXES = (
    "CREATE INDEX models_by_weights ON models (weights)",
    "CREATE INDEX models_by_repo ON models (repo, revision)",
    # Ten thousand refused candidates must not be read to find the few models at work.
    "CREATE INDEX models_by_status ON models (status, id)",
    "CREATE INDEX models_by_kind ON models (kind, status)",
    "CREATE INDEX models_by_cause ON models (cause, retry_at) WHERE cause IS NOT NULL",
    "CREATE INDEX parents_by_parent ON parents (parent)",
    "CREATE INDEX samples_by_model ON samples (model)",
    "CREATE INDEX jobs_by_status ON jobs (status, due)",
    "CREATE INDEX jobs_by_kind ON jobs (kind, status)",
    "CREATE INDEX jobs_by_model ON jobs (model)",
)

_COPIES = (
    """INSERT INTO weights (identity)
        SELECT weights FROM old_models WHERE weights IS NOT NULL
        UNION SELECT weights FROM old_scores""",
    """INSERT INTO models
        SELECT NULL, o.id, iif(kind = 'adapter', 'finetune', kind), status, generation, repo,
            revision, w.number, parameters, license, reason, c.cause, c.setting, NULL, 0,
            NULL, NULL, 0, NULL, NULL, role, why, recipe, created
        FROM old_models AS o LEFT JOIN weights AS w ON w.identity = o.weights
        LEFT JOIN causes AS c ON c.id = o.id ORDER BY o.rowid""",
    """INSERT INTO parents
        SELECT m.number, position, p.number FROM old_parents AS o
        JOIN models AS m ON m.id = o.model JOIN models AS p ON p.id = o.parent""",
    """INSERT INTO files
        SELECT m.number, path, o.size, sha256
        FROM old_files AS o JOIN models AS m ON m.id = o.model""",
    """INSERT INTO candidates
        SELECT m.number, modified, downloads, likes, bytes, triaged, novelty, novelty_error,
            read_bytes, gone
        FROM old_candidates AS o JOIN models AS m ON m.id = o.model""",
    """INSERT INTO samples
        SELECT plan, m.number, vector FROM old_samples AS o JOIN models AS m ON m.id = o.model""",
    """INSERT INTO scores
        SELECT o.number, w.number, task, split, settings, metric, task_version, score, stderr, n,
            seed, harness
        FROM old_scores AS o JOIN weights AS w ON w.identity = o.weights""",
    """INSERT INTO generations
        SELECT number, iif(stop IS NULL, number, NULL), policy, settings, seed, decision, stop,
            CASE WHEN stop IS NULL THEN NULL
                WHEN stop LIKE 'the policy failed: %' THEN 'policy failed'
                WHEN stop LIKE 'no more merges are allowed%' THEN 'budget'
                WHEN stop = 'the policy proposed nothing new' THEN 'nothing new'
                ELSE 'converged' END,
            created
        FROM old_generations""",
    """INSERT INTO gates
        SELECT NULL, m.number, p.number, passed, gain, low, high, n, o.reason,
            coalesce(o.settings ->> '$.evaluation', ''), settings, o.created
        FROM old_gates AS o JOIN models AS m ON m.id = o.model JOIN models AS p ON p.id = o.parent
        ORDER BY o.rowid""",
    """INSERT INTO publications
        SELECT m.number, o.repo, o.revision, url, files, o.created
        FROM old_publications AS o JOIN models AS m ON m.id = o.model""",
    # A failed job was one of the world, and started again; a quarantined one was final.
    """INSERT INTO jobs
        SELECT number, key, kind, '{}', model,
            CASE status WHEN 'quarantined' THEN 'failed' WHEN 'failed' THEN 'waiting'
                ELSE status END,
            CASE status WHEN 'quarantined' THEN 'model' WHEN 'failed' THEN 'world' END,
            reason, NULL, attempts, started, finished,
            max(0.0, coalesce(round((julianday(finished) - julianday(started)) * 86400), 0.0))
        FROM old_jobs""",
    """INSERT INTO budgets
        SELECT value ->> 0, substr(key, 7), value ->> 1 FROM home WHERE key LIKE 'spent:%'""",
    "DELETE FROM home WHERE key LIKE 'spent:%'",
)

# Children first, so that no reference hangs.
_OLD = (
    *("samples", "candidates", "files", "parents", "kinships", "scores"),
    *("gates", "publications", "generations", "jobs", "models"),
)
_COLUMNS = ("folder", "size", "gated", "screen", "not_published")
_EVALUATING = ("score", "screen", "merge", "validate")


def third(db: Database) -> None:
    """Brings schema 2 to schema 3, within the open transaction."""
    for table in _OLD:
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for statement in _TABLES:
        db.execute(statement)
    db.execute("CREATE TABLE causes (id TEXT PRIMARY KEY, cause TEXT, setting TEXT)")
    db.conn.executemany("INSERT INTO causes VALUES (?, ?, ?)", list(_causes(db)))
    for statement in _COPIES:
        db.execute(statement)
    db.conn.executemany("INSERT INTO documents VALUES (?, ?, ?)", _documents(db))
    db.conn.executemany("INSERT INTO facts VALUES (?, ?)", _facts(db))
    db.conn.executemany("INSERT OR IGNORE INTO kinships VALUES (?, ?, ?, ?)", list(_kinships(db)))
    _columns(db)
    db.execute("DROP TABLE causes")
    for table in _OLD:
        db.execute(f"DROP TABLE old_{table}")
    for statement in _INDEXES:
        db.execute(statement)


def _causes(db: Database) -> Iterator[tuple[str, str, str | None]]:
    """Whose fault it is that a model was set aside: (id, cause, setting)."""
    newest = dict(
        db.execute(
            "SELECT model, kind FROM old_jobs WHERE status IN ('failed', 'quarantined')"
            " ORDER BY coalesce(finished, ''), number"
        ).fetchall()
    )
    found = db.execute(
        "SELECT id, status, reason FROM old_models WHERE status IN ('refused', 'quarantined')"
    ).fetchall()
    for model, status, reason in found:
        if status == "refused":
            yield model, *_refused(reason or "")
        elif newest.get(model) in _EVALUATING:
            yield model, "settings", "evaluate"
        else:
            yield model, "model", None


def _refused(reason: str) -> tuple[str, str | None]:
    rule = re.search(r"triage\.\w+", reason)
    if rule is not None:
        return "settings", rule[0]
    if reason.startswith("the quick screen gives"):
        return "settings", "admission.screen_margin"
    return ("world", None) if "gone from the hub" in reason else ("model", None)


def _documents(db: Database) -> Iterator[tuple[int, int, float]]:
    """Python reads every float exactly as it was written, which SQLite's JSON may not."""
    for number, samples in db.execute("SELECT number, samples FROM old_scores ORDER BY number"):
        for document, value in sorted(json.loads(samples)):
            yield number, document, float(value)


def _facts(db: Database) -> Iterator[tuple[int, bytes]]:
    """Whole, as they were written."""
    for number, facts in db.execute("SELECT number, facts FROM old_generations ORDER BY number"):
        yield number, zlib.compress(facts.encode())


def _kinships(db: Database) -> Iterator[tuple[str, int, int, float | None]]:
    """Those of pairs that a decision named: parents of its merges, and pairs within its top."""
    weights = dict(db.execute("SELECT id, weights FROM models WHERE weights IS NOT NULL"))
    named = {
        (min(pair), max(pair))
        for (decision,) in db.execute("SELECT decision FROM generations")
        for models in _together(json.loads(decision))
        for pair in combinations([weights[model] for model in models if model in weights], 2)
    }
    for metric, a, b, value in db.execute(
        "SELECT metric, x.number, y.number, value FROM old_kinships"
        " JOIN weights AS x ON x.identity = a JOIN weights AS y ON y.identity = b"
    ):
        if (min(a, b), max(a, b)) in named:
            yield metric, min(a, b), max(a, b), value


def _together(decision: dict[str, Any]) -> Iterator[list[str]]:
    yield decision.get("top", [])
    for merge in decision.get("merges", []):
        yield merge["parents"]


def _columns(db: Database) -> None:
    """What the home knew of single models, as text keys."""
    for name in _COLUMNS:
        found = db.execute(
            "SELECT key, value FROM home WHERE substr(key, 1, ?) = ?",
            [len(name) + 1, f"{name}:"],
        ).fetchall()
        for key, text in found:
            value = json.loads(text)
            if name == "gated":
                value = bool(value)
            db.execute(
                f"UPDATE models SET {name} = ? WHERE id = ?",  # noqa: S608  # names are this file's own
                [value, key.partition(":")[2]],
            )
            db.execute("DELETE FROM home WHERE key = ?", [key])
