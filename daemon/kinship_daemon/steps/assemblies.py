"""How a model of the lineage is made: by algebra over leaves, until bytes are really needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from kinship_daemon.context import Context, Rows
from kinship_daemon.errors import ModelError
from kinship_daemon.execute.evaluation import Ingredients, NamedAssembly
from kinship_daemon.execute.executor import Source
from kinship_daemon.file_cache import all_files
from kinship_daemon.steps.leaves import first_leaf, is_leaf, source
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.kinship import Metric, matrix
from kinship_daemon.weights.materialise import Assembly, assemble, leaf_assembly
from kinship_daemon.weights.recipe import Coefficients, Recipe, combine, leaf
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = [
    "METRICS",
    "as_source",
    "assembly",
    "coefficients",
    "combination",
    "ingredients",
    "is_here",
    "kinship_matrix",
    "leaf_models",
    "pairwise_kinship",
    "sources_of",
]

METRICS: tuple[Metric, ...] = get_args(Metric)


def coefficients(context: Context, model: Model) -> Coefficients:
    """As `combination`, of an open home."""
    return combination(context.lineage, context.rows, model)


def combination(lineage: Lineage, rows: Rows, model: Model) -> Coefficients:
    """
    A model as a combination of leaves; no weight is read.

    Raises:
        ModelError: A leaf that it rests on has no row in the ledger any more.
    """
    combined = rows.combined
    waiting = [model]  # not by recursion: descent may be a thousand generations deep
    while waiting:
        each = waiting[-1]
        parents = () if is_leaf(each) else each.parents
        missing = [lineage.require(name) for name in parents if name not in combined]
        if missing:
            waiting += missing
        else:
            waiting.pop()
            try:
                combined[each.id] = combined.get(each.id) or _combined(rows, each)
            except ModelError as error:
                raise ModelError(str(error), cause=error.cause, model=model.id) from None
    return combined[model.id]


def _combined(rows: Rows, model: Model) -> Coefficients:
    if is_leaf(model):
        if model.weights not in rows.ledger.rows:
            raise ModelError(f"{model.id} has no row in the ledger", cause="world")
        return leaf(rows.ledger, model.weights)
    assert model.recipe is not None
    recipe = Recipe.from_json(model.recipe)
    parents = [rows.combined[parent] for parent in recipe.parents]
    try:
        return combine(rows.ledger, recipe, parents)
    except ModelError as error:
        raise ModelError(f"{model.id} cannot be made: {error}") from None


def assembly(context: Context, model: Model) -> Assembly:
    """
    How to make a model's weights anywhere: its own file, or one pass over its leaves.

    Raises:
        ModelError: It cannot be made any more.
        LeafGone: The files of a leaf cannot be had.
    """
    assert model.weights is not None
    if is_leaf(model):
        best = source(context.lineage, model.weights)
        return leaf_assembly(context.files.use(best), model.weights, context.base_folder)
    made_of, first = coefficients(context, model), first_leaf(context.lineage, model)
    assert first.weights is not None
    donor = source(context.lineage, first.weights)
    parts = leaf_models(context.lineage, made_of)
    # One that is fetched again must not take the room of another.
    with context.files.holding(donor.id, *(each.id for each in parts.values())):
        folders = {row: context.files.use(each) for row, each in parts.items()}
        return assemble(
            context.ledger,
            made_of,
            context.base_folder,
            folders,
            model.weights,
            donor=context.files.use(donor),
        )


def ingredients(context: Context, model: Model) -> Ingredients:
    """
    As `assembly`, by name, for whoever is to make the model elsewhere.

    Raises:
        ModelError, LeafGone: As `assembly`.
    """
    made, lineage = assembly(context, model), context.lineage
    names, sources, folders = {}, {}, {}
    # The base last: its own files go before those of a copy.
    for each in (*sources_of(context, model), context.base):
        weights, folder = str(each.weights), Path(str(lineage.require(each.id).folder))
        names[folder] = weights
        folders[weights] = folder
        sources[weights] = as_source(context, each, folder)
    return Ingredients(NamedAssembly.of(made, names), sources, folders)


def as_source(context: Context, model: Model, folder: Path) -> Source:
    """A model whose files lie in a folder here, for whoever is to have them elsewhere."""
    files = all_files(context.lineage.files(model.id), folder, context.files.sha256)
    return Source(files, model.repo, model.revision)


def is_here(context: Context, model: Model) -> bool:
    """Whether all that a model is made of is on this disk."""
    return all(map(context.files.is_whole, sources_of(context, model)))


def sources_of(context: Context, model: Model) -> list[Model]:
    """Whose files are read to make a model, beside the base's."""
    assert model.weights is not None
    if is_leaf(model):
        return [source(context.lineage, model.weights)]
    parts = leaf_models(context.lineage, coefficients(context, model))
    donor = first_leaf(context.lineage, model)
    return [*parts.values(), source(context.lineage, str(donor.weights))]


def leaf_models(lineage: Lineage, made_of: Coefficients) -> dict[str, Model]:
    """The leaves that a combination rests on, by weights identity."""
    return {weights: source(lineage, weights) for weights in made_of.rows}


def kinship_matrix(
    context: Context, models: Sequence[Model], metric: Metric
) -> list[list[float | None]]:
    """Kinship of every pair, from the ledger; None where it is not defined."""
    return pairwise_kinship(context.rows.ledger, [coefficients(context, m) for m in models], metric)


def pairwise_kinship(
    ledger: Ledger, made_of: Sequence[Coefficients], metric: Metric
) -> list[list[float | None]]:
    """The same of combinations of leaves."""
    values = matrix(ledger, made_of, metric).tolist()
    return [[None if value != value else value for value in row] for row in values]  # noqa: PLR0124 - NaN
