"""The part of the lineage that was decided: generations, what they rested on, and kinships."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from kinship_storage.errors import LineageError
from kinship_storage.events import Events
from kinship_storage.records import Generation
from kinship_storage.rows import add_once, cell, record, row, stamp, weights_number
from kinship_storage.store import Row, Store, dumps

__all__ = ["Decisions", "pack"]

# What the Gram ledger and the scores give again at any time: it grows with the square of the
# models, or with their documents.
_RECOMPUTED = frozenset({"kinship", "layers"})


class Decisions(Events):
    """What was decided; rows are added once and never rewritten."""

    _store: Store
    _now: Callable[[], datetime]

    def add_kinships(self, metric: str, values: Iterable[tuple[str, str, float | None]]) -> None:
        """
        Kinships of pairs of weights that a decision rests on; None or NaN where undefined.

        The two may come in any order. A pair that has a kinship keeps it.
        """
        with self._store.transaction():
            rows = []
            for a, b, value in values:
                low, high = sorted(weights_number(self._store, each) for each in (a, b))
                rows.append((metric, low, high, _known(value)))
            self._store.execute_many(
                "INSERT OR IGNORE INTO kinships (metric, a, b, value) VALUES (?, ?, ?, ?)", rows
            )

    def kinship(self, metric: str, a: str, b: str) -> float | None:
        """Kinship of two models by id; None where it is undefined or not kept."""
        found = self._store.query(
            "SELECT value FROM kinships, models AS x, models AS y WHERE x.id = ? AND y.id = ?"
            " AND metric = ? AND a = min(x.weights, y.weights) AND b = max(x.weights, y.weights)",
            [a, b, metric],
        )
        return found[0]["value"] if found else None

    def kinships(self, metric: str) -> dict[tuple[str, str], float | None]:
        """Every pair of models that is kept, as (id, id), the smaller first, in sorted order."""
        found = self._store.query(
            "SELECT x.id AS x, y.id AS y, value FROM kinships"
            " JOIN models AS x ON x.weights = a JOIN models AS y ON y.weights = b"
            " WHERE metric = ? AND x.id <> y.id",
            [metric],
        )
        pairs = {(min(f["x"], f["y"]), max(f["x"], f["y"])): f["value"] for f in found}
        return dict(sorted(pairs.items()))

    def add_generation(self, generation: Generation, facts: Mapping[str, Any]) -> None:
        """
        A decision, and what it was taken on, so that it can be replayed.

        Args:
            facts: All that the policy was shown, as JSON. Its kinships, layers and the documents
                of its members are not kept: ledger and scores give them again.

        Raises:
            LineageError: The number holds another decision, or a later one exists; likewise for
                the generation.
        """
        number = generation.number
        what = f"decision {number}"
        kept = {name: value for name, value in facts.items() if name not in _RECOMPUTED}
        if "members" in kept:
            kept["members"] = [
                {name: value for name, value in member.items() if name != "samples"}
                for member in kept["members"]
            ]
        with self._store.transaction():
            if self._store.row("generations", "number = ?", number) is None:
                self._ascends(generation)
            values = row(generation, created=generation.created or stamp(self._now()))
            is_new = add_once(self._store, "generations", {"number": number}, values, what)
            if is_new:
                self._add_scores(generation, kept)
            if is_new and generation.stop is not None:
                kind = "converged" if generation.stop_kind == "converged" else "stopped"
                why = {"stop": generation.stop_kind, "decision": number}
                self.add_event(kind, generation.stop, facts=why)
            there = self.facts(number)
            if there is None:
                self._store.insert("facts", {"decision": number, "value": pack(kept)})
            elif dumps(there) != dumps(kept):
                raise LineageError(
                    f"{what} is in the lineage already with other facts; "
                    "what happened is not rewritten"
                )

    def _add_scores(self, decision: Generation, facts: Mapping[str, Any]) -> None:
        """An event for who draws curves: what a decision was shown that the last was not."""
        members = [each for each in facts.get("members", ()) if each.get("score") is not None]
        if not members:
            return
        scores = {each["name"]: each["score"] for each in members}
        before = self.members(decision.number - 1)
        kept = ("score", "stderr", "documents", "generation")
        new = [
            {key: each.get(key) for key in kept} | self._against_parents(each, scores)
            for each in members
            if each["name"] not in before
        ]
        top = [scores[name] for name in decision.decision["top"] if name in scores]
        told = {
            "decision": decision.number,
            "after": facts["generation"] - 1,
            "best": max(scores.values()),
            "top": math.fsum(top) / len(top) if top else None,
            "kinship": decision.decision["top_mean_kinship"],
            "models": sorted(new, key=lambda each: (each["generation"], each["model"])),
        }
        words = f"after generation {told['after']}: best {told['best']:.4f}, {len(new)} new"
        self.add_event("scores", words, facts=told)

    def _against_parents(self, member: Mapping[str, Any], scores: Mapping[str, float]) -> Row:
        """Its gain over the better parent, and the kinship of its first two."""
        name, parents = member["name"], member.get("parents", ())
        if len(parents) < 2 or not scores.keys() >= set(parents):
            return {"model": name, "gain": None, "kinship": None}
        gain = member["score"] - max(scores[parent] for parent in parents)
        return {"model": name, "gain": gain, "kinship": self.kinship("pcc", *parents[:2])}

    def _ascends(self, new: Generation) -> None:
        last = self._store.query(
            "SELECT max(number) AS number, max(generation) AS generation FROM generations"
        )[0]
        for name, given in (("number", new.number), ("generation", new.generation)):
            if None not in (given, last[name]) and given <= last[name]:
                what = "decision" if name == "number" else name
                raise LineageError(f"{what} {given} cannot follow {last[name]}; numbers ascend")

    def generations(self) -> list[Generation]:
        """In the order they were decided."""
        return [record(Generation, r) for r in self._store.rows("generations", order="number")]

    def last_generation(self) -> Generation | None:
        """The latest decision; None before the first."""
        found = self._store.query("SELECT * FROM generations ORDER BY number DESC LIMIT 1")
        return record(Generation, found[0]) if found else None

    def facts(self, number: int) -> dict[str, Any] | None:
        """What a decision was taken on; None if there is no such decision."""
        found = self._store.row("facts", "decision = ?", number)
        return None if found is None else cell("facts", "value", found)

    def members(self, number: int) -> frozenset[str]:
        """Names of the models that a decision was shown."""
        facts = self.facts(number) or {}
        return frozenset(member["name"] for member in facts.get("members", ()))


def pack(facts: Mapping[str, Any]) -> bytes:
    """Facts as the file holds them: canonical JSON, compressed."""
    return zlib.compress(dumps(facts).encode())


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
