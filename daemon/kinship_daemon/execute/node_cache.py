"""
Leaves on a node: each is there once, under the hash of its content, for all workers of the node.

A worker holds the leaves that it reads from; what nobody holds goes, least recently used first,
when another leaf needs the room. Several processes may use one cache: per leaf there is a lock
file, which a filler holds alone and readers share, and which a killed process lets go.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.durable import hash_file, sync
from kinship_daemon.errors import KinshipError, Stopped, Transient
from kinship_storage.records import File

__all__ = ["Leaf", "NodeCache", "Source", "leaf_key", "machine"]

_TICK_SECONDS = 0.1
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Leaf:
    """
    A folder of files: a base, a fine-tune, or a merge that was written. Small, and picklable.

    Attributes:
        name: For messages.
        files: All that it consists of.
        folder: Where it lies on the daemon's machine.
        machine: Which machine that is; see `machine`.
        repo: Where a hub has it, with `revision`; None for what no hub has.
    """

    name: str
    files: tuple[File, ...]
    folder: Path
    machine: str
    repo: str | None = None
    revision: str | None = None

    @property
    def key(self) -> str:
        return leaf_key(self.files)

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)


def leaf_key(files: Iterable[File]) -> str:
    """Hash of the names and contents of a leaf's files."""
    listed = "".join(f"{file.sha256} {file.path}\n" for file in sorted(files, key=_path))
    return hashlib.sha256(listed.encode()).hexdigest()[:32]


def _path(file: File) -> str:
    return file.path


# Puts these files of a leaf into a folder, or says in a KinshipError why it cannot.
Source = Callable[[Leaf, Sequence[File], Path], None]


def machine() -> str:
    """The same text for processes that may see the same files: this boot of this machine."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


class NodeCache:
    """
    The leaves of one node.

    Args:
        root: Its folder, which is made; on a disk of the node's own.
        disk_bytes: What it may hold.
        sources: Where a leaf is had from; the first that gives it.
        stop: Ends every wait for another process with Stopped.
    """

    def __init__(
        self,
        root: Path,
        *,
        disk_bytes: float,
        sources: Sequence[Source],
        stop: threading.Event | None = None,
    ) -> None:
        self._root = root
        self._disk_bytes = disk_bytes
        self._sources = sources
        self._stop = stop or threading.Event()
        self._node = socket.gethostname()
        # Files that this process has hashed: path, size and time of change.
        self._good: set[tuple[Path, int, int]] = set()

    def has(self, leaf: Leaf) -> bool:
        """Whether it would be there at once, as far as names and sizes tell."""
        return self._in_place(leaf) or _sizes_fit(leaf, self._root / leaf.key)

    def keys(self) -> list[str]:
        """Of the leaves that are there, whole."""
        return [key for key in self._keys() if (self._root / key).is_dir()]

    @contextmanager
    def holding(self, leaves: Sequence[Leaf]) -> Iterator[dict[str, Path]]:
        """
        The folders of these leaves by key, which stay as they are inside the block.

        On the daemon's own machine they are its files, and nothing is copied.

        Raises:
            Transient: No source gives a leaf; or the node's disk, or `executor.node_disk_gb`, is
                full of what is in use.
            Stopped: While it waited for another process.
        """
        self._check_fit_together(leaves)
        with ExitStack() as held:
            folders = {}
            for leaf in leaves:
                if leaf.key not in folders:
                    folders[leaf.key] = self._folder(leaf, held)
            yield folders

    def _check_fit_together(self, leaves: Sequence[Leaf]) -> None:
        """Before any is brought in vain."""
        sizes = {leaf.key: leaf.nbytes for leaf in leaves if not self._in_place(leaf)}
        if len(sizes) > 1 and sum(sizes.values()) > self._disk_bytes:
            raise Transient(
                f"node {self._node} has no room for {len(sizes)} models at once "
                f"({sum(sizes.values()) / 1e9:.1f} GB): executor.node_disk_gb is "
                f"{self._disk_bytes / 1e9:g}; raise it"
            )

    def _folder(self, leaf: Leaf, held: ExitStack) -> Path:
        if self._in_place(leaf) and not self._wrong(leaf, leaf.folder):
            return leaf.folder
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            final = self._root / leaf.key
            while True:
                with ExitStack() as reading:
                    reading.enter_context(self._reading(leaf))
                    # Nobody removes it from here on.
                    if not self._wrong(leaf, final):
                        moment = time.time_ns()
                        os.utime(final, ns=(moment, moment))
                        held.push(reading.pop_all())
                        return final
                # Whoever waits looks again instead of waiting for this lock: the leaf may arrive,
                # and its readers may hold it for hours.
                with self._alone(leaf) as is_alone:
                    if is_alone and self._wrong(leaf, final):
                        self._fill(leaf, final)
                if not is_alone and self._stop.wait(_TICK_SECONDS):
                    raise Stopped
        except OSError as error:
            raise self._disk_fault(leaf, error) from error

    def _in_place(self, leaf: Leaf) -> bool:
        return leaf.machine == machine() and _sizes_fit(leaf, leaf.folder)

    def _wrong(self, leaf: Leaf, folder: Path) -> list[File]:
        """Files that are missing or damaged; each is hashed once by this process."""
        return [file for file in leaf.files if not self._is_good(folder / file.path, file)]

    def _is_good(self, path: Path, file: File) -> bool:
        try:
            stat = path.stat()
        except OSError:
            return False
        if stat.st_size != file.size:
            return False
        known = (path, stat.st_size, stat.st_mtime_ns)
        if known not in self._good and hash_file(path) == file.sha256:
            self._good.add(known)
        return known in self._good

    def _fill(self, leaf: Leaf, final: Path) -> None:
        """Bring a leaf; the caller holds its lock alone."""
        partial = _partial(final)
        if final.exists():  # damaged: what is good of it stays
            shutil.rmtree(partial, ignore_errors=True)
            final.rename(partial)
        self._make_room(leaf)
        refusals = []
        for source in self._sources:
            missing = self._wrong(leaf, partial)
            if not missing:
                break
            try:
                source(leaf, missing, partial)
            except KinshipError as error:
                refusals.append(str(error))
            else:
                if wrong := self._wrong(leaf, partial):
                    (partial / wrong[0].path).unlink(missing_ok=True)
                    refusals.append(f"{wrong[0].path} arrives with other content than was admitted")
        if self._wrong(leaf, partial):
            why = "; ".join(refusals) or "there is nobody to ask"
            raise Transient(f"node {self._node} cannot have {leaf.name}: {why}")
        _sweep(partial, {Path(file.path).parts[0] for file in leaf.files})
        for entry in sorted(partial.rglob("*")):
            sync(entry)
        sync(partial)
        partial.rename(final)
        sync(self._root)

    def _make_room(self, leaf: Leaf) -> None:
        """Remove what nobody holds until a leaf fits into the budget and onto the disk; take it."""
        partial = _partial(self._root / leaf.key)
        with _lock(self._root / ".room", self._stop, fcntl.LOCK_EX):
            there = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
            others = [key for key in self._keys() if key != leaf.key]
            for key in sorted(others, key=self._used_at):
                if self._lacking(leaf, there, others) <= 0:
                    break
                if self._removed(key):
                    others.remove(key)
            lacking = self._lacking(leaf, there, others)
            if lacking <= 0:
                partial.mkdir(exist_ok=True)  # from now on others see that the room is taken
        if lacking > 0:
            free = shutil.disk_usage(self._root).free
            raise Transient(
                f"node {self._node} has no room for {leaf.name} ({leaf.nbytes / 1e9:.1f} GB): "
                f"executor.node_disk_gb is {self._disk_bytes / 1e9:g}, its disk has "
                f"{free / 1e9:.1f} GB free; raise the one or free some of the other"
            )

    def _lacking(self, leaf: Leaf, there: int, others: Sequence[str]) -> float:
        used = sum(self._declared(key) for key in others)
        budget = used + leaf.nbytes - self._disk_bytes
        return max(budget, leaf.nbytes - there - shutil.disk_usage(self._root).free)

    def _keys(self) -> list[str]:
        """Keys of leaves that take room, whole or arriving."""
        keys = (path.stem for path in sorted(self._root.glob("*.lock")))
        return [key for key in keys if any(p.exists() for p in _places(self._root / key))]

    def _declared(self, key: str) -> int:
        try:
            return int(self._lock_file(key).read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            return 0

    def _used_at(self, key: str) -> tuple[bool, int]:
        """Leftovers of a filling that was cut off go first."""
        final = self._root / key
        there = final.exists()
        return there, final.stat().st_mtime_ns if there else 0

    def _removed(self, key: str) -> bool:
        """Whether a leaf could be removed: nobody holds it."""
        with self._lock_file(key).open("rb") as file:
            if not _locked(file.fileno(), fcntl.LOCK_EX):
                return False
            final = self._root / key
            if final.exists():
                # First: what a kill leaves of it is no whole leaf.
                shutil.rmtree(_partial(final), ignore_errors=True)
                final.rename(_partial(final))
            for place in _places(final):
                shutil.rmtree(place, ignore_errors=True)
            return True

    @contextmanager
    def _reading(self, leaf: Leaf) -> Iterator[None]:
        with _lock(self._lock_file(leaf.key), self._stop, fcntl.LOCK_SH):
            yield

    @contextmanager
    def _alone(self, leaf: Leaf) -> Iterator[bool]:
        """Whether nobody else has anything to do with a leaf, nor will inside the block."""
        with self._lock_file(leaf.key).open("ab") as file:
            is_alone = _locked(file.fileno(), fcntl.LOCK_EX)
            if is_alone:
                # The file says how much room its leaf takes, and stays: removing it would need a
                # lock.
                file.truncate(0)
                file.write(str(leaf.nbytes).encode())
                file.flush()
            yield is_alone

    def _lock_file(self, key: str) -> Path:
        return self._root / f"{key}.lock"

    def _disk_fault(self, leaf: Leaf, error: OSError) -> Transient:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = "free some space there, or lower executor.node_disk_gb"
            return Transient(
                f"node {self._node}: the disk of {self._root} is full; {free} ({leaf.name})"
            )
        return Transient(
            f"node {self._node}: {error.filename or self._root} cannot be used for {leaf.name} "
            f"({error.strerror}); set executor.node_cache to a folder that its workers may write"
        )


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _places(final: Path) -> tuple[Path, Path]:
    return final, _partial(final)


def _sweep(folder: Path, kept: set[str]) -> None:
    """Remove what a source that was cut off has left."""
    for entry in sorted(folder.iterdir()):
        if entry.name in kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sizes_fit(leaf: Leaf, folder: Path) -> bool:
    try:
        return all((folder / file.path).stat().st_size == file.size for file in leaf.files)
    except OSError:
        return False


@contextmanager
def _lock(path: Path, stop: threading.Event, how: int) -> Iterator[None]:
    with path.open("ab") as file:
        while not _locked(file.fileno(), how):
            if stop.wait(_TICK_SECONDS):
                raise Stopped
        yield


def _locked(handle: int, how: int) -> bool:
    """Whether a file could be locked, now."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
