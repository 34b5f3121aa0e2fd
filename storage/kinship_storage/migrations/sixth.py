"""Schema 6: what a candidate's sample tells of its ancestry."""

__all__ = ["SIXTH"]

_ANCESTRY = ("ALTER TABLE candidates ADD COLUMN ancestry TEXT",)

SIXTH = (*_ANCESTRY,)
