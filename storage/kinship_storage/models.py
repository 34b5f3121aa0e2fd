"""The part of the lineage that knows the models: where they come from, their files and descent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from kinship_storage.errors import LineageError
from kinship_storage.records import File, Kind, Model, Status
from kinship_storage.rows import cells, record, row, stamp
from kinship_storage.store import Json, Row, Store

__all__ = ["Models"]

# Origin and descent: what makes a model this model. The rest is learned or decided later.
_ORIGIN = ("kind", "repo", "revision", "recipe", "parents")
_CHANGEABLE = frozenset(
    {
        *("status", "reason", "generation", "joined", "weights", "parameters", "license"),
        *("role", "why"),
    }
)


class Models:
    """Models, their files and parents."""

    _store: Store
    _now: Callable[[], datetime]

    def add_model(self, model: Model, files: Iterable[File] = ()) -> Model:
        """
        Adds a model and its files; a model that is there already stays as it is.

        Returns:
            The model as the lineage holds it.

        Raises:
            LineageError: The id is taken by a model of other origin (kind, repo, revision, recipe,
                parents, weights or files), or a parent is not in the lineage.
        """
        with self._store.transaction():
            there = self.model(model.id)
            if there is None:
                self._insert(model)
            else:
                _same(there, model)
            self.add_files(model.id, files)
            return self.require(model.id)

    def _insert(self, model: Model) -> None:
        unknown = [parent for parent in model.parents if self.model(parent) is None]
        if unknown:
            raise LineageError(
                f"model {model.id}: its parent {unknown[0]} is not in the lineage; add that first"
            )
        created = model.created or stamp(self._now())
        self._store.insert("models", row(model, without=["parents"], created=created))
        parents = [
            {"model": model.id, "position": i, "parent": parent}
            for i, parent in enumerate(model.parents)
        ]
        self._store.insert("parents", *parents)

    def add_files(self, model: str, files: Iterable[File]) -> None:
        """The model's files, once they are known. Naming other ones later is a LineageError."""
        given = sorted(files, key=lambda file: file.path)
        if not given:
            return
        with self._store.transaction():
            self.require(model)
            there = self.files(model)
            if not there:
                self._store.insert("files", *[row(file, model=model) for file in given])
            elif there != given:
                raise LineageError(
                    f"model {model} is in the lineage with other files; add it under another id"
                )

    def update_model(self, model: str, **changes: Json) -> Model:
        """
        Writes what was learned or decided about a model.

        Args:
            model: Its id.
            changes: Of status, reason, generation, joined, weights, parameters, license, role, why.

        Raises:
            LineageError: No such model, a field that never changes, or other weights than known.
        """
        if fixed := sorted(changes.keys() - _CHANGEABLE):
            raise LineageError(f"model {model}: {', '.join(fixed)} never changes")
        with self._store.transaction():
            before = self.require(model)
            after = replace(before, **changes)
            if before.weights not in (None, after.weights):
                raise LineageError(f"model {model} has other weights in the lineage already")
            if changes:
                sets = cells(Model, changes)
                self._store.execute(
                    f"UPDATE models SET {', '.join(f'{name} = ?' for name in sets)} WHERE id = ?",  # noqa: S608  # names are from _CHANGEABLE
                    [*sets.values(), model],
                )
            return after

    def model(self, model: str) -> Model | None:
        return next(iter(self._models("id = ?", model)), None)

    def require(self, model: str) -> Model:
        """The model; LineageError where there is none of that id."""
        found = self.model(model)
        if found is None:
            raise LineageError(
                f"no model {model!r} in {self._store.path}; `kinship-daemon lineage` lists them"
            )
        return found

    def models(
        self, kind: Kind | None = None, status: Status | Sequence[Status] | None = None
    ) -> list[Model]:
        """Of this kind, with this status or one of these; sorted by generation, then id."""
        terms, args = [], []
        if kind is not None:
            terms.append("kind = ?")
            args.append(str(kind))
        if status is not None:
            statuses = [status] if isinstance(status, str) else list(status)
            terms.append(f"status IN ({', '.join('?' * len(statuses))})")
            args += statuses
        return self._models(" AND ".join(terms), *args)

    def count_models(self) -> dict[tuple[Kind, Status], int]:
        """How many there are of each kind and status."""
        found = self._store.query(
            "SELECT kind, status, count(*) AS number FROM models GROUP BY kind, status"
        )
        return {(values["kind"], values["status"]): values["number"] for values in found}

    def reasons(self, status: Status) -> list[tuple[str, str | None]]:
        """(id, reason) of every model with this status, sorted by id."""
        found = self._store.rows("models", "status = ?", [status], order="id", select="id, reason")
        return [(values["id"], values["reason"]) for values in found]

    def known_revisions(self) -> frozenset[tuple[str, str]]:
        """(repo, revision) of every model that came from a hub."""
        found = self._store.query(
            "SELECT repo, revision FROM models WHERE repo IS NOT NULL AND revision IS NOT NULL"
        )
        return frozenset((values["repo"], values["revision"]) for values in found)

    def find(self, repo: str, revision: str) -> Model | None:
        """The model that came from this revision of the repo."""
        return next(iter(self._models("repo = ? AND revision = ?", repo, revision)), None)

    def of_repo(self, repo: str) -> list[Model]:
        """Every revision of a repo that was noticed, sorted by id."""
        return self._models("repo = ?", repo)

    def by_weights(self, weights: str) -> list[Model]:
        """Every model with these very weights, sorted by generation, then id."""
        return self._models("weights = ?", weights)

    def ancestors(self, model: Model) -> list[Model]:
        """Everyone a model descends from but the base, ordered by generation and name."""
        found: dict[str, Model] = {}
        waiting = list(model.parents)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = self.require(name)
                waiting += found[name].parents
        return sorted(found.values(), key=lambda each: (each.generation, each.id))

    def files(self, model: str) -> list[File]:
        """Sorted by path."""
        found = self._store.rows("files", "model = ?", [model], order="path")
        return [record(File, values) for values in found]

    def _models(self, where: str, *args: object) -> list[Model]:
        found = self._store.rows("models", where or None, args, order="generation, id")
        parents = self._parents(where, args)
        return [
            record(Model, values, parents=tuple(parents.get(values["id"], ()))) for values in found
        ]

    def _parents(self, where: str, args: Sequence[object]) -> dict[str, list[str]]:
        """Of those models only; one that has none is left out."""
        theirs = f"model IN (SELECT id FROM models WHERE {where})" if where else None  # noqa: S608  # written in this file
        links: list[Row] = self._store.rows("parents", theirs, args, order="model, position")
        found: dict[str, list[str]] = {}
        for link in links:
            found.setdefault(link["model"], []).append(link["parent"])
        return found


def _same(there: Model, given: Model) -> None:
    known, new = row(there), row(given)
    differing = [name for name in _ORIGIN if known[name] != new[name]]
    if None not in (there.weights, given.weights) and there.weights != given.weights:
        differing.append("weights")
    if differing:
        raise LineageError(
            f"model {given.id} is in the lineage already with another {', '.join(differing)}; "
            "add it under another id"
        )
