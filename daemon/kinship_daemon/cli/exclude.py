"""`exclude`: repos that a home is to leave alone."""

from __future__ import annotations

from pathlib import Path

import click

from kinship_daemon.cli.options import (
    echo_json,
    find_home_of,
    format_option,
    home_options,
    now,
    open_lineage,
)
from kinship_daemon.errors import UsageError
from kinship_daemon.exclusion import COMMAND, excluded, kept_patterns, set_patterns
from kinship_daemon.report import count
from kinship_daemon.retry import reopen
from kinship_storage.lineage import Lineage

__all__ = ["exclude_command"]


@click.command("exclude")
@click.argument("patterns", nargs=-1)
@click.option("--remove", is_flag=True, help="These patterns hold no more.")
@home_options
@format_option()
def exclude_command(
    patterns: tuple[str, ...], remove: bool, home: Path | None, base: str | None, form: str
) -> None:
    """
    Leave repos alone whose id matches a PATTERN, such as 'org/*' or '*roleplay*'; without, list.

    They are refused from the next look at the hub on, and leave the population; merges that rest
    on them stay. With --remove they are candidates again.
    """
    if not patterns:
        if remove:
            raise UsageError("--remove takes the patterns that are to go")
        _, lineage = open_lineage(home, base)
        with lineage:
            known = kept_patterns(lineage)
        if form == "json":
            echo_json({"patterns": known})
        else:
            click.echo("\n".join(known) or "nothing is excluded")
        return
    found = find_home_of(home, base)
    with Lineage.open(found.lineage, now=now, beside=True) as lineage, lineage.transaction():
        known = kept_patterns(lineage)
        if unknown := [p for p in patterns if remove and p not in known]:
            raise UsageError(f"no pattern {unknown[0]!r}; there are: {', '.join(known) or 'none'}")
        left = set(known) - set(patterns) if remove else {*known, *patterns}
        set_patterns(lineage, sorted(left))
        back = [
            model
            for model in lineage.set_aside("settings")
            if model.setting == COMMAND and excluded(str(model.repo), (), sorted(left)) is None
        ]
        for model in back:
            reopen(lineage, model)
        matching = [
            model.id
            for model in lineage.models("finetune", ("seen", "admitted"))
            if excluded(str(model.repo), (), sorted(left)) is not None
        ]
    if form == "json":
        echo_json({"patterns": sorted(left)})
    elif remove:
        click.echo(f"{count(len(back), 'model')} to be looked at again")
    else:
        names = f": {', '.join(matching[:3])}" + (", ..." if len(matching) > 3 else "")
        click.echo(
            f"{count(len(matching), 'model')} to be refused at the next look at the hub"
            + (names if matching else "")
        )
