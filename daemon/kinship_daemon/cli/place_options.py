"""Which home a command is to read; light to import."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["home_options", "place_options"]

_F = TypeVar("_F", bound=Callable[..., Any])


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
            # Takes a while to import, and is seldom asked for.
            from kinship_daemon import config as configuration  # noqa: PLC0415

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
