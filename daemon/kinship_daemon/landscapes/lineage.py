"""The landscape of a recorded lineage: what a daemon really merged answers from the record."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from kinship_daemon.errors import UsageError
from kinship_daemon.report import count
from kinship_daemon.weights.recipe import Recipe
from kinship_policies.simulate.landscape import Model
from kinship_policies.simulate.recorded import Record, Recorded, Relations
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model as Row
from kinship_storage.records import Partial

__all__ = ["read_lineage"]


def read_lineage(path: Path) -> Recorded:
    """
    The lineage's admitted fine-tunes, all there from the start, and its scored merges.

    Scores are those on the selection tasks under the settings that the home had last, kinships are
    pcc, as recorded. Nothing is written.

    Raises:
        UsageError: There is nobody with a score in it.
        LineageError: It cannot be read.
    """
    with Lineage.open(path, now=lambda: datetime.now(UTC), readonly=True) as lineage:
        settings = _settings(lineage)
        partials = lineage.partials(settings or "")
        rows = [row for row in lineage.models() if row.kind != "base"]
        found = ((row, _scored(lineage, row, settings, partials)) for row in rows)
        scored = {row.id: model for row, model in found if model is not None}
        founders = [scored[row.id] for row in rows if row.id in scored and _founder(row)]
        records = [_record(row, scored[row.id]) for row in rows if row.id in scored and row.recipe]
        known = lineage.kinships("pcc")
    if not founders:
        raise UsageError(f"lineage {path}: no admitted fine-tune has a selection score; let it run")
    title = f"{path}: {count(len(founders), 'founder')}, {count(len(records), 'merge')} on record"
    return Recorded(title, founders, records, Relations, known)


def _settings(lineage: Lineage) -> str | None:
    """The fingerprint that scores are comparable under; None where the home does not say."""
    current = lineage.get("settings")
    return str(current["selection"]) if isinstance(current, dict) else None


def _founder(row: Row) -> bool:
    return row.recipe is None and row.status == "admitted"


def _scored(
    lineage: Lineage, row: Row, settings: str | None, partials: Mapping[str, Partial]
) -> Model | None:
    if row.weights is None:
        return None
    scores = lineage.scores(row.weights, split="selection", settings=settings)
    if not scores:
        return None
    tasks = {score.task: score.score for score in scores}
    partial = partials.get(row.weights)
    if partial is not None:  # without samples: they are not those of the others
        return None if partial.mean is None else Model(row.id, partial.mean, tasks)
    samples = {score.task: tuple(value for _, value in score.samples) for score in scores}
    return Model(row.id, sum(tasks.values()) / len(tasks), tasks, None, samples)


def _record(row: Row, model: Model) -> Record:
    assert row.recipe is not None
    recipe = Recipe.from_json(row.recipe)
    return Record(model, recipe.parents, recipe.method, recipe.parameters)
