"""The part of the lineage that knows the models: where they come from, their files and descent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from kinship_storage.errors import LineageError
from kinship_storage.events import Events
from kinship_storage.records import Cause, File, Kind, Model, Split, Status
from kinship_storage.rows import cells, model_number, record, row, stamp, weights_number
from kinship_storage.store import Json, Row, Store
from kinship_storage.transitions import MODELS, ModelEvent

__all__ = ["Models"]

# Origin and descent: what makes a model this model. The rest is learned later, or is its state.
_ORIGIN = ("kind", "repo", "revision", "recipe", "parents")
_LEARNED = frozenset(
    {
        *("generation", "weights", "parameters", "license", "role", "why"),
        *("folder", "size", "gated", "screen", "not_published"),
    }
)
# A merge can be made again from its recipe, what came from a hub can be fetched again.
_OF_MERGES = frozenset({"repropose"})
_OF_OTHERS = frozenset({"refuse", "reopen"})


class Models(Events):
    """Models, their files and parents; their life cycle is `transitions.MODELS`."""

    _store: Store
    _now: Callable[[], datetime]

    def add_model(self, model: Model, files: Iterable[File] = ()) -> Model:
        """
        Adds a model and its files; a model that is there already stays as it is.

        Returns:
            The model as the lineage holds it.

        Raises:
            LineageError: The id is taken by a model of other origin (kind, repo, revision, recipe,
                parents, weights or files), a parent is not in the lineage, no life begins with
                that status, or it is refused without a cause.
        """
        with self._store.transaction():
            there = self.model(model.id)
            if there is None:
                self._add(model)
            else:
                _same(there, model)
            self.add_files(model.id, files)
            return self.require(model.id)

    def _add(self, model: Model) -> None:
        if model.status not in MODELS.first:
            raise LineageError(
                f"model {model.id} cannot begin as {model.status}; "
                f"it can begin as {', '.join(MODELS.first)}"
            )
        _check_cause(model)
        unknown = [parent for parent in model.parents if self.model(parent) is None]
        if unknown:
            raise LineageError(
                f"model {model.id}: its parent {unknown[0]} is not in the lineage; add that first"
            )
        created = model.created or stamp(self._now())
        values = row(model, without=["parents"], created=created)
        self._store.insert("models", self._keyed(values))
        number = model_number(self._store, model.id)
        parents = [
            {"model": number, "position": i, "parent": model_number(self._store, parent)}
            for i, parent in enumerate(model.parents)
        ]
        self._store.insert("parents", *parents)

    def _keyed(self, values: Row) -> Row:
        """With the key of its weights in place of their identity."""
        identity = values.get("weights")
        if identity is None:
            return values
        return {**values, "weights": weights_number(self._store, identity)}

    def add_files(self, model: str, files: Iterable[File]) -> None:
        """The model's files, once they are known. Naming other ones later is a LineageError."""
        given = sorted(files, key=lambda file: file.path)
        if not given:
            return
        with self._store.transaction():
            number = model_number(self._store, model)
            there = self.files(model)
            if not there:
                self._store.insert("files", *[row(file, model=number) for file in given])
            elif there != given:
                raise LineageError(
                    f"model {model} is in the lineage with other files; add it under another id"
                )

    def update_model(self, model: str, **learned: Json) -> Model:
        """
        Writes what was learned about a model.

        Args:
            model: Its id.
            learned: Of generation, weights, parameters, license, role, why, folder, size, gated,
                screen, not_published.

        Raises:
            LineageError: No such model, a field that is not learned (its state changes by
                `move_model`), or other weights than known.
        """
        if fixed := sorted(learned.keys() - _LEARNED):
            raise LineageError(
                f"model {model}: {', '.join(fixed)} cannot be written; "
                f"these can: {', '.join(sorted(_LEARNED))}"
            )
        with self._store.transaction():
            before = self.require(model)
            after = replace(before, **learned)
            if before.weights not in (None, after.weights):
                raise LineageError(f"model {model} has other weights in the lineage already")
            self._write(model, self._keyed(cells(Model, learned)))
            return after

    def move_model(
        self,
        model: str,
        event: ModelEvent,
        *,
        reason: str | None = None,
        cause: Cause | None = None,
        setting: str | None = None,
        retry_at: str | None = None,
    ) -> Model:
        """
        Changes the state of a model.

        Args:
            model: Its id.
            event: One that its state has.
            reason: Why it is set aside, in words.
            cause: Whose fault that is; refuse and quarantine need it, the others take none.
            setting: The config key whose change opens it again; cause `settings` needs it.
            retry_at: When it opens again by itself; only with cause `world`.

        Raises:
            LineageError: No such model, its state or its kind does not have the event, or the
                cause does not fit.
        """
        with self._store.transaction():
            before = self.require(model)
            status = MODELS.after(model, before.status, event)
            if event in (_OF_OTHERS if before.kind == "merge" else _OF_MERGES):
                raise LineageError(f"model {model} is a {before.kind} and cannot {event}")
            faults = 0 if event == "admit" else before.faults + (cause == "world")
            changes: dict[str, Json] = {
                "status": status,
                "reason": reason,
                "cause": cause,
                "setting": setting,
                "retry_at": retry_at,
                "faults": faults,
            }
            after = replace(before, **changes)
            _check_cause(after)
            self._write(model, changes)
            if event == "quarantine":
                words = f"{model}: {reason}"
                self.add_event("quarantine", words, model=model, facts={"cause": cause})
            return after

    def _write(self, model: str, changes: Row) -> None:
        if changes:
            sets = ", ".join(f"{name} = ?" for name in changes)
            self._store.execute(
                f"UPDATE models SET {sets} WHERE id = ?",  # noqa: S608  # names are this file's own
                [*changes.values(), model],
            )

    def model(self, model: str) -> Model | None:
        return next(iter(self._models("m.id = ?", model)), None)

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
            terms.append("m.kind = ?")
            args.append(str(kind))
        if status is not None:
            statuses = [status] if isinstance(status, str) else list(status)
            terms.append(f"m.status IN ({', '.join('?' * len(statuses))})")
            args += statuses
        return self._models(" AND ".join(terms) or "TRUE", *args)

    def scored_models(self, split: Split, settings: str | None = None) -> list[Model]:
        """Those with a score under these settings, or under any; sorted by generation, then id."""
        return self._models(
            "m.weights IN (SELECT weights FROM scores"
            " WHERE split = ?1 AND (?2 IS NULL OR settings = ?2))",
            split,
            settings,
        )

    def due_models(self, now: datetime) -> list[Model]:
        """Those set aside for the world whose time has come; sorted by id."""
        return self._models("m.cause = 'world' AND m.retry_at <= ?", stamp(now), order="m.id")

    def set_aside(self, cause: Cause | None = None) -> list[Model]:
        """Those refused or quarantined, for this cause; sorted by id."""
        if cause is None:
            return self._models("m.cause IS NOT NULL", order="m.id")
        return self._models("m.cause = ?", cause, order="m.id")

    def count_set_aside(self) -> dict[tuple[Status, Cause], int]:
        """How many are set aside, by status and cause."""
        found = self._store.query(
            "SELECT status, cause, count(*) AS number FROM models WHERE cause IS NOT NULL"
            " GROUP BY status, cause"
        )
        return {(values["status"], values["cause"]): values["number"] for values in found}

    def count_models(self) -> dict[tuple[Kind, Status], int]:
        """How many there are of each kind and status."""
        found = self._store.query(
            "SELECT kind, status, count(*) AS number FROM models GROUP BY kind, status"
        )
        return {(values["kind"], values["status"]): values["number"] for values in found}

    def known_revisions(self) -> frozenset[tuple[str, str]]:
        """(repo, revision) of every model that came from a hub."""
        found = self._store.query(
            "SELECT repo, revision FROM models WHERE repo IS NOT NULL AND revision IS NOT NULL"
        )
        return frozenset((values["repo"], values["revision"]) for values in found)

    def of_repo(self, repo: str) -> list[Model]:
        """Every revision of a repo that was noticed, sorted by id."""
        return self._models("m.repo = ?", repo)

    def by_weights(self, weights: str) -> list[Model]:
        """
        Every model with these very weights, the best source of their bytes first.

        Admitted ones come first, then those still on the hub, then those on this disk, then by
        generation and id.
        """
        return self._models(
            "m.weights = (SELECT number FROM weights WHERE identity = ?)",
            weights,
            order="m.status <> 'admitted',"
            " EXISTS (SELECT 1 FROM candidates WHERE model = m.number AND gone),"
            " m.folder IS NULL, m.generation, m.id",
        )

    def ancestors(self, model: Model) -> list[Model]:
        """Everyone a model descends from but the base, ordered by generation and name."""
        parents = ", ".join("?" * len(model.parents))
        return self._models(
            f"m.number IN (WITH RECURSIVE line (number) AS ("  # noqa: S608  # only placeholders
            f" SELECT number FROM models WHERE id IN ({parents}) UNION"
            " SELECT parents.parent FROM parents JOIN line ON parents.model = line.number"
            ") SELECT number FROM line)",
            *model.parents,
        )

    def files(self, model: str) -> list[File]:
        """Sorted by path."""
        theirs = "model = (SELECT number FROM models WHERE id = ?)"
        return [
            record(File, found)
            for found in self._store.rows("files", theirs, [model], order="path")
        ]

    def _models(self, where: str, *args: object, order: str = "m.generation, m.id") -> list[Model]:
        found = self._store.query(_MODELS.format(where=where, order=order), args)
        parents: dict[int, list[str]] = {}
        for link in self._store.query(_PARENTS.format(where=where), args):
            parents.setdefault(link["model"], []).append(link["parent"])
        return [
            record(
                Model,
                values,
                weights=values["identity"],
                parents=tuple(parents.get(values["number"], ())),
            )
            for values in found
        ]


_MODELS = (
    "SELECT m.*, w.identity FROM models AS m LEFT JOIN weights AS w ON w.number = m.weights"
    " WHERE {where} ORDER BY {order}"
)
_PARENTS = (
    "SELECT link.model, p.id AS parent FROM parents AS link"
    " JOIN models AS p ON p.number = link.parent"
    " WHERE link.model IN (SELECT m.number FROM models AS m WHERE {where})"
    " ORDER BY link.model, link.position"
)


def _check_cause(model: Model) -> None:
    """What is set aside says whose fault it is, and nothing else does."""
    if model.status not in MODELS.set_aside:
        if (model.cause, model.setting, model.retry_at) != (None, None, None):
            raise LineageError(f"model {model.id} is {model.status}: that takes no cause")
    elif model.cause is None:
        raise LineageError(
            f"model {model.id} cannot be {model.status} without a cause: model, world or settings"
        )
    elif (model.cause == "settings") != (model.setting is not None):
        raise LineageError(
            f"model {model.id}: cause settings names the config key at fault, no other cause does"
        )
    elif model.retry_at is not None and model.cause != "world":
        raise LineageError(f"model {model.id}: only cause world has a time to try again")


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
