"""Merges that algebra cannot make: written to disk, where they are leaves like the fine-tunes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from kinship_daemon.daemon import Daemon
from kinship_daemon.disk_space import make_room
from kinship_daemon.errors import ModelError
from kinship_daemon.hub.files import local_files
from kinship_daemon.steps.assemblies import assembly, first_leaf, is_leaf, residents
from kinship_daemon.steps.ledger_update import apart, here, joined, measured
from kinship_daemon.weights import gram
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.elementwise import ElementwiseAssembly, elementwise_assembly
from kinship_daemon.weights.ledger import Ledger
from kinship_daemon.weights.materialise import write
from kinship_daemon.weights.recipe import Recipe
from kinship_daemon.weights.shard import Made
from kinship_storage.records import File, Model

__all__ = ["make_children"]


def make_children(d: Daemon) -> None:
    """
    Make every elementwise merge whose weights or ledger row are missing.

    In the order of generations, so that a parent is there before its children. One that cannot be
    made is quarantined.
    """
    made = [model for model in d.lineage.models(kind="merge") if is_leaf(model)]
    # Most homes have none, and who needs whom is a walk through the whole family.
    needed = {model.id for model in _needed(d)} if made else set()
    for model in made:
        if model.id in needed and not _is_made(d, model):
            _make(d, model)


def _needed(d: Daemon) -> list[Model]:
    """Merges in use, and those that they rest on, though these be quarantined."""
    living = d.population_models("admitted", "proposed")
    needed = {model.id for model in living}
    needed |= {each.id for model in living for each in d.lineage.ancestors(model)}
    return [model for model in d.lineage.models("merge") if model.id in needed]


def _is_made(d: Daemon, model: Model) -> bool:
    if model.weights not in d.ledger.rows:
        return False
    try:
        d.leaf_folder(model)
    except ModelError:
        return False
    return True


def _make(d: Daemon, model: Model) -> None:
    assert model.weights is not None
    folder = d.home.made / hashlib.sha256(model.weights.encode()).hexdigest()[:16]

    def work() -> tuple[Ledger, tuple[File, ...]]:
        with d.holding(*(each.id for each in d.lineage.ancestors(model))):
            ledger = _joined(d, model, folder)
        files = tuple(
            File(
                path=path.relative_to(folder).as_posix(),
                size=path.stat().st_size,
                sha256=d.sha256(path),
            )
            for path in local_files(folder, folder.resolve())
        )
        before = d.lineage.files(model.id)
        if before and sorted(files, key=_path) != sorted(before, key=_path):
            raise ModelError(f"made again, {model.id} has other bytes than the first time")
        return ledger, files

    def record(made: tuple[Ledger, tuple[File, ...]]) -> None:
        ledger, files = made
        ledger.save(d.home.ledger)
        d.use_ledger(ledger)
        if not d.lineage.files(model.id):
            d.lineage.add_files(model.id, files)
        d.lineage.put(f"folder:{model.id}", str(folder))

    d.step("make", f"make:{model.weights}", model, work, record, redo=True)


def _path(file: File) -> str:
    return file.path


def _joined(d: Daemon, model: Model, folder: Path) -> Ledger:
    """The ledger with the child's row; the child is written in the same pass where it is new."""
    assert model.weights is not None
    if folder.is_dir() and not _is_whole(d, model, folder):
        shutil.rmtree(folder)
    if not folder.is_dir():
        # Now, and after all that it is made of is here: nobody may go while rows are measured.
        _assembly(d, model)
        make_room(d, d.base_checkpoint.nbytes, model.id)
    if model.weights in d.ledger.rows and d.lineage.files(model.id):
        # Its row is known, and holds for the very bytes that are made again.
        if not folder.is_dir():
            _write(d, model, folder, None)
        return d.ledger
    base = d.base_checkpoint
    if not folder.is_dir() and _has_other_tokens(d, model):
        _write(d, model, folder, None)
    if folder.is_dir():
        # Left whole by a process that was killed before it could write down the row, or not in the
        # base's rows, which is how a descendant is read.
        return joined(d, list(measured(d, {model.weights: descend(base, folder)})))
    others = residents(d, [row for row in here(d) if row != model.weights])
    known, ledger = d.descendants(others), d.ledger.keep(tuple(others))
    joining = {model.weights: folder}
    with gram.Joining(ledger, base, known, joining, device=d.device) as rows:
        _write(d, model, folder, lambda name, weights: rows.add(name, [weights]))
        part = rows.ledger()
    return joined(d, [part, *apart(d, {model.weights: descend(base, folder)})])


def _has_other_tokens(d: Daemon, model: Model) -> bool:
    return any(leaf.vocabulary is not None for leaf in _assembly(d, model).open().leaves)


def _write(d: Daemon, model: Model, folder: Path, made: Made | None) -> None:
    with d.report.progress(f"make {model.id}", d.base_checkpoint.nbytes, "bytes") as advance:
        write(_assembly(d, model), folder, progress=advance, made=made)


def _is_whole(d: Daemon, model: Model, folder: Path) -> bool:
    """Whether the files are those written down, if they are."""
    return all(
        (folder / file.path).is_file() and d.sha256(folder / file.path) == file.sha256
        for file in d.lineage.files(model.id)
    )


def _assembly(d: Daemon, model: Model) -> ElementwiseAssembly:
    assert model.recipe is not None
    assert model.weights is not None
    recipe = Recipe.from_json(model.recipe)
    parents = [d.lineage.require(name) for name in recipe.parents]
    return elementwise_assembly(
        recipe,
        [assembly(d, parent) for parent in parents],
        d.ledger.names,
        d.base_folder,
        model.weights,
        donor=d.leaf_folder(first_leaf(d, model)),
    )
