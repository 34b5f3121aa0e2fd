"""Models of a home, for commands that otherwise take folders and hub ids."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kinship_daemon.cli.options import find_model, now
from kinship_daemon.home import find_home
from kinship_daemon.home_models import HomeModels
from kinship_daemon.models import fetch_from
from kinship_daemon.report import reporter
from kinship_daemon.steps.assemblies import combination
from kinship_daemon.weights.ledger import Ledger
from kinship_daemon.weights.materialise import write
from kinship_daemon.weights.recipe import Coefficients, base_itself
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["home_folders", "home_models", "home_rows"]


@contextmanager
def home_models(home: Path) -> Iterator[HomeModels]:
    """The models of a home, which is only read."""
    found = find_home(home, None)
    with Lineage.open(found.lineage, now=now, readonly=True) as lineage:
        hub = lineage.get("hub")
        yield HomeModels.of(found, lineage, lambda repo, at: fetch_from(hub, repo, at))


def home_rows(models: HomeModels, names: Sequence[str]) -> tuple[Ledger, list[Coefficients]]:
    """The home's ledger, and what each of these models is there; no weight is read."""
    ledger = models.recipes.rows.ledger
    chosen = [find_model(models.lineage, name) for name in names]
    rows = [
        base_itself(ledger)
        if model.kind == "base"
        else combination(models.lineage, models.recipes.rows, model)
        for model in chosen
    ]
    return ledger, rows


def home_folders(models: HomeModels, names: Sequence[str], room: Path) -> dict[str, Path]:
    """
    Where those of the names that the lineage knows lie; merges are written into `room`.

    A name that it does not know is left to others.
    """
    known = {name: model for name in names if (model := models.lineage.model(name)) is not None}
    return {name: _folder(models, model, room) for name, model in known.items()}


def _folder(models: HomeModels, model: Model, room: Path) -> Path:
    if model.kind == "base":
        return models.base_folder
    if model.recipe is None:
        return models.folder(model)
    assembly, out = models.assembly(model), room / model.id
    report = reporter(log_json=False, stream=sys.stderr)
    size = assembly.open().base.nbytes
    with report.progress(f"make {model.id}", size, "bytes") as advance:
        write(assembly, out, progress=advance, without_tokenizer=True)
    return out
