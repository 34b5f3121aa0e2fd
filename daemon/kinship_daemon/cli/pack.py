"""`pack` and `unpack`: many fine-tunes in little more room than one."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kinship_daemon.cli.ledger import calculation_option, descendants, hub_option
from kinship_daemon.errors import UsageError
from kinship_daemon.models import find_base, find_models
from kinship_daemon.report import amount, reporter
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.emr import pack, packed_model
from kinship_daemon.weights.materialise import write

__all__ = ["pack_command", "unpack_command"]


@click.command("pack")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1, required=True)
@click.option("--base", required=True, help="Alias, org/name[@revision], folder, or demo.")
@calculation_option
@hub_option
def pack_command(
    out: Path, models: tuple[str, ...], base: str, otherwise: bool, hub: str | None
) -> None:
    """
    Write MODELS of one base to the folder OUT as EMR-Merging has them.

    That is one unified model, and of each a mask of one bit a number and a scale, of which `unpack`
    makes nearly that model again.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty; name a new folder")
    foundation, found = find_base(base, hub), find_models(models, base, hub)
    checkpoint = Checkpoint.open(foundation.folder)
    descendants(foundation, checkpoint, found, otherwise=otherwise)
    report = reporter(log_json=False, stream=sys.stderr)
    with report.progress(f"write {out}", checkpoint.nbytes, "bytes") as advance:
        pack(foundation.folder, [(each.name, each.folder) for each in found], out, advance)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    click.echo(f"{out}: {len(found)} models in {amount(size, 'bytes')}")


@click.command("unpack")
@click.argument("packed", type=click.Path(path_type=Path))
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="As for `pack`.")
@hub_option
def unpack_command(packed: Path, model: str, out: Path, base: str, hub: str | None) -> None:
    """Write MODEL, one of those in the folder PACKED, to OUT, a folder that transformers loads."""
    found = packed_model(packed, model, find_base(base, hub).folder)
    report = reporter(log_json=False, stream=sys.stderr)
    with report.progress(f"write {out}", found.open().base.nbytes, "bytes") as advance:
        write(found, out, progress=advance, without_tokenizer=True)
    click.echo(f"{out}: {model}, about as it was")
