"""`kinship-daemon run`."""

from __future__ import annotations

from pathlib import Path

import click

from kinship_daemon.cli.options import config_options, load_config
from kinship_daemon.errors import UsageError
from kinship_daemon.report import reporter

__all__ = ["run_command"]


@click.command("run")
@config_options
@click.option("--until-converged", is_flag=True, help="Exit when there is nothing more to gain.")
@click.option("--once", is_flag=True, help="One poll and one generation, then exit.")
@click.option("--dry-run", is_flag=True, help="Do all but write to the hub; say what would be.")
@click.option("--log-json", is_flag=True, help="One JSON object per event.")
def run_command(
    config_file: Path | None,
    base: str | None,
    hub: str | None,
    home: Path | None,
    policy: str | None,
    overrides: tuple[str, ...],
    until_converged: bool,
    once: bool,
    dry_run: bool,
    log_json: bool,
) -> None:
    """Watch, merge, evaluate and publish."""
    if once and until_converged:
        raise UsageError("--once and --until-converged exclude each other")
    config = load_config(
        config_file, base=base, hub=hub, home=home, policy=policy, overrides=overrides
    )
    report = reporter(log_json=log_json)
    report.event("start", "loading")
    # Takes seconds to import: not before something is told.
    from kinship_daemon.cli.daemon import run  # noqa: PLC0415

    run(config, report, until_converged=until_converged, once=once, dry_run=dry_run)
