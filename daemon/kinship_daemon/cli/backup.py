"""`backup` and `restore`: the lineage as one file elsewhere, and back again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from kinship_daemon.cli.options import (
    echo_json,
    find_home_of,
    format_option,
    home_options,
    now,
    open_lineage,
)
from kinship_daemon.durable import sync
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.home import Home, state_directory
from kinship_daemon.hub.bases import resolve_base
from kinship_daemon.report import count
from kinship_storage.connections import empty_log
from kinship_storage.lineage import Lineage

__all__ = ["backup_command", "restore_command"]

_LOGS = ("-wal", "-shm")


@click.command("backup")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@home_options
@format_option()
def backup_command(
    file: Path | None, force: bool, home: Path | None, base: str | None, form: str
) -> None:
    """
    Copy the lineage to FILE, by default a new one in the home's folder `backups`.

    A daemon may run meanwhile. Weights are not copied: they are fetched or made again.
    """
    found, lineage = open_lineage(home, base)
    target = file or found.path / "backups" / f"lineage-{now():%Y-%m-%dT%H-%M-%SZ}.db"
    with closing(lineage):
        if target.exists() and not (force and target.is_file()):
            raise UsageError(f"{target} exists; name another file, or overwrite it with --force")
        if target.resolve() == found.lineage.resolve():
            raise UsageError(f"{target} is the lineage itself; name another file")
        partial = target.with_name(f".{target.name}.partial")
        try:
            if file is None:
                target.parent.mkdir(exist_ok=True)
            partial.unlink(missing_ok=True)
            try:
                lineage.backup(partial)
                _put(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise KinshipError(
                f"cannot write {target}: {error.strerror}; name a file in a folder you may write to"
            ) from error
    if form == "json":
        echo_json({"file": str(target), "lineage": str(found.lineage)})
    else:
        click.echo(f"{target}: {found.lineage} as it is now, checked")


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@home_options
@format_option()
def restore_command(file: Path, home: Path | None, base: str | None, form: str) -> None:
    """
    Put the backup FILE in the lineage's place; the old one is kept under another name.

    FILE is checked first. No daemon may run on the home.
    """
    found = _home(home, base)
    if file.resolve() == found.lineage.resolve():
        raise UsageError(f"{file} is the lineage itself; name a backup")
    with found.hold():
        partial = found.lineage.with_name(".lineage.db.partial")
        try:
            partial.unlink(missing_ok=True)
            try:
                with closing(Lineage.open(file, now=now, readonly=True)) as backup:
                    backup.backup(partial)
                with Lineage.open(partial, now=now, readonly=True) as copy:
                    models, last = len(copy.models()), copy.last_generation()
                kept = _keep(found.lineage)
                _put(partial, found.lineage)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise KinshipError(f"cannot restore {found.lineage}: {error.strerror}") from error
    decisions = 0 if last is None else last.number
    if form == "json":
        old = None if kept is None else str(kept)
        facts = {"lineage": str(found.lineage), "models": models, "decisions": decisions}
        echo_json({**facts, "kept": old})
        return
    click.echo(
        f"{found.lineage}: {count(models, 'model')}, {count(decisions, 'decision')}, from {file}"
    )
    if kept is not None:
        click.echo(f"the old one is {kept}")


def _home(home: Path | None, base: str | None) -> Home:
    """The home that the options name, whether or not there is a lineage in it any more."""
    if home is not None:
        if not home.is_dir():
            raise UsageError(f"no folder {home}; name the home that is to have its lineage back")
        return Home(home)
    if base is not None:
        name = base if base == "demo" else resolve_base(base).name
        return _home(state_directory() / name, None)
    return find_home_of(None, None)


def _put(partial: Path, target: Path) -> None:
    """Under its final name only when it is whole and on disk."""
    sync(partial)
    partial.replace(target)
    sync(target.parent)


def _keep(lineage: Path) -> Path | None:
    """
    Give the lineage a second name, with its log; None where there is none.

    A kill at any moment leaves `lineage` in its place. Its log is emptied into it first, as it
    must not be found beside another file; only of a damaged one, which nobody writes to, it is
    moved.
    """
    _forget_names(lineage)
    emptied = lineage.exists() and empty_log(lineage)
    stem, number = f"lineage-{now():%Y-%m-%dT%H-%M-%SZ}", 1
    kept = lineage.with_name(f"{stem}.replaced.db")
    while kept.exists():
        number += 1
        kept = lineage.with_name(f"{stem}-{number}.replaced.db")
    there = lineage.exists()
    if there:
        kept.hardlink_to(lineage)
        sync(lineage.parent)
    for log in _LOGS:
        file = lineage.with_name(f"{lineage.name}{log}")
        if emptied:
            file.unlink(missing_ok=True)
        elif file.exists():
            file.rename(kept.with_name(f"{kept.name}{log}"))
    return kept if there else None


def _forget_names(lineage: Path) -> None:
    """A second name that a restore gave before it was killed: both would be written to."""
    for kept in lineage.parent.glob("lineage-*.replaced.db"):
        own_log = kept.with_name(f"{kept.name}{_LOGS[0]}")
        if lineage.exists() and kept.samefile(lineage) and not own_log.exists():
            kept.unlink()
