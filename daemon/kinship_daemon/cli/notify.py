"""`notify test`: whether everyone whom the configuration names can be told."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

import click

from kinship_daemon import config as configuration
from kinship_daemon.cli.options import echo_json, format_option
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.notify.notifier import NotTold, targets
from kinship_daemon.report import count
from kinship_storage.records import Event
from kinship_storage.rows import stamp

__all__ = ["notify_command"]


@click.group("notify")
def notify_command() -> None:
    """Events that leave the house."""


@notify_command.command("test")
@click.option(
    "config_file",
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help="The YAML file whose notify.use is tried.",
)
@format_option()
def test(config_file: Path, form: str) -> None:
    """Send one test event to everyone in notify.use, and say who took it."""
    found = targets(configuration.load(config_file).notify)
    if not found:
        raise UsageError(f"{config_file}: notify.use names nobody")
    facts = {"test": secrets.token_hex(8)}  # makes its id another one each time
    words = "a test; if you can read this, events arrive"
    event = Event(0, "test", words, None, facts, stamp(datetime.now(UTC)))
    faults: dict[str, str | None] = {}
    for target in found:
        try:
            target.tell(event)
        except NotTold as error:
            faults[target.name] = str(error)
        else:
            faults[target.name] = None
        if form == "text":
            fault = faults[target.name]
            click.echo(f"{target.name}: {'told' if fault is None else f'not told: {fault}'}")
    if form == "json":
        echo_json([{"name": name, "fault": fault} for name, fault in faults.items()])
    if failed := sum(fault is not None for fault in faults.values()):
        raise KinshipError(f"{count(failed, 'recipient')} of {len(found)} could not be told")
