"""`kinship-daemon run`."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import click

from kinship_daemon import config as configuration
from kinship_daemon import family
from kinship_daemon.cli.options import config_options
from kinship_daemon.context import Context
from kinship_daemon.errors import KinshipError, Stopped, UsageError
from kinship_daemon.estimate import estimate, estimate_lines
from kinship_daemon.layout import columns
from kinship_daemon.notify.delivery import delivering
from kinship_daemon.notify.notifier import targets
from kinship_daemon.report import Reporter, reporter
from kinship_daemon.scheduler import run_once, serve, stopping_on_signals
from kinship_daemon.startup import opened
from kinship_daemon.steps.assemblies import ingredients

__all__ = ["run_command", "tell_estimate"]


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
    config = configuration.load(
        config_file, base=base, hub=hub, home=home, policy=policy, overrides=overrides
    )
    told = targets(config.notify)
    stop, report = threading.Event(), reporter(log_json=log_json)
    try:
        with (
            stopping_on_signals(stop),
            opened(config, report, check_evaluation=True, dry_run=dry_run, stop=stop) as d,
            delivering(d.home.lineage, told, d.report, d.now, 60 * config.notify.digest_minutes),
        ):
            if dry_run:
                tell_estimate(d)
            finished = run_once(d) if once else serve(d, until_converged=until_converged)
            _farewell(d, report)
            last = d.lineage.last_generation()
    except Stopped:
        finished = last = None
    if (once or until_converged) and not finished:
        raise click.Abort
    if (once or until_converged) and last is not None and last.stop_kind == "policy failed":
        raise KinshipError(str(last.stop))


def tell_estimate(d: Context) -> None:
    """What a run will take, before it starts."""
    with d.report.progress("time the base on a few documents", None, "documents"):
        timed = d.evaluators.time(d.settings, ingredients(d, d.base))
    found = estimate(d.config, d.hub, d.base.id, d.base_checkpoint.nbytes, d.policy, timed)
    for about, words in estimate_lines(d.config, found):
        d.report.event("estimate", f"{about}: {words}")


def _farewell(d: Context, report: Reporter) -> None:
    """What became of it, and where to look next."""
    export = d.lineage.export()
    width = columns() if sys.stdout.isatty() else None
    report.block("family tree", family.tree(export, width=width))
    for publication in d.lineage.publications():
        *_, verdict = d.lineage.gates_of(publication.model)
        report.event(
            "published",
            f"{publication.model} as {publication.repo} ({verdict.gain:+.4f})",
            model=publication.model,
            url=publication.url,
        )
    where = f"--home {d.home.path}"
    report.event(
        "next", f"kinship-daemon status {where}; kinship-daemon lineage {where}", home=d.home.path
    )
    if published := d.lineage.publications():
        report.event("next", f"kinship-daemon explain {published[-1].model} {where}")
