"""`merge`: a model from a mergekit recipe, by hand, without a home."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from kinship_daemon.cli.ledger import device_option, hub_option, ledger_of
from kinship_daemon.errors import UsageError
from kinship_daemon.models import find_models
from kinship_daemon.report import reporter
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.materialise import assemble, write
from kinship_daemon.weights.mergekit import read_yaml
from kinship_daemon.weights.recipe import check, combine, leaf

__all__ = ["merge_command"]


@click.command("merge")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@device_option
@hub_option
def merge_command(recipe: Path, out: Path, device: str, hub: str | None) -> None:
    """Make a model from RECIPE, mergekit's YAML, in the folder OUT."""
    try:
        text = recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {recipe}: {error}") from None
    wanted = read_yaml(text)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty; name a new folder")
    names = dict.fromkeys((wanted.base, *wanted.recipe.parents))
    base, *others = find_models(list(names), None, hub)
    tensors = tuple(Checkpoint.open(base.folder).tensors)
    wanted.check(tensors)
    check(wanted.recipe, tensors)
    ledger, _ = ledger_of(base, others, device)
    parents = [leaf(ledger, name) for name in wanted.recipe.parents]
    made = assemble(
        ledger,
        combine(ledger, wanted.recipe, parents),
        base.folder,
        {model.name: model.folder for model in others},
        wanted.recipe.identity(wanted.recipe.parents),
        donor=base.folder,
    )
    report = reporter(log_json=False, stream=sys.stderr)
    size = Checkpoint.open(base.folder).nbytes
    dtype = None if wanted.dtype is None else getattr(torch, wanted.dtype)
    with report.progress(f"write {out}", size, "bytes") as advance:
        files = write(made, out, dtype=dtype, progress=advance)
    click.echo(f"{out}: {wanted.recipe.method} of {', '.join(wanted.recipe.parents)}")
    for name, sha256 in files.items():
        click.echo(f"{sha256}  {name}")
