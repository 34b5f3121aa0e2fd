"""The part of the lineage that was measured: scores, and the documents that they are means of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace

from kinship_storage.errors import LineageError
from kinship_storage.records import Partial, Score, Split
from kinship_storage.rows import record, row, weights_number
from kinship_storage.store import Row, Store

__all__ = ["Scores"]

_KEY = ("weights", "split", "task", "settings")


class Scores:
    """Scores by weights; a document's result is added once and never rewritten."""

    _store: Store

    def add_scores(self, scores: Iterable[Score]) -> None:
        """
        Raises:
            LineageError: The weights have another score under the same task, split and settings.
        """
        with self._store.transaction():
            for score in scores:
                key = {name: getattr(score, name) for name in _KEY}
                there = self._scores(key, samples=True)
                if there:
                    _same(there[0][1], score)
                else:
                    self._add_score(score)

    def extend_score(
        self,
        weights: str,
        split: Split,
        task: str,
        settings: str,
        samples: Iterable[tuple[int, float]],
    ) -> Score:
        """
        Adds documents to a score that is there; its mean, error and number follow.

        Args:
            samples: (document id, value); one that is there already stays as it is.

        Returns:
            The score as it is now.

        Raises:
            LineageError: No such score, or a document has another value in it.
        """
        key = {"weights": weights, "split": split, "task": task, "settings": settings}
        with self._store.transaction():
            there = self._scores(key, samples=True)
            if not there:
                raise LineageError(
                    f"no {split} score of {weights} on {task} to add documents to; add it first"
                )
            number, before = there[0]
            known, new = dict(before.samples), {}
            for document, value in samples:
                if document not in known:
                    known[document] = new[document] = value
                elif known[document] != value:
                    raise LineageError(
                        f"the {split} score of {weights} on {task} has another value for document "
                        f"{document}; what happened is not rewritten"
                    )
            if not new:
                return before
            after = _mean(replace(before, samples=tuple(sorted(known.items()))))
            self._store.execute(
                "UPDATE scores SET score = ?, stderr = ?, n = ? WHERE number = ?",
                [after.score, _known(after.stderr), after.n, number],
            )
            self._add_documents(number, new.items())
            return after

    def scores(
        self,
        weights: str,
        split: Split | None = None,
        settings: str | None = None,
        *,
        samples: bool = True,
    ) -> list[Score]:
        """
        Sorted by split and task, then as they were added.

        Without `samples` no document is read, which is much faster; theirs are empty.
        """
        given = {"weights": weights, "split": split, "settings": settings}
        wanted = {name: value for name, value in given.items() if value is not None}
        return [score for _, score in self._scores(wanted, samples=samples)]

    def mean_scores(self, split: Split, settings: str | None = None) -> dict[str, float]:
        """
        Mean over tasks by weights: the latest scores, or the latest under these settings.

        Weights that have more documents to answer have none; those that were stopped before the end
        have the mean that is foretold for them (`Partial`).
        """
        found = self._store.query(
            "SELECT identity, task, coalesce(partials.mean, score) AS score FROM scores"
            " JOIN weights ON weights.number = scores.weights"
            " LEFT JOIN partials ON split = 'selection' AND partials.weights = scores.weights"
            " AND partials.settings = scores.settings"
            " WHERE split = ?1 AND (?2 IS NULL OR scores.settings = ?2)"
            " AND (partials.rung IS NULL OR partials.mean IS NOT NULL) ORDER BY scores.number",
            [split, settings],
        )
        tasks: dict[str, dict[str, float]] = {}
        for values in found:
            tasks.setdefault(values["identity"], {})[values["task"]] = values["score"]
        return {
            weights: sum(scores[task] for task in sorted(scores)) / len(scores)
            for weights, scores in tasks.items()
        }

    def count_documents(self) -> int:
        """How many answers there are, of all models and settings."""
        return int(self._store.query("SELECT coalesce(sum(n), 0) AS n FROM scores")[0]["n"])

    def partials(self, settings: str) -> dict[str, Partial]:
        """Whose selection scores are not of all documents, by weights in their order."""
        found = self._store.query(
            "SELECT partials.*, identity FROM partials JOIN weights ON weights.number = weights"
            " WHERE settings = ? ORDER BY identity",
            [settings],
        )
        return {
            values["identity"]: record(Partial, values, weights=values["identity"])
            for values in found
        }

    def put_partial(self, partial: Partial) -> None:
        """Notes how far it is, in the place of what was noted before."""
        with self._store.transaction():
            number = weights_number(self._store, partial.weights)
            self._store.replace("partials", row(partial, weights=number))

    def drop_partial(self, weights: str, settings: str) -> None:
        """It has answered all documents."""
        where = f"{_WEIGHTS} AND settings = ?"
        self._store.execute(f"DELETE FROM partials WHERE {where}", [weights, settings])  # noqa: S608  # names are this file's own

    def _add_score(self, score: Score) -> None:
        number = weights_number(self._store, score.weights)
        self._store.insert("scores", row(score, without=["samples"], weights=number))
        found = self._store.query("SELECT max(number) AS number FROM scores")
        self._add_documents(found[0]["number"], score.samples)

    def _add_documents(self, score: int, samples: Iterable[tuple[int, float]]) -> None:
        self._store.execute_many(
            "INSERT INTO documents (score, document, value) VALUES (?, ?, ?)",
            [(score, document, _known(value)) for document, value in sorted(samples)],
        )

    def _scores(self, wanted: Mapping[str, str], *, samples: bool) -> list[tuple[int, Score]]:
        """(number, score) of those that match."""
        terms = {**dict.fromkeys(wanted, "{} = ?"), "weights": _WEIGHTS}
        where = " AND ".join(terms[name].format(name) for name in wanted)
        args = list(wanted.values())
        documents: dict[int, list[tuple[int, float]]] = {}
        if samples:
            theirs = f"score IN (SELECT number FROM scores WHERE {where})"  # noqa: S608  # names are this file's own
            for values in self._store.rows("documents", theirs, args, order="score, document"):
                pair = (values["document"], values["value"])
                documents.setdefault(values["score"], []).append(pair)
        return [
            (values["number"], _score(values, wanted["weights"], documents))
            for values in self._store.rows("scores", where, args, order="split, task, number")
        ]


_WEIGHTS = "weights = (SELECT number FROM weights WHERE identity = ?)"


def _score(values: Row, weights: str, documents: Mapping[int, list[tuple[int, float]]]) -> Score:
    stderr = math.nan if values["stderr"] is None else values["stderr"]
    samples = tuple(documents.get(values["number"], ()))
    return record(Score, values, weights=weights, stderr=stderr, samples=samples)


def _mean(score: Score) -> Score:
    """The score that its samples give."""
    values = [value for _, value in score.samples]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return replace(score, score=math.fsum(values) / len(values), stderr=error, n=len(values))


def _same(there: Score, given: Score) -> None:
    known, new = row(there), row(given)
    if differing := [name for name in known if known[name] != new[name]]:
        raise LineageError(
            f"the {given.split} score of {given.weights} on {given.task} is in the lineage already "
            f"with another {', '.join(differing)}; what happened is not rewritten"
        )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
