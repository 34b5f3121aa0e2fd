"""Options that several commands share, and what they mean."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from kinship_daemon import config as configuration
from kinship_daemon import demo
from kinship_daemon.cli.place_options import home_options, place_options
from kinship_daemon.config import Config
from kinship_daemon.errors import UsageError
from kinship_daemon.home import Home, find_home
from kinship_daemon.hub.bases import resolve_base
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = [
    "config_options",
    "echo_json",
    "find_home_of",
    "find_model",
    "format_option",
    "home_of_config",
    "home_options",
    "load_config",
    "now",
    "open_lineage",
    "place_options",
]

_F = TypeVar("_F", bound=Callable[..., Any])


def now() -> datetime:
    return datetime.now(UTC)


def config_options(command: _F) -> _F:
    """--config, --base, --hub, --home, --policy, --set."""
    for option in (
        click.option(
            "overrides", "--set", multiple=True, metavar="KEY=VALUE", help="Override one key."
        ),
        click.option(
            "policy",
            "--policy",
            help="A policy, preset, YAML file or package.module:Class.",
        ),
        click.option(
            "home", "--home", type=click.Path(path_type=Path), help="The daemon's folder."
        ),
        click.option("hub", "--hub", help="URL, or folder of org/name/ repos."),
        click.option("base", "--base", help="Alias, org/name[@revision], folder, or demo."),
        click.option(
            "config_file", "--config", type=click.Path(path_type=Path), help="A YAML file."
        ),
    ):
        command = option(command)
    return command


def load_config(
    path: Path | None,
    *,
    home: Path | None = None,
    base: str | None = None,
    hub: str | None = None,
    policy: str | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """
    As `config.load`; where nothing names the base, that of the home, if there is one already.

    Raises:
        UsageError: Likewise.
    """
    flags: dict[str, Any] = {"home": home, "policy": policy, "overrides": overrides}
    config = configuration.load(path, base=base, hub=hub, **flags)
    if "base" in config.model_fields_set or config.home is None:
        return config
    lineage = Home(config.home).lineage
    if not lineage.is_file():
        return config
    with Lineage.open(lineage, now=now, readonly=True) as opened:
        known, its_hub = next(iter(opened.models("base")), None), str(opened.get("hub") or "")
    if known is None:
        return config
    if known.id == demo.BASE and "://" not in its_hub:
        return configuration.load(path, base="demo", hub=hub, **flags)
    if its_hub and "hub" not in config.model_fields_set:
        hub = its_hub
    return configuration.load(path, base=known.id, hub=hub, **flags)


def format_option(*forms: str) -> Callable[[_F], _F]:
    """--format: for people by default, or `json`, or what else a command can write."""
    choices = (*forms, "json") if forms else ("text", "json")
    return click.option(
        "form", "--format", type=click.Choice(choices), default=choices[0], show_default=True
    )


def echo_json(facts: Any) -> None:
    """What `--format json` prints; NaN is no JSON."""
    click.echo(json.dumps(facts, indent=2, allow_nan=False))


def find_home_of(home: Path | None, base: str | None) -> Home:
    """The home that the options name."""
    name = None if base is None else base if base == "demo" else resolve_base(base).name
    return find_home(home, name)


def home_of_config(config_file: Path) -> Path:
    """The home of a configuration."""
    config = configuration.load(config_file)
    return find_home_of(config.home, config.base).path


def open_lineage(home: Path | None, base: str | None) -> tuple[Home, Lineage]:
    """The home that the options name, and its lineage for reading."""
    found = find_home_of(home, base)
    return found, Lineage.open(found.lineage, now=now, readonly=True)


def find_model(lineage: Lineage, name: str) -> Model:
    """
    The model of that name, that was published as it, or the newest one of that repo.

    Raises:
        UsageError: There is none; it names the nearest.
    """
    published = {each.repo: each.model for each in lineage.publications()}
    model = lineage.model(name) or lineage.model(published.get(name, name))
    if model is None:
        model = max(lineage.of_repo(name), key=lambda each: each.created or "", default=None)
    if model is None:
        known = [*(each.id for each in lineage.models()), *published]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        hint = f"nearest: {near[0]}" if near else "it holds no model yet"
        raise UsageError(f"no model {name!r} in {lineage.path}; {hint}")
    return model
