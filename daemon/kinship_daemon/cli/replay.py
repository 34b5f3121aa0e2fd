"""`replay`: does the policy still decide as it did?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kinship_daemon.cli.options import echo_json, format_option, home_options, open_lineage
from kinship_daemon.context import Rows
from kinship_daemon.errors import KinshipError
from kinship_daemon.replay import replay
from kinship_daemon.report import count
from kinship_daemon.weights.gram import Ledger

__all__ = ["replay_command"]


@click.command("replay")
@home_options
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="For each decision.",
)
@format_option("table")
def replay_command(home: Path | None, base: str | None, seconds: float, form: str) -> None:
    """Decide again on every recorded decision's facts, and say what differs."""
    found, lineage = open_lineage(home, base)
    with lineage:
        decisions = list(replay(lineage, Rows(Ledger.load(found.ledger)), seconds))
    changed = [each for each in decisions if each.differences and not each.worded]
    missing = [each for each in decisions if each.missing is not None]
    if form == "json":
        echo_json([asdict(each) for each in decisions])
    else:
        for each in decisions:
            words = "; ".join(each.differences) or "the same"
            if each.missing is not None:
                words = f"cannot be taken again: {each.missing}"
            click.echo(f"decision {each.decision} ({each.policy}): {words}")
        replayed = len(decisions) - len(missing)
        click.echo(f"{count(replayed, 'decision')} replayed, {len(changed)} differ")
    if changed:
        raise KinshipError(
            f"{len(changed)} of {count(len(decisions), 'decision')} would differ today"
        )
    if missing:
        raise KinshipError(
            f"{len(missing)} of {count(len(decisions), 'decision')} could not be replayed"
        )
