"""Merges that algebra cannot make: written to disk, where they are leaves like the fine-tunes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.context import Context
from kinship_daemon.errors import ModelError, planning
from kinship_daemon.hub.files import local_files
from kinship_daemon.steps.assemblies import assembly
from kinship_daemon.steps.leaves import first_leaf, is_leaf, source
from kinship_daemon.steps.ledger import joined, measured, measured_with_absent, rows_on_disk
from kinship_daemon.steps.step import Step, Work, say_nothing
from kinship_daemon.weights import gram
from kinship_daemon.weights.ledger import Ledger
from kinship_daemon.weights.materialise import write
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe
from kinship_daemon.weights.shard import Made
from kinship_daemon.weights.whole_tensor import WholeTensorAssembly, whole_tensor_assembly
from kinship_storage.lineage import Lineage
from kinship_storage.records import File, Model

__all__ = ["STEP"]


@dataclass(frozen=True)
class Written:
    """A merge on the disk."""

    folder: Path
    files: tuple[File, ...]


def _plan(context: Context) -> Iterator[Work]:
    """
    Every such merge in use, or that one in use rests on, whose weights or row are missing.

    In the order of generations, so that a parent is there before its children.
    """
    made = [model for model in context.lineage.models(kind="merge") if is_leaf(model)]
    # Most homes have none, and who needs whom is a walk through the whole family.
    needed = _needed(context) if made else set()
    for model in made:
        with planning(model.id):
            is_due = model.id in needed and not _is_made(context, model)
        if is_due:
            yield Work({"weights": model.weights}, model.id)


def _needed(context: Context) -> set[str]:
    living = context.population_models("admitted", "proposed")
    above = (each.id for model in living for each in context.lineage.ancestors(model))
    return {model.id for model in living}.union(above)


def _is_made(context: Context, model: Model) -> bool:
    return model.weights in context.ledger.rows and context.files.is_whole(model)


def _run(context: Context, work: Work) -> Written:
    model = context.lineage.require(str(work.model))
    assert model.weights is not None
    name = hashlib.sha256(model.weights.encode()).hexdigest()[:16]
    folder = context.home.made / name
    with context.files.holding(*(each.id for each in context.lineage.ancestors(model))):
        ledger = _with_row(context, model, folder)
    files = tuple(
        File(
            path=name,
            size=path.stat().st_size,
            sha256=context.files.sha256(path),
        )
        for name, path in local_files(folder, folder.resolve()).items()
    )
    before = context.lineage.files(model.id)
    if before and sorted(files, key=_path) != sorted(before, key=_path):
        raise _other_bytes(model)
    ledger.save(context.home.ledger)
    context.rows.use(ledger)
    return Written(folder, files)


def _other_bytes(model: Model) -> ModelError:
    assert model.recipe is not None
    words = f"made again, {model.id} has other bytes than the first time"
    if method(model.recipe["method"]).kind == "matrix":
        # Whoever has the machine of the first time can make it.
        words = f"{words}: the device, the number of threads or torch's release is another"
        return ModelError(words, cause="world")
    return ModelError(words)


def _commit(lineage: Lineage, work: Work, made: Written) -> None:
    name = str(work.model)
    if not lineage.files(name):
        lineage.add_files(name, made.files)
    lineage.update_model(name, folder=str(made.folder))


STEP = Step("make", "disk", _plan, _run, _commit, say_nothing, feeds=True, repeats=True)


def _path(file: File) -> str:
    return file.path


def _with_row(context: Context, model: Model, folder: Path) -> Ledger:
    """The ledger with the child's row; the child is written in the same pass where it is new."""
    assert model.weights is not None
    if folder.is_dir() and not _is_whole(context, model, folder):
        shutil.rmtree(folder)
    if not folder.is_dir():
        # Now, and after all that it is made of is here: nobody may go while rows are measured.
        _assembly(context, model)
        context.files.make_room(context.base_checkpoint.nbytes, model.id)
    if model.weights in context.ledger.rows and context.lineage.files(model.id):
        # Its row is known, and holds for the very bytes that are made again.
        if not folder.is_dir():
            _write(context, model, folder, None)
        return context.ledger
    base = context.base_checkpoint
    if not folder.is_dir() and _has_other_tokens(context, model):
        _write(context, model, folder, None)
    if folder.is_dir():
        # Left whole by a process that was killed before it could write down the row, or not in the
        # base's rows, which is how a descendant is read.
        return joined(context, list(measured(context, {model.weights: folder})))
    others = {
        row: source(context.lineage, row) for row in rows_on_disk(context) if row != model.weights
    }
    known, ledger = context.descendants(others), context.ledger.keep(tuple(others))
    joining = {model.weights: folder}
    with gram.Joining(ledger, base, known, joining, device=context.device) as rows:
        _write(context, model, folder, lambda name, weights: rows.add(name, [weights]))
        part = rows.ledger()
    return joined(context, [part, *measured_with_absent(context, joining)])


def _has_other_tokens(context: Context, model: Model) -> bool:
    return any(leaf.vocabulary is not None for leaf in _assembly(context, model).open().leaves)


def _write(context: Context, model: Model, folder: Path, made: Made | None) -> None:
    total = context.base_checkpoint.nbytes
    with context.progress(f"make {model.id}", total, "bytes") as advance:
        write(_assembly(context, model), folder, progress=advance, made=made)


def _is_whole(context: Context, model: Model, folder: Path) -> bool:
    """Whether the files are those written down, if they are."""
    return all(
        (folder / file.path).is_file() and context.files.sha256(folder / file.path) == file.sha256
        for file in context.lineage.files(model.id)
    )


def _assembly(context: Context, model: Model) -> WholeTensorAssembly:
    assert model.recipe is not None
    assert model.weights is not None
    recipe = Recipe.from_json(model.recipe)
    parents = [context.lineage.require(name) for name in recipe.parents]
    first = first_leaf(context.lineage, model)
    assert first.weights is not None
    return whole_tensor_assembly(
        recipe,
        [assembly(context, parent) for parent in parents],
        context.ledger.names,
        context.base_folder,
        model.weights,
        donor=context.files.folder(source(context.lineage, first.weights)),
        device=context.device,
    )
