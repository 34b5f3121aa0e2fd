"""The part of the lineage that knows what a watch noticed: candidates and their samples."""

from __future__ import annotations

from dataclasses import fields, replace

from kinship_storage.errors import LineageError
from kinship_storage.records import Candidate, Status
from kinship_storage.rows import cells, record, row
from kinship_storage.store import Json, Row, Store

__all__ = ["Candidates"]

_CHANGEABLE = frozenset(field.name for field in fields(Candidate)) - {"model"}


class Candidates:
    """What a hub says of the models that were noticed, and their weights as far as sampled."""

    _store: Store

    def add_candidate(self, candidate: Candidate) -> Candidate:
        """
        Adds what the watch saw of a model; a model that has one keeps it.

        Returns:
            The candidate as the lineage holds it.

        Raises:
            LineageError: The model is not in the lineage, or `modified` is not a time as it
                writes them (`kinship_storage.rows.stamp`).
        """
        with self._store.transaction():
            there = self.candidate(candidate.model)
            if there is not None:
                return there
            self._store.insert("candidates", row(candidate))
            return self._require(candidate.model)

    def update_candidate(self, model: str, **changes: Json) -> Candidate:
        """
        Writes what was learned about a candidate.

        Args:
            model: Its id.
            changes: Of every field but `model`.

        Raises:
            LineageError: No candidate of that id, or no such field.
        """
        if unknown := sorted(changes.keys() - _CHANGEABLE):
            raise LineageError(
                f"candidate {model}: {', '.join(unknown)} cannot be changed; "
                f"these can: {', '.join(sorted(_CHANGEABLE))}"
            )
        with self._store.transaction():
            after = replace(self._require(model), **changes)
            if changes:
                sets = cells(Candidate, changes)
                self._store.execute(
                    f"UPDATE candidates SET {', '.join(f'{name} = ?' for name in sets)}"  # noqa: S608  # names are from _CHANGEABLE
                    " WHERE model = ?",
                    [*sets.values(), model],
                )
            return after

    def candidate(self, model: str) -> Candidate | None:
        found = self._store.row("candidates", "model = ?", model)
        return None if found is None else _candidate(found)

    def _require(self, model: str) -> Candidate:
        found = self.candidate(model)
        if found is None:
            raise LineageError(f"no candidate {model!r} in {self._store.path}; add it first")
        return found

    def candidates(
        self, status: Status | None = None, triaged: bool | None = None
    ) -> list[Candidate]:
        """Those whose model has this status, and that were triaged or not; sorted by model."""
        given = {"status": status, "triaged": triaged}
        wanted = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in wanted) or "TRUE"
        found = self._store.query(_IN_ORDER.format(where=where), list(wanted.values()))
        return [_candidate(values) for values in found]

    def put_sample(self, plan: str, model: str, vector: bytes) -> None:
        """
        The compact vector of a model under a plan; replaces what was there.

        Raises:
            LineageError: The model is not in the lineage.
        """
        self._store.replace("samples", {"plan": plan, "model": model, "vector": vector})

    def sample(self, plan: str, model: str) -> bytes | None:
        found = self._store.row("samples", "plan = ? AND model = ?", plan, model)
        return None if found is None else found["vector"]

    def samples(self, plan: str) -> list[tuple[str, bytes]]:
        """(model, vector) of all that were sampled under the plan, sorted by model."""
        found = self._store.rows(
            "samples", "plan = ?", [plan], order="model", select="model, vector"
        )
        return [(values["model"], values["vector"]) for values in found]


_IN_ORDER = (
    "SELECT candidates.* FROM models JOIN candidates ON candidates.model = models.id"
    " WHERE {where} ORDER BY models.id"
)


def _candidate(values: Row) -> Candidate:
    flags = {name: bool(values[name]) for name in ("triaged", "gone")}
    return record(Candidate, values, **flags)
