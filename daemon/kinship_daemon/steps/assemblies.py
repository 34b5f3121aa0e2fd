"""How a model of the lineage is made: by algebra over leaves, until bytes are really needed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import get_args

from kinship_daemon.daemon import Daemon
from kinship_daemon.disk_space import mark_needed
from kinship_daemon.errors import ModelError
from kinship_daemon.weights.kinship import Metric, matrix
from kinship_daemon.weights.materialise import Assembly, assemble, leaf_assembly
from kinship_daemon.weights.methods.registry import is_elementwise
from kinship_daemon.weights.recipe import Coefficients, Recipe, combine, leaf
from kinship_storage.records import Model

__all__ = [
    "assembly",
    "coefficients",
    "first_leaf",
    "is_leaf",
    "leaf_models",
    "record_kinships",
    "residents",
]


def residents(d: Daemon, rows: Iterable[str]) -> dict[str, Model]:
    """
    The models of rows of the ledger whose bytes can be had, by weights identity, in that order.

    A quarantined one keeps its row for as long as its bytes are there: merges rest on it.
    """
    return {row: model for row in rows if (model := _on_disk(d, row)) is not None}


def _on_disk(d: Daemon, weights: str) -> Model | None:
    for model in d.lineage.by_weights(weights):
        try:
            d.leaf_folder(model)
        except ModelError:
            continue
        return model
    return None


def coefficients(d: Daemon, model: Model) -> Coefficients:
    """
    A model as a combination of leaves; no weight is read.

    Raises:
        ModelError: a leaf that it rests on has no row in the ledger any more.
    """
    known = d.combined.get(model.id)
    if known is None:
        known = d.combined[model.id] = _combine(d, model)
    return known


def _combine(d: Daemon, model: Model) -> Coefficients:
    if is_leaf(model):
        if model.weights not in d.ledger.rows:
            raise ModelError(f"{model.id} has no row in the ledger")
        return leaf(d.ledger, model.weights)
    assert model.recipe is not None
    recipe = Recipe.from_json(model.recipe)
    parents = [d.lineage.require(name) for name in recipe.parents]
    try:
        return combine(d.ledger, recipe, [coefficients(d, parent) for parent in parents])
    except ModelError as error:
        raise ModelError(f"{model.id} cannot be made: {error}") from None


def assembly(d: Daemon, model: Model) -> Assembly:
    """How to make a model's weights anywhere: its own file, or one pass over its leaves."""
    assert model.weights is not None
    if is_leaf(model):
        return leaf_assembly(_needed(d, model), model.weights, d.base_folder)
    combination, first = coefficients(d, model), first_leaf(d, model)
    parts = leaf_models(d, combination)
    # One that is fetched again must not take the room of another.
    with d.holding(first.id, *(leaf.id for leaf in parts.values())):
        folders = {row: _needed(d, leaf) for row, leaf in parts.items()}
        donor = _needed(d, first)
    return assemble(d.ledger, combination, d.base_folder, folders, model.weights, donor=donor)


def _needed(d: Daemon, leaf: Model) -> Path:
    folder = d.leaf_folder(leaf)
    mark_needed(d, folder)
    return folder


def is_leaf(model: Model) -> bool:
    """Whether its weights are its own: a fine-tune, or a merge that algebra cannot make."""
    return model.recipe is None or is_elementwise(model.recipe["method"])


def first_leaf(d: Daemon, model: Model) -> Model:
    """Whose tokenizer and templates a merge carries on: its first parent's, and so on up."""
    while model.recipe is not None:
        model = d.lineage.require(model.parents[0])
    return model


def leaf_models(d: Daemon, combination: Coefficients) -> dict[str, Model]:
    """The fine-tunes that a combination rests on, by weights identity."""
    return {weights: d.lineage.by_weights(weights)[0] for weights in combination.rows}


def record_kinships(d: Daemon) -> None:
    """Write down the kinship of every pair, by every metric, that is not written yet."""
    rows: dict[str, Coefficients] = {}
    weights: dict[str, str] = {}
    for model in d.population_models("admitted", "proposed"):
        assert model.weights is not None
        try:
            rows[model.id] = coefficients(d, model)
            weights[model.id] = model.weights
        except ModelError as error:
            d.quarantine(model, str(error), f"kinship:{model.weights}")
    names = sorted(rows)
    for metric in get_args(Metric):
        known = d.lineage.kinships(metric)
        missing = [
            pair
            for pair in combinations(range(len(names)), 2)
            if (names[pair[0]], names[pair[1]]) not in known
        ]
        if missing:
            values = matrix(d.ledger, [rows[name] for name in names], metric).tolist()
            d.lineage.add_kinships(
                metric,
                [(weights[names[i]], weights[names[j]], _finite(values[i][j])) for i, j in missing],
            )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
