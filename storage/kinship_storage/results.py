"""The part of the lineage that was measured and decided, from kinships to publications."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from datetime import datetime

from kinship_storage.errors import LineageError
from kinship_storage.records import Gate, Generation, Publication, ScoreRow, Split
from kinship_storage.rows import add_once, record, row, stamp
from kinship_storage.store import Row, Store

__all__ = ["Results"]


class Results:
    """What happened; rows are added once and never rewritten."""

    _store: Store
    _now: Callable[[], datetime]

    def add_kinships(self, metric: str, values: Iterable[tuple[str, str, float | None]]) -> None:
        """
        Kinships of pairs of weights, in any order; None or NaN where undefined.

        A pair that has one keeps it.
        """
        rows = [
            {"metric": metric, "a": min(a, b), "b": max(a, b), "value": _known(value)}
            for a, b, value in values
        ]
        if rows:
            self._store.insert("kinships", *rows, ignore=True)

    def kinship(self, metric: str, a: str, b: str) -> float | None:
        """Kinship of two models by id; None where it is undefined or was not computed."""
        found = self._store.query(
            "SELECT value FROM kinships, models AS x, models AS y WHERE x.id = ? AND y.id = ?"
            " AND metric = ? AND a = min(x.weights, y.weights) AND b = max(x.weights, y.weights)",
            [a, b, metric],
        )
        return found[0]["value"] if found else None

    def kinships(self, metric: str) -> dict[tuple[str, str], float | None]:
        """Every known pair of models as (id, id), the smaller first, in sorted order."""
        found = self._store.query(
            "SELECT x.id AS x, y.id AS y, value FROM kinships"
            " JOIN models AS x ON x.weights = a JOIN models AS y ON y.weights = b"
            " WHERE metric = ? AND x.id <> y.id",
            [metric],
        )
        pairs = {(min(f["x"], f["y"]), max(f["x"], f["y"])): f["value"] for f in found}
        return dict(sorted(pairs.items()))

    def add_scores(self, scores: Iterable[ScoreRow]) -> None:
        """
        Raises:
            LineageError: The weights have another score under the same task, split and settings.
        """
        with self._store.transaction():
            for score in scores:
                key = {name: getattr(score, name) for name in _SCORE_KEY}
                what = f"the {score.split} score of {score.weights} on {score.task}"
                add_once(self._store, "scores", key, row(score), what)

    def scores(
        self, weights: str, split: Split | None = None, settings: str | None = None
    ) -> list[ScoreRow]:
        """Sorted by split and task, then as they were added."""
        given = {"weights": weights, "split": split, "settings": settings}
        wanted = {name: value for name, value in given.items() if value is not None}
        found = self._store.rows(
            "scores",
            " AND ".join(f"{name} = ?" for name in wanted),
            list(wanted.values()),
            order="split, task, number",
        )
        return [_score(values) for values in found]

    def mean_scores(self, split: Split, settings: str | None = None) -> dict[str, float]:
        """Mean over tasks by weights: the latest scores, or the latest under these settings."""
        terms, args = ["split = ?"], [str(split)]
        if settings is not None:
            terms.append("settings = ?")
            args.append(settings)
        tasks: dict[str, dict[str, float]] = {}
        for values in self._store.rows(
            "scores", " AND ".join(terms), args, order="number", select="weights, task, score"
        ):
            tasks.setdefault(values["weights"], {})[values["task"]] = values["score"]
        return {
            weights: sum(scores[task] for task in sorted(scores)) / len(scores)
            for weights, scores in tasks.items()
        }

    def add_generation(self, generation: Generation) -> None:
        """
        Raises:
            LineageError: The number holds another decision, or a later one exists.
        """
        with self._store.transaction():
            last = self._store.query("SELECT max(number) AS number FROM generations")[0]["number"]
            known = self._store.row("generations", "number = ?", generation.number)
            if known is None and last is not None and generation.number < last:
                raise LineageError(
                    f"generation {generation.number} cannot follow {last}; numbers ascend"
                )
            values = self._stamped(generation)
            key = {"number": generation.number}
            add_once(self._store, "generations", key, values, f"generation {generation.number}")

    def generations(self) -> list[Generation]:
        """In the order they were decided."""
        return [record(Generation, r) for r in self._store.rows("generations", order="number")]

    def last_generation(self) -> Generation | None:
        """The latest decision; None before the first."""
        found = self._store.query("SELECT * FROM generations ORDER BY number DESC LIMIT 1")
        return record(Generation, found[0]) if found else None

    def add_gate(self, gate: Gate) -> None:
        key = {"model": gate.model}
        add_once(self._store, "gates", key, self._stamped(gate), f"the gate of {gate.model}")

    def gate(self, model: str) -> Gate | None:
        found = self._store.row("gates", "model = ?", model)
        return None if found is None else _gate(found)

    def gates(self) -> list[Gate]:
        """Sorted by generation, then model."""
        return [_gate(values) for values in self._store.query(_IN_ORDER.format(table="gates"))]

    def add_publication(self, publication: Publication) -> None:
        key = {"model": publication.model}
        what = f"the publication of {publication.model}"
        add_once(self._store, "publications", key, self._stamped(publication), what)

    def publication(self, model: str) -> Publication | None:
        found = self._store.row("publications", "model = ?", model)
        return None if found is None else record(Publication, found)

    def publications(self) -> list[Publication]:
        """Sorted by generation, then model."""
        found = self._store.query(_IN_ORDER.format(table="publications"))
        return [record(Publication, values) for values in found]

    def _stamped(self, item: Generation | Gate | Publication) -> Row:
        return row(item, created=item.created or stamp(self._now()))


_IN_ORDER = (
    "SELECT {table}.* FROM {table} JOIN models ON models.id = {table}.model"
    " ORDER BY models.generation, models.id"
)
_SCORE_KEY = ("weights", "split", "task", "settings")


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _gate(values: Row) -> Gate:
    return record(Gate, values, passed=bool(values["passed"]))


def _score(values: Row) -> ScoreRow:
    stderr = math.nan if values["stderr"] is None else values["stderr"]
    samples = tuple((doc, value) for doc, value in json.loads(values["samples"]))
    return record(ScoreRow, values, stderr=stderr, samples=samples)
