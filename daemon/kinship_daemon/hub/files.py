"""Which files of a model repo matter, and whether a local copy of one is right."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from kinship_daemon import model_files
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import ModelError, is_scarce
from kinship_daemon.foreign.json_text import parse_json
from kinship_daemon.foreign.limits import Limits
from kinship_daemon.foreign.shown import shown
from kinship_daemon.hub.names import check_revision, slug
from kinship_daemon.hub.records import RepoFile
from kinship_daemon.model_files import ADAPTER, ADAPTER_CONFIG, INDEX, MOST_SHARDS, SINGLE

__all__ = [
    "has_tokenizer",
    "intact",
    "is_adapter",
    "is_hollow",
    "is_own_file",
    "local_files",
    "pickles",
    "place",
    "sidecars",
    "wanted",
    "weight_files",
]

_SHARD = re.compile(r"[^/]+-\d{5}-of-\d{5}\.safetensors")
_PICKLE = re.compile(r"[^/]+\.(?:bin|pt|pth|ckpt|pkl)")
# Folders in folders, of which real repos have two or three.
_DEEPEST = 60
# Smaller files are read, whatever they hold.
_HOLLOW_BYTES = 1_000_000
_MOST_PIECES = 10_000
# The largest open models have some 60,000 tensors.
_INDEX_LIMITS = Limits(nbytes=model_files.most_bytes(INDEX), items=500_000)


def has_tokenizer(files: Iterable[RepoFile]) -> bool:
    return model_files.has_tokenizer(file.path for file in files)


def is_adapter(files: Iterable[RepoFile]) -> bool:
    """Whether an adapter is all there is: full weights count before it, as loaders have it."""
    names = {file.path for file in files}
    return {ADAPTER, ADAPTER_CONFIG} <= names and not names & {SINGLE, INDEX}


def pickles(files: Iterable[RepoFile]) -> list[str]:
    """Names of weight files that would run code when loaded; they are never touched."""
    return [file.path for file in files if _PICKLE.fullmatch(file.path)]


def sidecars(files: Iterable[RepoFile]) -> list[RepoFile]:
    """Config, tokenizer, generation config, chat template, and the index of sharded weights."""
    files = list(files)
    single = any(file.path == SINGLE for file in files)
    return [
        file
        for file in files
        if model_files.is_sidecar(file.path) or (file.path == INDEX and not single)
    ]


def weight_files(files: Iterable[RepoFile], folder: Path | None = None) -> list[RepoFile]:
    """
    The safetensors files a loader would read; other copies of the weights are left alone.

    Args:
        folder: Where the index lies, if it has been fetched. Without it the shards are those
            named like shards.

    Raises:
        ModelError: the index cannot be read, or names a shard that the repo does not have.
    """
    known = {file.path: file for file in files}
    if SINGLE in known:
        return [known[SINGLE]]
    if INDEX not in known:
        return [known[ADAPTER]] if is_adapter(known.values()) else []
    if folder is None:
        return [file for name, file in known.items() if _SHARD.fullmatch(name)]
    shards = _indexed(folder / INDEX)
    if missing := [name for name in shards if name not in known]:
        raise ModelError(f"{INDEX} names {missing[0]}, which the repo does not have")
    return [known[name] for name in shards]


def place(into: Path, repo_id: str, revision: str) -> tuple[Path, Path]:
    """Where a repo's files lie when they are whole, and where they arrive."""
    final = into / slug(repo_id) / check_revision(revision).replace("/", "-")
    return final, final.with_name(f".{final.name}.part")


def wanted(files: Iterable[RepoFile]) -> list[RepoFile]:
    """All that is fetched, as far as the listing alone tells."""
    files = list(files)
    return [*sidecars(files), *weight_files(files)]


def _indexed(index: Path) -> list[str]:
    try:
        if index.stat().st_size > _INDEX_LIMITS.nbytes:
            raise ValueError
        shards = {
            shown(name)
            for name in parse_json(index.read_bytes(), _INDEX_LIMITS)["weight_map"].values()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{INDEX} is not an index of shards") from None
    if len(shards) > MOST_SHARDS:
        raise ModelError(f"{INDEX} names {len(shards)} files; the most allowed is {MOST_SHARDS}")
    for name in sorted(shards):
        # A bare name: what the index says becomes a path.
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ModelError(f"{INDEX} names {name}, which is not a safetensors file beside it")
    return sorted(shards)


def local_files(folder: Path, within: Path) -> dict[str, Path]:
    """
    The files below a folder by their names in it, sorted. Nothing is seen of hidden ones, of links
    that lead out of `within`, of names that are no text, and of what lies deeper than any repo has
    folders.

    Args:
        within: Resolved.

    Raises:
        OSError: The machine lacks what it takes to read a folder (`is_scarce`).
    """
    found, folders = {}, [(str(folder), "", 0)]
    while folders:
        place, names, depth = folders.pop()
        try:
            with os.scandir(place) as listed:
                entries = list(listed)
        except OSError as error:
            if is_scarce(error):
                raise
            continue  # not ours to read, or removed while we looked
        for entry in entries:
            if entry.name.startswith(".") or not _is_text(entry.name):
                continue
            path, name = Path(entry.path), f"{names}{entry.name}"
            if entry.is_symlink():
                if is_own_file(path, within):
                    found[name] = path
            elif entry.is_file():
                found[name] = path
            elif depth < _DEEPEST and entry.is_dir():
                folders.append((entry.path, f"{name}/", depth + 1))
    return dict(sorted(found.items()))


def _is_text(name: str) -> bool:
    """Whether a name on this disk can be written as UTF-8, as every hub's are."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_hollow(path: Path, stat: os.stat_result) -> bool:
    """
    Whether most of a file is holes, as a download leaves it that was broken off.

    To read what is not on the disk may take hours: a file of terabytes costs nothing to make.
    """
    if stat.st_size < _HOLLOW_BYTES or 2 * 512 * stat.st_blocks >= stat.st_size:
        return False
    # Some file systems tell no blocks; those that know no holes say that all is there.
    found = end = 0
    with path.open("rb") as file:
        for _ in range(_MOST_PIECES):
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break  # nothing but a hole is left
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            found += end - begin
    return 2 * found < stat.st_size


def is_own_file(path: Path, within: Path) -> bool:
    """
    Whether a path is a plain file (no pipe, at which we would wait), and no link out of `within`.

    Args:
        within: Resolved.
    """
    # Path.resolve raises where a link leads to itself.
    inside = not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(within)
    return inside and path.is_file()


def intact(path: Path, file: RepoFile, sha256: Callable[[Path], str] = hash_file) -> bool:
    """Whether `path` has exactly the content that the hub declares for `file`."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return sha256(path) == file.sha256
    return file.blob is None or _blob(path) == file.blob


def _blob(path: Path) -> str:
    """Git's object id of a file's content: what the Hub tells of files outside LFS."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
