"""A leaf whose files changed or are gone is fetched again, or set aside with its merges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kinship_daemon.context import Context
from kinship_daemon.errors import planning
from kinship_daemon.steps.leaves import leaves
from kinship_daemon.steps.step import Step, Work, say_nothing
from kinship_storage.lineage import Lineage

__all__ = ["STEP"]


def _plan(context: Context) -> Iterator[Work]:
    """Leaves that should be here and are not; one that made room is fetched when it is needed."""
    for weights, leaf in leaves(context.lineage).items():
        with planning(leaf.id):
            is_lost = leaf.folder is not None and not context.files.is_whole(leaf)
        if is_lost:
            yield Work({"weights": weights, "repo": leaf.repo}, leaf.id)


def _run(context: Context, work: Work) -> Path:
    return context.files.folder(context.lineage.require(str(work.model)))


def _commit(lineage: Lineage, work: Work, folder: Path) -> None:
    lineage.update_model(str(work.model), folder=str(folder))


STEP = Step("refetch", "hub", _plan, _run, _commit, say_nothing, repeats=True)
