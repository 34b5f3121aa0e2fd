"""The part of the lineage that became of the merges: verdicts of the gate, and publications."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from kinship_storage.events import Events
from kinship_storage.records import Gate, Publication
from kinship_storage.rows import add_once, model_number, record, row, stamp
from kinship_storage.store import Row, Store

__all__ = ["Results"]


class Results(Events):
    """What happened; rows are added once and never rewritten."""

    _store: Store
    _now: Callable[[], datetime]

    def add_gate(self, gate: Gate) -> None:
        with self._store.transaction():
            model = model_number(self._store, gate.model)
            key = {"model": model, "evaluation": gate.evaluation}
            test = gate.test or self._number(key)
            values = self._stamped(gate, against=model_number(self._store, gate.against), test=test)
            is_new = add_once(self._store, "gates", key, values, f"the gate of {gate.model}")
            if is_new:
                facts = {"gain": gate.gain, "low": gate.low, "high": gate.high}
                words = f"{gate.model} {gate.reason}"
                more = {
                    "passed": gate.passed,
                    "p": gate.p,
                    "allowed": gate.alpha,
                    "documents": gate.n,
                }
                self.add_event("gate", words, model=gate.model, facts={**facts, **more})
                if not gate.passed:
                    self.add_event("gate_refused", words, model=gate.model, facts=facts)

    def _number(self, key: Row) -> int:
        """Of the judgement under this key, or of the next."""
        there = self._store.row("gates", "model = ? AND evaluation = ?", *key.values())
        if there is not None:
            return int(there["test"])
        return int(self._store.query("SELECT coalesce(max(test), 0) + 1 AS n FROM gates")[0]["n"])

    def gate(self, model: str, evaluation: str) -> Gate | None:
        """The verdict on a merge under these settings of the validation."""
        found = self._gates("m.id = ? AND evaluation = ?", model, evaluation)
        return found[0] if found else None

    def gates(self, evaluation: str | None = None) -> list[Gate]:
        """Those under these settings, or all; sorted by generation, then model, then age."""
        return self._gates("?1 IS NULL OR evaluation = ?1", evaluation)

    def judgements(self) -> list[Gate]:
        """All of the home's life, in the order in which they were made."""
        return sorted(self.gates(), key=lambda gate: gate.test or 0)

    def gates_of(self, model: str) -> list[Gate]:
        """Every verdict on a merge, the oldest first."""
        return self._gates("m.id = ?", model)

    def _gates(self, where: str, *args: object) -> list[Gate]:
        found = self._store.query(_GATES.format(where=where), args)
        return [
            record(Gate, values, model=values["id"], against=values["other"]) for values in found
        ]

    def add_publication(self, publication: Publication) -> None:
        with self._store.transaction():
            key = {"model": model_number(self._store, publication.model)}
            what = f"the publication of {publication.model}"
            if add_once(self._store, "publications", key, self._stamped(publication), what):
                facts = {"repo": publication.repo, "url": publication.url}
                words = f"{publication.model} as {publication.repo}"
                self.add_event("publish", words, model=publication.model, facts=facts)

    def publication(self, model: str) -> Publication | None:
        return next(iter(self._publications("m.id = ?", model)), None)

    def publications(self) -> list[Publication]:
        """Sorted by generation, then model."""
        return self._publications("TRUE")

    def _publications(self, where: str, *args: object) -> list[Publication]:
        found = self._store.query(_PUBLICATIONS.format(where=where), args)
        return [record(Publication, values, model=values["id"]) for values in found]

    def _stamped(self, item: Gate | Publication, **changes: int) -> Row:
        model = model_number(self._store, item.model)
        return {**row(item, model=model, created=item.created or stamp(self._now())), **changes}


_GATES = (
    "SELECT gates.*, m.id, o.id AS other FROM gates JOIN models AS m ON m.number = gates.model"
    " JOIN models AS o ON o.number = gates.against WHERE {where}"
    " ORDER BY m.generation, m.id, gates.number"
)
_PUBLICATIONS = (
    "SELECT publications.*, m.id FROM publications JOIN models AS m ON m.number = model"
    " WHERE {where} ORDER BY m.generation, m.id"
)
