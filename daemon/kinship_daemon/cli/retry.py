"""`retry`: opens again what was set aside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from kinship_daemon.cli.options import (
    echo_json,
    find_home_of,
    find_model,
    format_option,
    home_options,
    now,
)
from kinship_daemon.errors import UsageError
from kinship_daemon.forgetting import is_forgotten
from kinship_daemon.report import count
from kinship_daemon.retry import reopen
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model
from kinship_storage.transitions import Cause

__all__ = ["retry_command"]


@click.command("retry")
@click.argument("models", nargs=-1)
@click.option("--cause", type=click.Choice(get_args(Cause)), help="All that this set aside.")
@home_options
@format_option()
def retry_command(
    models: tuple[str, ...], cause: Cause | None, home: Path | None, base: str | None, form: str
) -> None:
    """
    Try again what was refused, quarantined or put off: these MODELs, or all of one cause.

    A running daemon takes them up at its next turn. What `forget` was given is tried again only
    by its name.
    """
    if bool(models) == (cause is not None):
        raise UsageError("name the models to try again, or a --cause, but not both")
    found = find_home_of(home, base)
    with Lineage.open(found.lineage, now=now, beside=True) as lineage, lineage.transaction():
        if cause is not None:
            put_off = [
                j for s in ("waiting", "failed") for j in lineage.jobs(s) if j.cause == cause
            ]
            jobs = [job for job in put_off if job.model is None]  # a look at the hub, a decision
            names = {job.model for job in put_off if job.model is not None}
            aside = lineage.set_aside(cause)
            names |= {model.id for model in aside if not is_forgotten(model)}
            chosen = [model for name in sorted(names) if (model := lineage.model(name)) is not None]
        else:
            jobs = []
            chosen = [find_model(lineage, name) for name in models]
            _check_forgotten(lineage, chosen)
        opened = {model.id: _open(lineage, model) for model in chosen}
        for job in jobs:
            lineage.retry(job.key)
    again = [name for name, (is_open, _) in opened.items() if is_open]
    if form == "json":
        echo_json({"models": again, "jobs": [job.kind for job in jobs]})
        return
    for name, (_, words) in opened.items():
        click.echo(f"{name}: {words}")
    for job in jobs:
        click.echo(f"{job.kind}: was {job.status} ({job.cause}): {job.reason}")
    told = [count(len(each), what) for each, what in ((again, "model"), (jobs, "job")) if each]
    if told:
        click.echo(f"{' and '.join(told)} to try again; a run on {found.path} does it")
    else:
        click.echo("there is nothing to try again")


def _check_forgotten(lineage: Lineage, chosen: Sequence[Model]) -> None:
    """That no merge comes back without what it rests on."""
    names = {model.id for model in chosen}
    for model in chosen:
        for above in lineage.ancestors(model):
            if is_forgotten(above) and above.id not in names:
                words = f"{model.id} rests on {above.id}, which is forgotten; name that, too"
                raise UsageError(words)


def _open(lineage: Lineage, model: Model) -> tuple[bool, str]:
    """Opens one model again: whether anything kept it back, and what."""
    if model.status in {"refused", "quarantined"}:
        reopen(lineage, model)
        return True, f"was {model.status} ({model.cause}): {model.reason}"
    if jobs := lineage.retry_jobs(model.id):
        return True, f"{count(jobs, 'job')} that waited or failed"
    return False, f"is {model.status}"
