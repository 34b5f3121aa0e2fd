"""`stop`: ends the daemon of a home, from another terminal."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from kinship_daemon.cli.options import echo_json, find_home_of, format_option, home_options
from kinship_daemon.errors import KinshipError
from kinship_daemon.home import Home

__all__ = ["stop_command"]

# A daemon ends within five seconds of SIGTERM, whatever it does.
_SECONDS = 15.0


@click.command("stop")
@home_options
@format_option()
def stop_command(home: Path | None, base: str | None, form: str) -> None:
    """End the daemon of a home, as Ctrl-C does. What is done is saved; a new run goes on there."""
    found = find_home_of(home, base)
    pid = found.holder()
    if pid:
        _end(found, pid)
    if form == "json":
        echo_json({"home": str(found.path), "pid": pid or None})
    else:
        click.echo(f"stopped (pid {pid})" if pid else f"no daemon runs on {found.path}")


def _end(found: Home, pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended meanwhile
    except PermissionError:
        raise KinshipError(
            f"the daemon (pid {pid}) is another user's; that user can stop it"
        ) from None
    deadline = time.monotonic() + _SECONDS
    while found.holder() == pid:
        if time.monotonic() > deadline:
            words = f"the daemon (pid {pid}) is still there; `kill -9 {pid}` loses nothing"
            raise KinshipError(words)
        time.sleep(0.1)
