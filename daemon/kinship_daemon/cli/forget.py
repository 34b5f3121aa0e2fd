"""`forget`: a model that a home is to have no more."""

from __future__ import annotations

from pathlib import Path

import click

from kinship_daemon.cli.options import (
    echo_json,
    find_home_of,
    find_model,
    format_option,
    home_options,
    now,
)
from kinship_daemon.errors import KinshipError
from kinship_daemon.forgetting import forget
from kinship_daemon.report import amount, count
from kinship_storage.lineage import Lineage

__all__ = ["forget_command"]


@click.command("forget")
@click.argument("models", nargs=-1, required=True)
@click.option("--merges", is_flag=True, help="Also the living merges that rest on it.")
@home_options
@format_option()
def forget_command(
    models: tuple[str, ...], merges: bool, home: Path | None, base: str | None, form: str
) -> None:
    """
    Take MODEL out of the population for good: its files go, nothing is made of it any more.

    A model that living merges rest on is kept, unless they go, too. The lineage keeps its scores
    and its descent, and what was published stays on the hub. The same bytes stay out under any
    name; a later revision of its repo does not: `exclude` keeps a whole repo out. `retry MODEL`
    undoes it. No daemon may run on the home meanwhile.
    """
    found = find_home_of(home, base)
    if pid := found.holder():
        raise KinshipError(
            f"a daemon (pid {pid}) is at work on {found.path}; `kinship-daemon stop` it first, "
            "forget, and run it again: it goes on where it was"
        )
    with found.hold(), Lineage.open(found.lineage, now=now) as lineage:
        named = [find_model(lineage, name) for name in models]
        gone, freed = forget(found, lineage, named, merges=merges)
        repos = {each.model: each.repo for each in lineage.publications()}
    names = [model.id for model in gone]
    published = [repos[name] for name in names if name in repos]
    if form == "json":
        echo_json({"forgotten": names, "freed_bytes": freed, "published": published})
        return
    click.echo(f"{count(len(names), 'model')} forgotten: {', '.join(names)}")
    if freed:
        click.echo(f"{amount(freed, 'bytes')} removed from this disk")
    for repo in published:
        click.echo(f"{repo} stays on the hub")
    click.echo("`kinship-daemon retry MODEL` brings one back")
