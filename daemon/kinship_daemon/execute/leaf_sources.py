"""Where a node has leaves from: a folder that all machines see, and the hub itself."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from kinship_daemon.durable import whole_folder
from kinship_daemon.errors import KinshipError, Transient, Unavailable
from kinship_daemon.execute.node_cache import Leaf, Source
from kinship_daemon.hub.open import open_hub
from kinship_storage.records import File

__all__ = ["from_hub", "from_shared_folder", "share"]

_SHARING = threading.Lock()


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
    Put a leaf where all nodes see it, once; the daemon's part, from any thread.

    Raises:
        Transient: The folder's disk is full, or another daemon is putting it there.
        KinshipError: The folder cannot be written.
    """
    final = shared / leaf.key
    if final.is_dir():
        return
    with _SHARING:  # workers begin together, and with the same base
        if final.is_dir():
            return
        try:
            with whole_folder(final) as partial:
                for file in leaf.files:
                    _copy(leaf.folder / file.path, partial / file.path)
        except KinshipError as error:
            if final.is_dir():
                return  # another daemon was quicker
            raise _not_shared(shared, error) from error


def _not_shared(shared: Path, error: KinshipError) -> KinshipError:
    fault = error.__cause__
    if not isinstance(fault, OSError):
        return Transient(f"executor.shared_folder: {error}")
    where = f"executor.shared_folder {shared}: {fault.strerror}"
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return Transient(f"{where}; free some space there")
    return KinshipError(
        f"{where}; it must be a folder that the daemon may write and every node may read"
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
