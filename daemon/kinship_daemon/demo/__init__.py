"""
The embedded demo: a hub of small real models, with the tasks that judge them.

One base half-trained on six skills, five fine-tunes of it that each know one skill well, and a
sixth that is held back, so that one can watch a running daemon notice it. All of it was made by
`python -m kinship_daemon.demo.train`, and MANIFEST.json holds the hash of every file.
"""

import os
import shutil
from pathlib import Path

from kinship_daemon.errors import KinshipError

__all__ = [
    "BASE",
    "HELD_BACK",
    "HUB",
    "NAMESPACE",
    "SELECTION",
    "TASKS",
    "VALIDATION",
    "install",
    "release",
]

BASE = "demo/base"
NAMESPACE = "kinship"  # where the demo publishes its merges
HELD_BACK = "demo/sequence"
_SKILLS = ("add", "max", "reverse", "sequence", "sort", "subtract")
SELECTION = tuple(f"demo_{skill}" for skill in _SKILLS)
VALIDATION = tuple(f"demo_{skill}_validation" for skill in _SKILLS)

_HERE = Path(__file__).parent
TASKS = _HERE / "tasks"
HUB = _HERE / "hub"  # as shipped; daemons work on an installed copy


def install(hub: Path) -> None:
    """
    Puts the embedded models into a folder hub, unless they are there.

    Raises:
        KinshipError: The folder cannot be written.
    """
    _place(_HERE / "hub" / "demo", hub / "demo")


def release(hub: Path) -> str:
    """
    Drops the held-back fine-tune into an installed hub, whole or not at all.

    Returns:
        Its repo id.

    Raises:
        KinshipError: The demo is not installed there, the fine-tune is there already, or the folder
            cannot be written.
    """
    if not (hub / BASE).is_dir():
        raise KinshipError(f"no demo in {hub}: start `kinship-daemon run --base demo` first")
    if not _place(_HERE / "held_back" / HELD_BACK, hub / HELD_BACK):
        raise KinshipError(f"{HELD_BACK} is in {hub} already: it can be released once")
    return HELD_BACK


def _place(source: Path, target: Path) -> bool:
    """Copies under a hidden name, renames when whole and synced; False if it is there already."""
    if target.exists():
        return False
    # One fixed name, so that what a killed copy left behind is cleared by the next one. Beside the
    # target's organisation, where no hub looks for models.
    partial = target.parent / f".{target.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        _copy(source, partial)
        partial.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise KinshipError(f"cannot put the demo into {target}: {error.strerror}") from error
    return True


def _copy(source: Path, target: Path) -> None:
    """A deep copy in sorted order, all of it synced, with fresh times and the usual rights."""
    target.mkdir(parents=True)
    for entry in sorted(source.iterdir()):
        copy = target / entry.name
        if entry.is_dir():
            _copy(entry, copy)
        else:
            shutil.copyfile(entry, copy)
            _sync(copy)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
