"""
The files of models on this disk: fetched when they are needed, and gone when others need the room.

What a living recipe rests on stays, and so does what is at work now, what was never evaluated, and
what the hub does not have any more. The rest is fetched again when it is needed.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kinship_daemon.durable import changed_ns, hash_file
from kinship_daemon.errors import BudgetReached, LeafGone, Stopped, Unavailable
from kinship_daemon.home import Home
from kinship_daemon.hub.files import local_files, place, sidecars, wanted
from kinship_daemon.hub.records import Hub, Repo, RepoFile, UnknownRepo
from kinship_daemon.report import Reporter
from kinship_storage.lineage import Lineage
from kinship_storage.records import File, Model

__all__ = ["FileCache", "FileHashes", "NoRoom", "all_files"]

# What else becomes larger meanwhile, such as the ledger, as a share of a model.
_GROWTH = 1.1
# Hashes of files from this size on are written down at once, others so many at a time.
_LARGE_BYTES = 100_000_000
_MANY = 100


class NoRoom(BudgetReached):
    """limits.disk_gb is reached, and nothing that is kept can be done without."""


class FileCache:
    """
    Where the files of leaves lie. For one thread.

    Args:
        disk_gb: What the home may hold, in 10^9 bytes.
        keep: Ids of the models whose files stay.
        day: The UTC day that downloads count for.
    """

    def __init__(
        self,
        home: Home,
        hub: Hub,
        lineage: Lineage,
        report: Reporter,
        *,
        sha256: FileHashes,
        disk_gb: float,
        keep: Callable[[], set[str]],
        day: Callable[[], str],
    ) -> None:
        self._home = home
        self._hub = hub
        self._lineage = lineage
        self._report = report
        self._disk_bytes = disk_gb * 1e9
        self._keep = keep
        self._day = day
        self._held: frozenset[str] = frozenset()
        self._out: dict[str, frozenset[str]] = {}
        self.sha256 = sha256

    @contextmanager
    def holding(self, *models: str) -> Iterator[None]:
        """Keep the files of these models on disk inside the block."""
        before = self._held
        self._held = before | frozenset(models)
        try:
            yield
        finally:
            self._held = before

    def hold(self, job: str, *models: str) -> None:
        """Keep the files of these models on disk until the job is released."""
        self._out[job] = frozenset(models)

    def release(self, job: str) -> None:
        self._out.pop(job, None)

    def folder(self, leaf: Model) -> Path:
        """
        Where a leaf's files lie; those of a fine-tune are fetched again if they are gone.

        Raises:
            LeafGone: They cannot be had: the repo is gone, or its bytes are others now.
            Unavailable: Its hub does not give them now.
            NoRoom: They do not fit into limits.disk_gb.
        """
        known = self._lineage.require(leaf.id).folder
        if known is not None and self._unchanged(leaf, Path(known)):
            return Path(known)
        if leaf.repo is None:
            raise LeafGone(f"the weights of {leaf.id} are gone", cause="world", model=leaf.id)
        folder = self._fetched_again(leaf)
        self._lineage.update_model(leaf.id, folder=str(folder))
        return folder

    def _fetched_again(self, leaf: Model) -> Path:
        assert leaf.repo is not None
        try:
            repo = self._hub.repo(leaf.repo, leaf.revision)
            folder = self.fetch(leaf, repo)
        except UnknownRepo as error:
            raise LeafGone(
                f"the bytes that were admitted are gone: {error}", cause="world", model=leaf.id
            ) from None
        except Unavailable as error:
            raise Unavailable(str(error), error.retry_seconds, model=leaf.id) from None
        if not self._unchanged(leaf, folder):
            raise LeafGone(f"{leaf.id} changed in {folder} since it was admitted", model=leaf.id)
        return folder

    def use(self, leaf: Model) -> Path:
        """The folder of a leaf that is needed now, which counts when room is made."""
        folder = self.folder(leaf)
        if folder.is_relative_to(self._home.cache):
            moment = time.time_ns()  # the kernel's own stamp is coarser than two needs may be apart
            os.utime(folder, ns=(moment, moment))
        return folder

    def is_whole(self, leaf: Model) -> bool:
        """Whether a leaf's files are on this disk, and are those that were admitted."""
        folder = self._lineage.require(leaf.id).folder
        return folder is not None and self._unchanged(leaf, Path(folder))

    def fetch(self, model: Model, repo: Repo, *, newcomer: bool = False) -> Path:
        """
        A fine-tune's files, in the home's cache where the hub is not a folder itself.

        Args:
            newcomer: As `make_room`.

        Raises:
            NoRoom: They do not fit into limits.disk_gb.
            ModelError, UnknownRepo, Transient: As `Hub.fetch`.
        """
        size = sum(file.size for file in wanted(repo.files))
        with (
            self.holding(model.id),
            self._report.progress(f"fetch {model.id}", size, "bytes") as advance,
        ):
            if not self._hub.copies:
                return self._hub.fetch(repo, self._home.cache, advance)
            self.make_room(size, model.id, newcomer=newcomer)
            before = self.bytes_on_disk(model.id)
            try:
                folder = self._hub.fetch(repo, self._home.cache, advance)
                self._remember_hashes(repo, folder)
                return folder
            finally:
                fetched = max(0, self.bytes_on_disk(model.id) - before)
                self._lineage.spend("download_bytes", self._day(), fetched)

    def _remember_hashes(self, repo: Repo, folder: Path) -> None:
        """What was held against the hub's sha256 as it came need not be hashed once more."""
        for file in repo.files:
            path = folder / file.path
            if file.sha256 is not None and path.is_file():
                self.sha256.remember(path, file.sha256)

    def discard(self, folder: Path) -> None:
        """Free what was fetched for nothing; a folder hub's own files are not ours to remove."""
        if folder.resolve().is_relative_to(self._home.cache.resolve()):
            shutil.rmtree(folder, ignore_errors=True)

    def make_room(self, size: int, what: str, *, newcomer: bool = False) -> None:
        """
        Remove fetched fine-tunes until `size` bytes of `what` fit into limits.disk_gb.

        Args:
            what: A model's id; what has arrived of it already is part of `size`.
            newcomer: It will be measured against everyone, one at a time of those who made room:
                leave room for the largest.

        Raises:
            NoRoom: That would not be enough; nothing is removed then.
        """
        over = self._home.used_bytes() + size - self.bytes_on_disk(what) - self._disk_bytes
        if over <= 0 and not newcomer:
            return
        fetched = self._fetched()
        if newcomer and (over > 0 or None in fetched.values()):
            sizes = (self._size(*each) for each in fetched.items())
            over += _GROWTH * max(sizes, default=0)
        if over <= 0:
            return
        leaving, freed = [], 0
        for folder in self._in_order():
            if freed >= over:
                break
            leaving.append(folder)
            freed += _nbytes(folder)
        if freed < over:
            raise NoRoom(
                f"no room for {what} ({size / 1e9:.1f} GB) within limits.disk_gb "
                f"{self._disk_bytes / 1e9:g}; raise the limit",
                others_may_go_on=True,
            )
        owners = {folder: model for model, folder in fetched.items()}
        for folder in leaving:
            self._remove(folder, owners.get(folder))

    def bytes_on_disk(self, name: str) -> int:
        """Bytes of a fine-tune that are in the cache, whole or still arriving."""
        return sum(_nbytes(folder) for folder in self._places(name))

    def _remove(self, folder: Path, owner: str | None) -> None:
        if owner is not None:
            # First: what a kill leaves of the folder is then nobody's.
            self._lineage.update_model(owner, size=_nbytes(folder), folder=None)
            self._report.event("evict", f"{owner} makes room; fetched again if needed", model=owner)
        shutil.rmtree(folder)

    def _in_order(self) -> Iterator[Path]:
        """Folders of the cache that may go: leftovers of nobody, then the least recently needed."""
        owned = self._fetched()
        kept = {owned[name] for name in self._keep() if name in owned}
        held = self._held.union(*self._out.values())
        kept |= {folder for name in held for folder in self._places(name)}
        kept |= {Path(base.folder) for base in self._lineage.models("base") if base.folder}
        admitted = {owned[model.id] for model in self._lineage.models("finetune", "admitted")}
        found = [folder for folder in self._home.cache.glob("*/*") if folder.is_dir()]
        going = [folder for folder in found if folder not in kept]
        yield from sorted(going, key=lambda f: (f in admitted, f.stat().st_mtime_ns, f.name))

    def _fetched(self) -> dict[str, Path | None]:
        """Where fine-tunes lie, by id; None where they made room for others."""
        return {
            model.id: None if model.folder is None else Path(model.folder)
            for model in self._lineage.models("finetune", ("admitted", "quarantined"))
            if model.folder is not None or model.status == "admitted"
        }

    def _size(self, name: str, folder: Path | None) -> int:
        """Bytes that a fine-tune takes, or took before it made room."""
        return (self._lineage.require(name).size or 0) if folder is None else _nbytes(folder)

    def _places(self, name: str) -> tuple[Path, ...]:
        """Where a fine-tune lies, or is arriving."""
        model = self._lineage.require(name)
        if model.repo is None or model.revision is None:
            return ()
        return place(self._home.cache, model.repo, model.revision)

    def _unchanged(self, leaf: Model, folder: Path) -> bool:
        return all(
            (folder / file.path).is_file() and self.sha256(folder / file.path) == file.sha256
            for file in self._lineage.files(leaf.id)
        )


class FileHashes:
    """
    sha256 of files, hashed once for as long as size and modification time stay. For one thread.

    Those of small files are written down many at a time: a commit takes longer than a small
    file's hash. What a kill loses is hashed again.
    """

    def __init__(self, lineage: Lineage, stop: threading.Event | None = None) -> None:
        """
        Args:
            stop: Once it is set, asking for a hash raises Stopped.
        """
        self._lineage = lineage
        self._stop = stop or threading.Event()
        self._known = lineage.file_hashes()
        self._unwritten: dict[str, tuple[int, int, str]] = {}

    def __call__(self, path: Path) -> str:
        if self._stop.is_set():
            raise Stopped  # a look at a folder hub asks for thousands
        name, stat = os.path.realpath(path), path.stat()
        size, modified, known = self._known.get(name, (0, 0, None))
        if known is None or (size, modified) != (stat.st_size, changed_ns(stat)):
            known = hash_file(path, self._stop)
            self._note(name, stat, known)
        return known

    def remember(self, path: Path, sha256: str) -> None:
        """That of a file that was checked as it came."""
        self._note(os.path.realpath(path), path.stat(), sha256)

    def _note(self, name: str, stat: os.stat_result, sha256: str) -> None:
        self._known[name] = self._unwritten[name] = stat.st_size, changed_ns(stat), sha256
        if stat.st_size >= _LARGE_BYTES or len(self._unwritten) >= _MANY:
            self._lineage.remember_hashes(self._unwritten)
            self._unwritten.clear()


def all_files(
    weights: Iterable[File], folder: Path, sha256: Callable[[Path], str]
) -> tuple[File, ...]:
    """A model's weights, and the files of its folder that go along with them, by path."""
    found = {file.path: file for file in weights}
    names = local_files(folder, folder.resolve())
    for file in sidecars(RepoFile(name, 0) for name in names):
        path = folder / file.path
        found.setdefault(file.path, File(file.path, path.stat().st_size, sha256(path)))
    return tuple(found[name] for name in sorted(found))


def _nbytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
