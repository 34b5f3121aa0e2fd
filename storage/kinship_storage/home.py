"""The part of the lineage that is about its home: facts, budgets, files whose hash is known."""

from __future__ import annotations

from pathlib import Path

from kinship_storage.rows import cell
from kinship_storage.store import Json, Store, dumps

__all__ = ["Home"]


class Home:
    """What belongs to no model and no job."""

    _store: Store

    def get(self, key: str) -> Json:
        """A fact about the home, such as `base`; None if it was never put."""
        found = self._store.row("home", "key = ?", key)
        return None if found is None else cell("home", "value", found)

    def put(self, key: str, value: Json) -> None:
        """Any JSON value; replaces what was there."""
        self._store.replace("home", {"key": key, "value": dumps(value)})

    def spent(self, name: str, day: str) -> float:
        """How much of a budget was used on a day (`2026-01-31`); 0 if nothing was."""
        return self.budgets(day).get(name, 0.0)

    def spend(self, name: str, day: str, amount: float) -> None:
        """Adds to what was used of a budget on a day."""
        self._store.execute(
            "INSERT INTO budgets (day, name, amount) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
            [day, name, amount],
        )

    def budgets(self, day: str) -> dict[str, float]:
        """What was used on a day, by budget."""
        found = self._store.rows("budgets", "day = ?", [day], order="name")
        return {values["name"]: values["amount"] for values in found}

    def file_hash(self, path: Path, size: int, mtime_ns: int) -> str | None:
        """The sha256 remembered for a file that looks unchanged, so as not to read it again."""
        found = self._store.row(
            "hashes", "path = ? AND size = ? AND mtime_ns = ?", str(path), size, mtime_ns
        )
        return None if found is None else found["sha256"]

    def remember_hash(self, path: Path, size: int, mtime_ns: int, sha256: str) -> None:
        values = {"path": str(path), "size": size, "mtime_ns": mtime_ns, "sha256": sha256}
        self._store.replace("hashes", values)
