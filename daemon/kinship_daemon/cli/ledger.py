"""The ledger of models named on the command line, and the options that go with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from kinship_daemon.device import resolve_device
from kinship_daemon.foreign.shown import shown
from kinship_daemon.models import Found
from kinship_daemon.report import count, reporter
from kinship_daemon.weights import gram
from kinship_daemon.weights.adapter import is_adapter, named_base, refuse_other_base
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Descendant, descend
from kinship_daemon.weights.fit import refuse_other_calculation

__all__ = [
    "calculation_option",
    "check_adapter",
    "descendants",
    "device_option",
    "hub_option",
    "ledger_of",
    "shard_option",
]

device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
shard_option = click.option(
    "--shard-gb",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Largest weight file of a folder.",
)
hub_option = click.option("--hub", help="Where ids that are no folders are looked up.")

calculation_option = click.option(
    "--allow-other-calculation",
    "otherwise",
    is_flag=True,
    help="Also models with another activation or rope than the base; the base's is taken.",
)


def check_adapter(adapter: Found, base: Found) -> None:
    """
    See that an adapter names no other base; where nobody knows what a folder holds, warn.

    Raises:
        ModelError: It does.
    """
    if base.repo is not None:
        refuse_other_base(adapter.folder, base.repo)
        return
    said = named_base(adapter.folder)
    if said is not None and said.rpartition("/")[2].lower() != base.folder.resolve().name.lower():
        words = f"it says that it was trained on {shown(said)}; is that what {base.name} holds?"
        click.echo(f"warning: {adapter.name}: {words}", err=True)


def descendants(
    base: Found, foundation: Checkpoint, models: Sequence[Found], *, otherwise: bool
) -> dict[str, Descendant]:
    """
    Models by name, checked; what their configs say otherwise than the base's is told.

    Args:
        otherwise: Also those with another activation or rope.

    Raises:
        ModelError: One cannot descend from the base.
    """
    found = {}
    for model in models:
        if is_adapter(model.folder):
            check_adapter(model, base)
        elif not otherwise:
            refuse_other_calculation(foundation, Checkpoint(model.folder, {}))
        found[model.name] = descend(foundation, model.folder)
    for name, each in found.items():
        if each.differs is not None:
            click.echo(f"warning: {name}: {each.differs}", err=True)
    return found


def ledger_of(
    base: Found, models: Sequence[Found], device: str, *, otherwise: bool = False
) -> tuple[gram.Ledger, int]:
    """The ledger of some checkpoints, rows named as the user named them, and the bytes read."""
    foundation = Checkpoint.open(base.folder)
    checkpoints = descendants(base, foundation, models, otherwise=otherwise)
    total = foundation.nbytes + sum(c.nbytes for c in checkpoints.values())
    report = reporter(log_json=False, stream=sys.stderr)
    chosen = resolve_device(device)
    with report.progress(
        f"kinship of {count(len(checkpoints), 'model')}", total, "bytes"
    ) as advance:
        blank = gram.unmeasured(foundation, base.name)
        ledger = gram.extend(blank, foundation, {}, checkpoints, device=chosen, progress=advance)
    return ledger, total
