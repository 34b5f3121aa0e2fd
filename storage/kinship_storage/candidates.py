"""The part of the lineage that knows what a watch noticed: candidates and their samples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace

from kinship_storage.errors import LineageError
from kinship_storage.records import Candidate, Status
from kinship_storage.rows import cells, model_number, record, row
from kinship_storage.store import Json, Store, dumps

__all__ = ["Candidates"]

_ORDERS = frozenset(field.name for field in fields(Candidate))
_CHANGEABLE = _ORDERS - {"model"}


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
            number = model_number(self._store, candidate.model)
            self._store.insert("candidates", row(candidate, model=number))
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
                    " WHERE model = (SELECT number FROM models WHERE id = ?)",
                    [*sets.values(), model],
                )
            return after

    def candidate(self, model: str) -> Candidate | None:
        found = self._store.query(_CANDIDATES.format(where="m.id = ?"), [model])
        return record(Candidate, found[0], model=model) if found else None

    def _require(self, model: str) -> Candidate:
        found = self.candidate(model)
        if found is None:
            raise LineageError(f"no candidate {model!r} in {self._store.path}; add it first")
        return found

    def candidates(
        self,
        status: Status | None = None,
        triaged: bool | None = None,
        gone: bool | None = None,
    ) -> list[Candidate]:
        """Those of this status, triaged or not, gone from the hub or not; sorted by model."""
        given = {"status": status, "triaged": triaged, "gone": gone}
        wanted = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in wanted) or "TRUE"
        found = self._store.query(_CANDIDATES.format(where=where), list(wanted.values()))
        return [record(Candidate, values, model=values["id"]) for values in found]

    def listed_candidates(
        self,
        status: Status,
        *,
        text: str = "",
        order: str = "model",
        descending: bool = False,
        limit: int,
        offset: int = 0,
    ) -> tuple[int, list[Candidate]]:
        """
        A page of those whose model has this status, and how many there are on all pages.

        Args:
            text: Only those whose id or reason holds this, whatever its case.
            order: A field of `Candidate`; ties by model, unknown values last.

        Raises:
            LineageError: No such field.
        """
        if order not in _ORDERS:
            raise LineageError(f"no order {order!r}; there are: {', '.join(sorted(_ORDERS))}")
        column = "m.id" if order == "model" else f"candidates.{order}"
        by = f"{column} {'DESC' if descending else 'ASC'} NULLS LAST, m.id LIMIT ?3 OFFSET ?4"
        like = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        asked = [status, f"%{like}%"]
        counted = self._store.query(_COUNTED.format(where=_MATCHING), asked)
        found = self._store.query(
            _LISTED.format(where=_MATCHING, order=by), [*asked, limit, offset]
        )
        page = [record(Candidate, values, model=values["id"]) for values in found]
        return counted[0]["number"], page

    def put_sample(self, plan: str, model: str, vector: bytes) -> None:
        """
        The compact vector of a model under a plan; replaces what was there.

        Raises:
            LineageError: The model is not in the lineage.
        """
        with self._store.transaction():
            number = model_number(self._store, model)
            self._store.replace("samples", {"plan": plan, "model": number, "vector": vector})

    def sample_plan(self) -> str | None:
        """The plan that most vectors were taken under; None where there are none."""
        found = self._store.query(
            "SELECT plan FROM samples GROUP BY plan ORDER BY count(*) DESC, plan LIMIT 1"
        )
        return found[0]["plan"] if found else None

    def sample(self, plan: str, model: str) -> bytes | None:
        return self.sampled(plan, [model]).get(model)

    def sampled(self, plan: str, models: Collection[str]) -> dict[str, bytes]:
        """The vectors of those of these models that were sampled under the plan; sorted by id."""
        found = self._store.query(
            "SELECT m.id, vector FROM json_each(?) AS asked JOIN models AS m ON m.id = asked.value"
            " JOIN samples ON samples.model = m.number AND plan = ? ORDER BY m.id",
            [dumps(sorted(models)), plan],
        )
        return {values["id"]: values["vector"] for values in found}

    def sampled_models(self, plan: str, *statuses: Status) -> list[str]:
        """Ids of those with one of these statuses that were sampled under the plan; sorted."""
        found = self._store.query(
            "SELECT m.id FROM samples JOIN models AS m ON m.number = samples.model"
            " WHERE plan = ? AND m.status IN (SELECT value FROM json_each(?)) ORDER BY m.id",
            [plan, dumps(statuses)],
        )
        return [values["id"] for values in found]


_FROM = " FROM models AS m JOIN candidates ON candidates.model = m.number WHERE {where}"
_LISTED = f"SELECT candidates.*, m.id{_FROM} ORDER BY {{order}}"
_CANDIDATES = f"SELECT candidates.*, m.id{_FROM} ORDER BY m.id"
_COUNTED = f"SELECT count(*) AS number{_FROM}"
_MATCHING = "m.status = ?1 AND (m.id LIKE ?2 ESCAPE '\\' OR m.reason LIKE ?2 ESCAPE '\\')"
