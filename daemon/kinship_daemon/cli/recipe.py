"""`recipe`: how a merge can be made again anywhere."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from kinship_daemon.cli.options import (
    echo_json,
    find_model,
    format_option,
    home_options,
    open_lineage,
)
from kinship_daemon.errors import UsageError
from kinship_daemon.steps.recipes import Recipes

__all__ = ["recipe_command"]


@click.command("recipe")
@click.argument("model")
@click.option("--made", is_flag=True, help="As it was made of its parents, which may be merges.")
@home_options
@format_option("yaml")
def recipe_command(model: str, made: bool, home: Path | None, base: str | None, form: str) -> None:
    """
    Print a merge's recipe as mergekit's YAML: from fine-tunes alone, so that anyone can make it.

    `kinship-daemon merge` makes the model of it, published or not.
    """
    found, lineage = open_lineage(home, base)
    with lineage:
        merge = find_model(lineage, model)
        if merge.recipe is None:
            raise UsageError(f"{merge.id} is no merge: it was found on the hub, and has no recipe")
        recipes = Recipes.of_home(found, lineage)
        text = recipes.made(merge) if made else recipes.from_leaves(merge)
        if form == "json":
            echo_json({"model": merge.id, "documents": list(yaml.safe_load_all(text))})
        else:
            click.echo(text, nl=False)
