"""`recipe`: how a merge can be made again anywhere."""

from __future__ import annotations

from pathlib import Path

import click

from kinship_daemon.cli.options import find_model, home_options, open_lineage
from kinship_daemon.context import Rows
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.steps.recipes import Recipes
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.ledger import Ledger

__all__ = ["recipe_command"]


@click.command("recipe")
@click.argument("model")
@click.option("--made", is_flag=True, help="As it was made of its parents, which may be merges.")
@home_options
def recipe_command(model: str, made: bool, home: Path | None, base: str | None) -> None:
    """
    Print a merge's recipe as mergekit's YAML: from fine-tunes alone, so that anyone can make it.

    `kinship-daemon merge` makes the model of it, published or not.
    """
    found, lineage = open_lineage(home, base)
    with lineage:
        merge = find_model(lineage, model)
        if merge.recipe is None:
            raise UsageError(f"{merge.id} is no merge: it was found on the hub, and has no recipe")
        if not found.ledger.is_file():
            raise KinshipError(f"{found.path} has no ledger; the next run computes it again")
        (origin,) = lineage.models("base")
        dtype = Checkpoint.open(Path(str(origin.folder))).main_dtype
        recipes = Recipes(lineage, Rows(Ledger.load(found.ledger)), origin, dtype)
        click.echo(recipes.made(merge) if made else recipes.from_leaves(merge), nl=False)
