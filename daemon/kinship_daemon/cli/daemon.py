"""A daemon's run, from a configuration to its last words; imports torch."""

from __future__ import annotations

import sys
import threading

import click

from kinship_daemon import family
from kinship_daemon.config import Config
from kinship_daemon.context import Context
from kinship_daemon.errors import KinshipError, Stopped
from kinship_daemon.estimate import estimate, estimate_lines
from kinship_daemon.layout import columns
from kinship_daemon.notify.delivery import delivering
from kinship_daemon.notify.notifier import targets
from kinship_daemon.report import Reporter
from kinship_daemon.scheduler import run_once, serve, stopping_on_signals
from kinship_daemon.startup import opened
from kinship_daemon.steps.assemblies import ingredients

__all__ = ["run", "tell_estimate"]


def run(
    config: Config, report: Reporter, *, until_converged: bool, once: bool, dry_run: bool
) -> None:
    """
    Raises:
        Abort: It was to end by itself, and was interrupted.
        KinshipError: Something is wrong with the configuration, the home or the policy.
    """
    told = targets(config.notify)
    stop = threading.Event()
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
