"""The part of the lineage that is about its home: facts, budgets, files whose hash is known."""

from __future__ import annotations

from collections.abc import Mapping
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

    def file_hashes(self) -> dict[str, tuple[int, int, str]]:
        """(size, mtime_ns, sha256) of files by path, so as not to read them again."""
        found = self._store.query("SELECT path, size, mtime_ns, sha256 FROM hashes")
        return {each["path"]: (each["size"], each["mtime_ns"], each["sha256"]) for each in found}

    def remember_hashes(self, hashes: Mapping[str, tuple[int, int, str]]) -> None:
        """Those of some files more, or as they are now."""
        sql = "INSERT OR REPLACE INTO hashes (path, size, mtime_ns, sha256) VALUES (?, ?, ?, ?)"
        self._store.execute_many(sql, [(path, *known) for path, known in sorted(hashes.items())])
