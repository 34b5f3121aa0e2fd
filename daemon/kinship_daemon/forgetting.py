"""Models that somebody wants out of a home: they leave the population, and their files the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from kinship_daemon.errors import UsageError
from kinship_daemon.home import Home
from kinship_daemon.hub.files import place
from kinship_daemon.steps.leaves import dependents
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["COMMAND", "forget", "is_forgotten"]

COMMAND = "forget"  # stands in a setting's place
_REASON = "forgotten by hand"
_FEW = 5  # merges that are named


def is_forgotten(model: Model) -> bool:
    return model.setting == COMMAND


def forget(
    home: Home, lineage: Lineage, models: Sequence[Model], *, merges: bool
) -> tuple[list[Model], int]:
    """
    Take models out of the population for good, and their files off this disk.

    Their rows stay: merges, decisions and publications name them. A kill leaves none of it done,
    or only files that another call removes. Only for who holds the home.

    Args:
        merges: The living merges that rest on them are forgotten, too.

    Returns:
        Who is forgotten, in the order of generations, and how many bytes became free.

    Raises:
        UsageError: One of them is the base, or living merges rest on it; nothing is changed then.
    """
    with lineage.transaction():
        going = {model.id: model for model in models}
        for model in models:
            if model.kind == "base":
                raise UsageError(f"{model.id} is the base: everything rests on it")
            resting = {each.id: each for each in dependents(lineage, model.id)}
            if not merges and (left := [name for name in resting if name not in going]):
                more = f" and {len(left) - _FEW} more" if len(left) > _FEW else ""
                raise UsageError(
                    f"living merges rest on {model.id}: {', '.join(left[:_FEW])}{more}; "
                    "--merges forgets them, too"
                )
            going |= resting
        found = sorted(going.values(), key=lambda each: (each.generation, each.id))
        for model in found:
            if not is_forgotten(model):
                lineage.move_model(
                    model.id, "forget", reason=_REASON, cause="settings", setting=COMMAND
                )
            lineage.retry_jobs(model.id)  # nothing waits for it any more
    return found, sum(_remove(home, lineage, model) for model in found)


def _remove(home: Home, lineage: Lineage, model: Model) -> int:
    """Bytes of a model's files in the home, which are removed; a folder hub's own stay."""
    freed = 0
    for folder in set(_folders(home, model)):
        if folder.is_dir():
            freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            shutil.rmtree(folder)
    # Last: after a kill, the next call still knows where they are.
    lineage.update_model(model.id, folder=None)
    return freed


def _folders(home: Home, model: Model) -> Iterator[Path]:
    """Where its files are, or were arriving."""
    if model.repo is not None and model.revision is not None:
        yield from place(home.cache, model.repo, model.revision)
    elif model.folder is not None and Path(model.folder).is_relative_to(home.made):
        yield Path(model.folder)
