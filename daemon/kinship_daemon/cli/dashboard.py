"""`dashboard` and `report`: a home to look at, in a browser or as one file."""

from __future__ import annotations

from pathlib import Path

import click

from kinship_daemon import config as configuration
from kinship_daemon.cli.options import find_home_of, home_options, place_options
from kinship_daemon.durable import whole_file
from kinship_daemon.home import Home
from kinship_daemon.report import amount, count

__all__ = ["dashboard_command", "report_command"]


@click.command("dashboard")
@place_options
@click.option(
    "config_file",
    "--config",
    type=click.Path(path_type=Path),
    help="The daemon's: its home, and web.token.",
)
@click.option("host", "--host", help="Address to listen at.  [default: 127.0.0.1]")
@click.option("port", "--port", type=click.IntRange(0, 65535), help="[default: 8090]")
def dashboard_command(
    home: Path | None,
    base: str | None,
    config_file: Path | None,
    host: str | None,
    port: int | None,
) -> None:
    """Look at a home in a browser, beside a running daemon or without one. It only reads."""
    from kinship_daemon.web.serving import serve  # noqa: PLC0415 - only who serves imports it

    config = configuration.load(config_file, base=base, home=home)
    web, found = config.web, _home(config, home, base, config_file)
    token = None if web.token is None else web.token.get_secret_value()
    serve(
        found,
        host or web.host,
        web.port or _PORT if port is None else port,
        token,
        lambda server: click.echo(_words(server.url, found, is_open=server.is_open)),
    )


@click.command("report")
@click.argument("out", type=click.Path(path_type=Path))
@home_options
def report_command(out: Path, home: Path | None, base: str | None) -> None:
    """Write the dashboard's pages to OUT, one HTML file that needs nothing else."""
    from kinship_daemon.web.report import report  # noqa: PLC0415 - only who shows imports it

    text, left_out = report(find_home_of(home, base))
    whole_file(out, text.encode())
    more = f"; {count(left_out, 'model')} without a section of their own" if left_out else ""
    click.echo(f"wrote {out} ({amount(len(text.encode()), 'bytes')}){more}", err=True)


_PORT = 8090


def _home(
    config: configuration.Config, home: Path | None, base: str | None, config_file: Path | None
) -> Home:
    """The home that the options name, or else the one that the config does."""
    if config_file is not None and home is None and base is None:
        return find_home_of(config.home, config.base)
    return find_home_of(home, base)


def _words(url: str, home: Home, *, is_open: bool) -> str:
    lines = f"{home.path} is shown at {url}; Ctrl-C ends it"
    if not is_open:
        return lines
    return (
        f"{lines}\nit has no password: whoever reaches this address can look; "
        "set web.token in a config file (--config) to ask for one"
    )
