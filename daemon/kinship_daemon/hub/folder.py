"""A hub in a plain folder, org/name/ of ordinary model repos: the demo's, and without network."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kinship_daemon.durable import hash_file, sync
from kinship_daemon.errors import KinshipError, Transient, UsageError, is_scarce
from kinship_daemon.foreign.json_text import parse_json
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.hub.files import is_hollow, is_own_file, local_files
from kinship_daemon.hub.front_matter import declared_bases, front_matter, tags
from kinship_daemon.hub.names import check_repo_id, is_repo_id
from kinship_daemon.hub.records import Listing, Repo, RepoFile, UnknownRepo
from kinship_daemon.ranges import FolderRanges, Ranges

__all__ = ["FolderHub"]

_README_BYTES = 1_000_000
_CONFIG_BYTES = 10_000_000
_CONFIG = Limits(nbytes=_CONFIG_BYTES)
_MOST_FILES = 10_000  # in a repo, of which real ones have hundreds
_LAST_SECOND = 253402300799.0  # of the year 9999, the last that a datetime knows
_SHOWN = 200  # characters of what a card declares
_FEW_HEX = 7  # the least that abbreviates a revision, as git has it


@dataclass(frozen=True)
class _Card:
    """A README.md, what its front matter says, and what is wrong with that."""

    text: str
    said: Mapping[str, Any]
    problem: str | None

    def unrelated(self, base: str) -> str | None:
        """Why its repo is no descendant of a base; None if it is one."""
        if self.problem is not None:
            # A card that cannot be read but names the base is listed: its refusal says why.
            return None if base in self.text else self.problem
        declared = declared_bases(self.said)
        if base in declared:
            return None
        named = ", ".join(map(repr, declared))[:_SHOWN]
        return (
            f"its README.md declares base_model {named}" if named else "it declares no base_model"
        )


class FolderHub:
    """
    A hub in a folder. A repo's revision is the hash of its files, so it has no older ones.

    Hidden folders and files do not exist for it, and neither do links that lead out of the root.
    """

    copies = False
    is_anonymous = False
    at_once = 1  # what remembers hashes is for one thread

    def __init__(self, root: Path, *, sha256: Callable[[Path], str] = hash_file) -> None:
        """
        A hub over an existing folder.

        Args:
            sha256: Of a file, hex. Repos are hashed at every look, so give one that remembers.

        Raises:
            UsageError: no such folder.
        """
        if not root.is_dir():
            raise UsageError(f"no folder {root}; a folder hub holds repos as org/name/")
        self._root = root.resolve()
        self._sha256 = sha256

    @property
    def name(self) -> str:
        return str(self._root)

    def about(self) -> str:
        return f"folder {self._root} (repos: {len(list(self._ids()))})"

    def descendants(self, base: str, since: datetime | None = None) -> Iterator[Listing]:
        found = []
        for repo_id in self._ids():
            folder = self._root / repo_id
            try:
                with self._reading(repo_id):
                    places = _places(folder, self._root)
                    if since is not None and _changed(folder, places) < since:
                        continue
                    card = self._card(folder)
                    if card.unrelated(base) is not None:
                        continue
                    revision = _revision(self._files(places)[0])
                    modified = _modified(folder, places)
            except UnknownRepo:
                continue
            found.append(Listing(repo_id, revision, modified, tags(card.said)))
        yield from sorted(found, key=lambda listing: (listing.modified, listing.id))

    def passed_over(self, base: str, listed: Collection[str]) -> Iterator[tuple[str, str]]:
        for repo_id in self._ids():
            if repo_id == base or repo_id in listed:
                continue
            with self._reading(repo_id):
                why = self._card(self._root / repo_id).unrelated(base)
            if why is not None:
                yield repo_id, why

    def repo(self, repo_id: str, revision: str | None = None) -> Repo:
        folder = self._folder(repo_id)
        if folder is None:
            raise UnknownRepo(f"no repo {repo_id} in {self._root}")
        with self._reading(repo_id):
            repo = self._repo(repo_id, folder)
        if revision is not None and not _names(revision, repo.revision):
            at = f"{repo_id} in {self._root} is at {repo.revision[:12]}"
            raise UnknownRepo(f"{at}; a folder hub keeps no {revision}")
        return repo

    def ranges(self, repo: Repo) -> Ranges:
        return FolderRanges(self._content(repo))

    def fetch(
        self,
        repo: Repo,
        into: Path,  # noqa: ARG002 - nothing is copied
        progress: Callable[[int], None] | None = None,
    ) -> Path:
        folder = self._content(repo)
        if progress is not None:
            progress(sum(file.size for file in repo.files))
        return folder

    def publish(
        self,
        repo_id: str,
        folder: Path,
        message: str,  # noqa: ARG002 - a folder keeps no history
        private: bool,  # noqa: ARG002 - who may read a folder is the file system's business
    ) -> tuple[str, str]:
        target = self._root / check_repo_id(repo_id)
        files, unreadable = self._files(_places(folder, folder.resolve()))
        if unreadable is not None:
            raise KinshipError(f"cannot publish {repo_id}: {unreadable}")
        if target.exists():
            there, _ = self._files(_places(target, self._root))
            if _revision(there) != _revision(files):
                raise KinshipError(
                    f"{target} exists with other content; it is not ours to replace: "
                    "set another publish.namespace or publish.name, or remove it"
                )
        else:
            self._place(folder, files, target)
        return _revision(files), str(target)

    def may_write(self, namespace: str) -> str:
        check_repo_id(f"{namespace}/name")
        place = self._root / namespace
        if not os.access(place if place.exists() else self._root, os.W_OK):
            raise UsageError(f"{self._root} is not writable; merges are published in it")
        return f"into {place}"

    def _content(self, repo: Repo) -> Path:
        """A repo's folder, as long as it is what it was."""
        folder = self._folder(repo.id)
        with self._reading(repo.id):
            files = () if folder is None else self._files(_places(folder, self._root))[0]
        if folder is None or _revision(files) != repo.revision:
            raise UnknownRepo(f"{repo.id} in {self._root} changed since it was looked at")
        return folder

    @contextmanager
    def _reading(self, repo_id: str) -> Iterator[None]:
        """
        While a repo is read.

        Raises:
            UnknownRepo: It is removed meanwhile.
            Transient: The machine lacks descriptors or memory.
        """
        try:
            yield
        except OSError as error:
            if is_scarce(error):
                raise Transient(
                    f"{self._root / repo_id} cannot be read: {error.strerror}"
                ) from error
            gone = f"{repo_id} in {self._root} was removed while it was looked at"
            raise UnknownRepo(gone) from error

    def _place(self, folder: Path, files: tuple[RepoFile, ...], target: Path) -> None:
        """Copy to a hidden sibling, then rename: the repo is there whole, or not at all."""
        stage = target.with_name(f".{target.name}.part")
        if stage.exists():
            shutil.rmtree(stage)  # of a run that was killed
        stage.mkdir(parents=True)
        for file in files:
            copy = stage / file.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file.path, copy)
            sync(copy)
            sync(copy.parent)
        stage.rename(target)
        sync(target.parent)
        sync(self._root)

    def _ids(self) -> Iterator[str]:
        """Repo ids in name order."""
        for organisation in _visible(self._root):
            for place in _visible(organisation.path):
                repo_id = f"{organisation.name}/{place.name}"
                is_link = organisation.is_symlink() or place.is_symlink()
                if self._folder(repo_id) if is_link else is_repo_id(repo_id):
                    yield repo_id

    def _repo(self, repo_id: str, folder: Path) -> Repo:
        places, card = _places(folder, self._root), self._card(folder)
        files, unreadable = self._files(places)
        return Repo(
            id=repo_id,
            revision=_revision(files),
            modified=_modified(folder, places),
            card=card.said,
            files=files,
            config=_mapping(self._read(folder / "config.json", _CONFIG_BYTES)),
            problem=unreadable or card.problem,
        )

    def _card(self, folder: Path) -> _Card:
        text = self._read(folder / "README.md", _README_BYTES).decode("utf-8", errors="replace")
        return _Card(text, *front_matter(text))

    def _folder(self, repo_id: str) -> Path | None:
        """A repo's folder; None if there is none, or a link leads it out of the root."""
        try:
            folder = self._root / check_repo_id(repo_id)
        except UsageError:
            return None
        inside = folder.is_dir() and folder.resolve().is_relative_to(self._root)
        return folder if inside else None

    def _read(self, path: Path, limit: int) -> bytes:
        """
        A file's first bytes; none if it cannot be read, or is none of the repo's own.

        Raises:
            OSError: The machine lacks what it takes (`is_scarce`).
        """
        try:
            if is_own_file(path, self._root):
                with path.open("rb") as file:
                    return file.read(limit)
        except OSError as error:
            if is_scarce(error):
                raise
        return b""

    def _files(self, places: Sequence[_Place]) -> tuple[tuple[RepoFile, ...], str | None]:
        """Those files, and what keeps one of them, or all, from being read."""
        if len(places) > _MOST_FILES:
            return (), f"it has {len(places)} files; the most allowed is {_MOST_FILES}"
        found, unreadable = [], None
        for name, path, stat in places:
            try:
                if isinstance(stat, OSError):
                    raise stat
                if is_hollow(path, stat):
                    unreadable = f"{name} is not whole: most of it is holes; copy it again"
                    found.append(RepoFile(name, stat.st_size))
                else:
                    found.append(RepoFile(name, stat.st_size, self._sha256(path)))
            except FileNotFoundError:
                continue  # removed while we looked
            except OSError as error:
                if is_scarce(error):
                    raise
                unreadable = f"{name} cannot be read: {error.strerror}"
                found.append(RepoFile(name, 0))
        return tuple(found), unreadable


class _Place(NamedTuple):
    """A file of a repo by its path in it, where it is, and what the disk says of it."""

    name: str
    path: Path
    stat: os.stat_result | OSError


def _places(folder: Path, within: Path) -> list[_Place]:
    """Sorted by name."""
    return [_Place(name, path, _stat(path)) for name, path in local_files(folder, within).items()]


def _stat(path: Path) -> os.stat_result | OSError:
    try:
        return path.stat()
    except OSError as error:
        return error


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """The folders in one that are not hidden, by name."""
    try:
        with os.scandir(folder) as entries:
            found = [each for each in entries if not each.name.startswith(".") and each.is_dir()]
    except OSError as error:
        if is_scarce(error):
            raise Transient(f"{folder} cannot be read: {error.strerror}") from error
        return []
    return sorted(found, key=lambda entry: entry.name)


def _revision(files: tuple[RepoFile, ...]) -> str:
    """sha256 over paths and contents, hex."""
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _names(revision: str, found: str) -> bool:
    return found == revision or (len(revision) >= _FEW_HEX and found.startswith(revision))


def _modified(folder: Path, places: Iterable[_Place]) -> datetime:
    """When a file of a folder changed last. FileNotFoundError where the folder has gone."""
    own = folder.stat().st_mtime
    times = [place.stat.st_mtime for place in places if not isinstance(place.stat, OSError)]
    # A file may say that it is of any year.
    return datetime.fromtimestamp(min(max(0.0, max(times, default=own)), _LAST_SECOND), UTC)


def _changed(folder: Path, places: Iterable[_Place]) -> datetime:
    """The same, or when the folder came to be where it is: its files may be much older."""
    appeared = datetime.fromtimestamp(folder.stat().st_ctime, UTC)
    return max(_modified(folder, places), appeared)


def _mapping(data: bytes) -> Mapping[str, Any]:
    """JSON if it is a mapping; whether a config is sound is the checkpoint's business."""
    try:
        value = parse_json(data, _CONFIG)
    except Malformed:
        return {}
    return value if isinstance(value, dict) else {}
