"""The ledger of models named on the command line, and the options that go with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import click

from kinship_daemon.device import resolve_device
from kinship_daemon.models import Found
from kinship_daemon.report import count, reporter
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Descendant, descend

__all__ = ["device_option", "hub_option", "ledger_of", "tell_differences"]

device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
hub_option = click.option("--hub", help="Where ids that are no folders are looked up.")


def tell_differences(models: Mapping[str, Descendant]) -> None:
    """Say what configs differ from the base's, and whose values are taken."""
    for name, model in models.items():
        if model.differs is not None:
            click.echo(f"warning: {name}: {model.differs}", err=True)


def ledger_of(base: Found, models: Sequence[Found], device: str) -> tuple[gram.Ledger, int]:
    """The ledger of some checkpoints, rows named as the user named them, and the bytes read."""
    foundation = Checkpoint.open(base.folder)
    checkpoints = {model.name: descend(foundation, model.folder) for model in models}
    tell_differences(checkpoints)
    total = foundation.nbytes + sum(c.nbytes for c in checkpoints.values())
    report = reporter(log_json=False, stream=sys.stderr)
    chosen = resolve_device(device)
    with report.progress(
        f"kinship of {count(len(checkpoints), 'model')}", total, "bytes"
    ) as advance:
        blank = gram.unmeasured(foundation, base.name)
        ledger = gram.extend(blank, foundation, {}, checkpoints, device=chosen, progress=advance)
    return ledger, total
