"""A repo from a server to disk: resumed, verified, and under its final name only when whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kinship_daemon.durable import hash_file, sync
from kinship_daemon.errors import ModelError, Transient, Unavailable
from kinship_daemon.hub.files import intact, place, sidecars, weight_files
from kinship_daemon.hub.records import Repo, RepoFile

__all__ = ["Content", "fetch"]

Advance = Callable[[int], None]

# Opens a file of a repo at an offset. Gives blocks with their offsets, from there on, or from 0
# where the server cannot resume.
Content = Callable[[Repo, RepoFile, int], AbstractContextManager[Iterator[tuple[int, bytes]]]]

_BLOCK = 1 << 20
_BREAKS = 20  # of one file in one call; the next call goes on
_FRUITLESS = 3  # of them in a row that brought nothing
_PAUSE_SECONDS = 0.5


class _MismatchError(Exception):
    """What arrived is not what was declared."""


def fetch(
    repo: Repo,
    into: Path,
    content: Content,
    sha256: Callable[[Path], str] = hash_file,
    progress: Advance | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """
    A folder below `into` with a repo's config, tokenizer and safetensors files at its revision.

    It appears when whole. What an earlier, cut off call has left is gone on from; a file of a
    whole folder that someone removed or changed is fetched again.

    Args:
        progress: Gets the bytes that are there since its last call.
        pause: Waits so many seconds; may raise to end the call, also when asked for 0.

    Raises:
        ModelError: It has no safetensors weights.
        Unavailable: A file arrives with another size or hash than the hub declares.
        Transient: the connection broke too often. What is there stays.
    """
    copy = _Copy(repo, content, sha256, progress or (lambda _: None), pause)
    final, stage = place(into, repo.id, repo.revision)
    if final.is_dir():
        if copy.complete(final):
            return final
        shutil.rmtree(stage, ignore_errors=True)
        final.rename(stage)
    stage.mkdir(parents=True, exist_ok=True)
    beside = sidecars(repo.files)
    for file in beside:
        copy.bring(file, stage)
    weights = weight_files(repo.files, stage)
    if not weights:
        raise ModelError(f"{repo.id} has no safetensors weights")
    for file in weights:
        copy.bring(file, stage)
    # Chat templates lie in a folder of their own.
    for folder in {stage, *((stage / file.path).parent for file in beside)}:
        sync(folder)
    stage.rename(final)
    sync(final.parent)
    return final


@dataclass(frozen=True)
class _Copy:
    repo: Repo
    content: Content
    sha256: Callable[[Path], str]
    advance: Advance
    pause: Callable[[float], None]

    def complete(self, folder: Path) -> bool:
        # The index first: only when it is right can it say which shards there are.
        return all(self._intact(folder, file) for file in sidecars(self.repo.files)) and all(
            self._intact(folder, file) for file in weight_files(self.repo.files, folder)
        )

    def bring(self, file: RepoFile, stage: Path) -> None:
        """One file under its final name in the staging folder."""
        target = stage / file.path
        if self._intact(stage, file):
            self.advance(file.size)
            return
        target.parent.mkdir(exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        found = ""
        for _ in range(2):
            try:
                self._receive(file, part)
            except _MismatchError as wrong:
                part.unlink()
                if str(wrong) == found:
                    raise Unavailable(f"{self.repo.id} {file.path}: {wrong}") from None
                # The fault may lie in what a killed run left, or on the way: from the start.
                found = str(wrong)
            else:
                part.replace(target)
                return
        raise Transient(f"{self.repo.id} {file.path} never arrives the same: {found}")

    def _intact(self, folder: Path, file: RepoFile) -> bool:
        return intact(folder / file.path, file, self.sha256)

    def _receive(self, file: RepoFile, part: Path) -> None:
        """Complete `part` and check it; it stays as it is when the connection breaks."""
        with part.open("a+b") as out:
            growing = _Growing(file, out, self.advance)
            if part.stat().st_size > file.size:
                growing.restart()
            self._feed(growing)
            self._complete(file, growing)
            out.flush()
            os.fsync(out.fileno())
        expected, found = file.sha256 or file.blob, growing.digest.hexdigest()
        if growing.length != file.size:
            raise _MismatchError(f"{growing.length} bytes where the hub declares {file.size}")
        if expected is not None and found != expected:
            raise _MismatchError(f"its hash is {found}, not {expected} as declared")

    def _feed(self, growing: _Growing) -> None:
        """Hash what an earlier call has left."""
        growing.out.seek(0)
        while block := growing.out.read(_BLOCK):
            growing.count(block)
            self.pause(0)

    def _complete(self, file: RepoFile, growing: _Growing) -> None:
        """Ask for the rest; when the connection breaks, from there on, a few times."""
        breaks = fruitless = 0
        while growing.length < file.size:
            before = growing.length
            try:
                with self.content(self.repo, file, before) as blocks:
                    for offset, block in blocks:
                        growing.add(offset, block)
                if growing.length <= before:
                    return  # the server has no more
                if growing.length < file.size:
                    raise Transient(f"{self.repo.id} {file.path}: the answer ends too early")
            except Unavailable:
                raise
            except Transient as error:
                breaks += 1
                fruitless = fruitless + 1 if growing.length <= before else 0
                if breaks == _BREAKS or fruitless == _FRUITLESS or error.retry_seconds:
                    raise
                self.pause(_PAUSE_SECONDS)


@dataclass
class _Growing:
    """A file as it arrives."""

    file: RepoFile
    out: BinaryIO
    advance: Advance
    length: int = 0

    def __post_init__(self) -> None:
        self.digest = _digest(self.file)

    def restart(self) -> None:
        self.out.truncate(0)
        self.digest, self.length = _digest(self.file), 0

    def add(self, offset: int, block: bytes) -> None:
        if offset != self.length:
            self.restart()
        if offset != self.length:
            raise _MismatchError(f"bytes from {offset} on, which were not asked for")
        self.out.write(block)
        self.count(block)
        if self.length > self.file.size:
            raise _MismatchError(f"more than the {self.file.size} bytes declared")

    def count(self, block: bytes) -> None:
        self.digest.update(block)
        self.length += len(block)
        self.advance(len(block))


def _digest(file: RepoFile) -> hashlib._Hash:
    """The hash that the hub tells of this file: sha256, else git's of the blob."""
    if file.sha256 is not None or file.blob is None:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
