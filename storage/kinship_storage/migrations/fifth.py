"""Schema 5: the outbox: what the world outside is to be told, and whom it was told."""

__all__ = ["FIFTH"]

FIFTH = (
    # An event may be about a model that is forgotten later, so `model` is its id and no reference.
    """CREATE TABLE events (
        number INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        message TEXT NOT NULL,
        model TEXT,
        facts TEXT NOT NULL,
        created TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE deliveries (
        notifier TEXT PRIMARY KEY,
        event INTEGER NOT NULL
    ) STRICT""",
)
