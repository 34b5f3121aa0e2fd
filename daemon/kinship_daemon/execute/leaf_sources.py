"""Where a node has leaves from: a folder that all machines see, and the hub itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from kinship_daemon.durable import sync
from kinship_daemon.errors import KinshipError, Unavailable
from kinship_daemon.execute.node_cache import Leaf, Source
from kinship_daemon.hub.open import open_hub
from kinship_storage.records import File

__all__ = ["from_hub", "from_shared_folder", "share"]


def from_shared_folder(shared: Path) -> Source:
    """Copies leaves from `shared`/KEY, where `share` has put them."""

    def bring(leaf: Leaf, files: Sequence[File], into: Path) -> None:
        if not shared.is_dir():
            raise Unavailable(
                f"executor.shared_folder {shared} is not seen there; mount it on every node"
            )
        if not (shared / leaf.key).is_dir():
            raise Unavailable(f"executor.shared_folder {shared} has no {leaf.key}")
        for file in files:
            _copy(shared / leaf.key / file.path, into / file.path)

    return bring


def from_hub(where: str, arriving: Path) -> Source:
    """
    Fetches leaves at their revision; what was made here no hub has.

    The node's own token is used, where it has one: it need only read.

    Args:
        arriving: Where a fetch that was cut off is gone on from.
    """

    def bring(leaf: Leaf, files: Sequence[File], into: Path) -> None:
        if leaf.repo is None or leaf.revision is None:
            raise Unavailable(
                "it was made by the daemon and is on no hub: set executor.shared_folder"
            )
        hub = open_hub(where)
        fetched = hub.fetch(hub.repo(leaf.repo, leaf.revision), arriving)
        for file in files:
            target = into / file.path
            if hub.copies:
                target.parent.mkdir(parents=True, exist_ok=True)
                (fetched / file.path).rename(target)
            else:
                _copy(fetched / file.path, target)
        if hub.copies:
            shutil.rmtree(fetched)

    return bring


def share(leaf: Leaf, shared: Path) -> None:
    """
    Put a leaf where all nodes see it, once; the daemon's part.

    Raises:
        KinshipError: The folder cannot be written, or its disk is full.
    """
    final = shared / leaf.key
    if final.is_dir():
        return
    partial = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for file in leaf.files:
            _copy(leaf.folder / file.path, partial / file.path)
        for entry in sorted(partial.rglob("*")):
            sync(entry)
        partial.rename(final)
        sync(shared)
    except OSError as error:
        raise KinshipError(
            f"executor.shared_folder {shared}: {error.strerror}; it must be a folder that the "
            "daemon may write and every node may read"
        ) from error


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
