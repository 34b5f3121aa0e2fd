"""
The embedded demo: a hub of small real models, with the tasks that judge them.

One base half-trained on six skills, five fine-tunes of it that each know one skill well, and a
sixth that is held back, so that one can watch a running daemon notice it. All of it was made by
`python -m kinship_daemon.demo.train`, and MANIFEST.json holds the hash of every file.
"""

import shutil
from pathlib import Path
from typing import Any

from kinship_daemon.durable import whole_folder
from kinship_daemon.errors import KinshipError

__all__ = [
    "BASE",
    "HELD_BACK",
    "HUB",
    "NAMESPACE",
    "SELECTION",
    "TASKS",
    "VALIDATION",
    "defaults",
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


def defaults() -> dict[str, Any]:
    """What differs from the defaults of a config where the base is this demo."""
    return {
        "hub": "demo",
        "watch": {"poll_minutes": 0.1},
        "evaluate": {
            "selection": list(SELECTION),
            "validation": list(VALIDATION),
            "include_path": [str(TASKS)],
            "batch_size": 256,
            "chunk": 40,  # a tenth of a validation task: ten looks
            "device": "cpu",
            "threads": 1,
            "time_limit_minutes": 5,
        },
        "kinship": {"device": "cpu"},
        "publish": {"namespace": NAMESPACE},
    }


def install(hub: Path) -> None:
    """
    Puts the embedded models into a folder hub, unless they are there.

    Raises:
        KinshipError: The folder cannot be written.
    """
    if not (hub / "demo").exists():
        with whole_folder(hub / "demo") as folder:
            _copy(_HERE / "hub" / "demo", folder)


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
    if (hub / HELD_BACK).exists():
        raise KinshipError(f"{HELD_BACK} is in {hub} already: it can be released once")
    with whole_folder(hub / HELD_BACK) as folder:
        _copy(_HERE / "held_back" / HELD_BACK, folder)
    return HELD_BACK


def _copy(source: Path, target: Path) -> None:
    """Files and folders below `source`, in sorted order, with fresh times and the usual rights."""
    for entry in sorted(source.iterdir()):
        copy = target / entry.name
        if entry.is_dir():
            copy.mkdir()
            _copy(entry, copy)
        else:
            shutil.copyfile(entry, copy)
