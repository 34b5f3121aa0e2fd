"""`estimate`: what a run will take, before anything starts."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from kinship_daemon import demo
from kinship_daemon.cli.options import config_options, echo_json, format_option, load_config, now
from kinship_daemon.config import Config
from kinship_daemon.estimate import Estimate, estimate, estimate_lines
from kinship_daemon.evaluate.evaluator import open_evaluator
from kinship_daemon.evaluate.timing import Probe, probe
from kinship_daemon.home import state_directory
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import Hub
from kinship_daemon.layout import echo_hanging
from kinship_daemon.models import find_base
from kinship_daemon.report import reporter
from kinship_daemon.startup import evaluation_settings, home_of, the_base
from kinship_daemon.weights.materialise import leaf_assembly
from kinship_policies import registry
from kinship_storage.lineage import Lineage

__all__ = ["base_here", "estimate_command", "estimated"]


@click.command("estimate")
@config_options
@click.option("--fetch", is_flag=True, help="Fetch the base, if it is not here, to time it.")
@format_option()
def estimate_command(
    config_file: Path | None,
    overrides: tuple[str, ...],
    fetch: bool,
    form: str,
    **flags: str | None,
) -> None:
    """
    How long models and generations take, what is downloaded, and how much disk it takes.

    It times the base on a few documents, if the base is here and no daemon is at work on its home;
    it starts and fetches nothing else.
    """
    config = load_config(config_file, overrides=overrides, **flags)  # type: ignore[arg-type]
    found = estimated(config, fetch=fetch)
    if form == "json":
        echo_json(asdict(found))
        return
    for about, words in estimate_lines(config, found):
        echo_hanging(f"{about:<12}", words)
    if found.probe is None:
        pid = home_of(config).holder()
        why = (
            "the base is not here; --fetch fetches it to time it"
            if pid is None
            else f"a daemon (pid {pid}) has the device; `status` says how long its models take"
        )
        echo_hanging("times       ", f"not known: {why}")


def estimated(config: Config, *, fetch: bool = False) -> Estimate:
    """
    Raises:
        KinshipError: A setting is wrong, the hub does not answer, or the base fails.
    """
    policy = registry.make(config.policy.use, config.policy.settings)
    hub = open_hub(str(demo.HUB) if config.hub == "demo" else config.hub)
    base = the_base(config)
    folder = base_here(config) or (find_base(config.base, config.hub).folder if fetch else None)
    busy = home_of(config).holder() is not None
    found = None if folder is None or busy else _timed(config, folder)
    size = _size(hub, config, folder)
    return estimate(config, hub, base.id, size, policy, found)


def base_here(config: Config) -> Path | None:
    """Where the base's files are already: a folder, the demo's, or a home's; None if nowhere."""
    base = the_base(config)
    if base.path is not None:
        return base.path
    if config.base == "demo" or not config.hub.startswith(("http://", "https://")):
        return find_base(config.base, config.hub).folder
    home = home_of(config)
    if not home.lineage.is_file():
        return None
    with Lineage.open(home.lineage, now=now, readonly=True) as lineage:
        folders = [Path(model.folder) for model in lineage.models("base") if model.folder]
    return next((folder for folder in folders if folder.is_dir()), None)


def _timed(config: Config, folder: Path) -> Probe:
    report = reporter(log_json=False, stream=sys.stderr)
    log = state_directory() / "evaluate.log"
    with (
        closing(open_evaluator(evaluation_settings(config), log=log)) as evaluator,
        report.progress("time the base on a few documents", None, "documents"),
    ):
        return probe(evaluator, leaf_assembly(folder, config.base))


def _size(hub: Hub, config: Config, folder: Path | None) -> int:
    if folder is not None:
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    base = the_base(config)
    return sum(file.size for file in wanted(hub.repo(base.id, base.revision).files))
