"""Options that several commands share, and what they mean."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from kinship_daemon import config as configuration
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
    "home_options",
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


def place_options(command: _F) -> _F:
    """--home and --base: which home is meant."""
    for option in (
        click.option("base", "--base", help="The home of this base."),
        click.option("home", "--home", type=click.Path(path_type=Path), help="The home's folder."),
    ):
        command = option(command)
    return command


def home_options(command: _F) -> _F:
    """--home, --base and --config, for commands that read a home; they get the first two."""

    @wraps(command)
    def called(*, config_file: Path | None, **given: Any) -> Any:
        if config_file is not None and given["home"] is None and given["base"] is None:
            config = configuration.load(config_file)
            given |= {"home": config.home, "base": config.base}
        return command(**given)

    config = click.option(
        "config_file",
        "--config",
        type=click.Path(path_type=Path),
        help="The home of this configuration.",
    )
    return place_options(config(called))  # type: ignore[return-value]  # it takes one argument more, by keyword


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
