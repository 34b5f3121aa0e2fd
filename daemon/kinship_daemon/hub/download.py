"""A repo from a server to disk: resumed, verified, and under its final name only when whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kinship_daemon.durable import hash_file, sync
from kinship_daemon.errors import ModelError
from kinship_daemon.hub.files import intact, sidecars, weight_files
from kinship_daemon.hub.names import check_revision, slug
from kinship_daemon.hub.records import Repo, RepoFile

__all__ = ["Content", "fetch"]

Advance = Callable[[int], None]

# Opens a file of a repo at an offset. Gives the offset it really starts at (0 where the server
# cannot resume) and the bytes from there on.
Content = Callable[[Repo, RepoFile, int], AbstractContextManager[tuple[int, Iterator[bytes]]]]

_BLOCK = 1 << 20


class _MismatchError(Exception):
    """What arrived is not what was declared."""


def fetch(
    repo: Repo,
    into: Path,
    content: Content,
    sha256: Callable[[Path], str] = hash_file,
    progress: Advance | None = None,
) -> Path:
    """
    A folder below `into` with a repo's config, tokenizer and safetensors files at its revision.

    It appears when whole. What an earlier, cut off call has left is gone on from; a file of a
    whole folder that someone removed or changed is fetched again.

    Args:
        progress: Gets the bytes that are there since its last call.

    Raises:
        ModelError: a file is missing, or its size or hash is not what the hub declares.
    """
    copy = _Copy(repo, content, sha256, progress or (lambda _: None))
    final = into / slug(repo.id) / check_revision(repo.revision).replace("/", "-")
    stage = final.with_name(f".{final.name}.part")
    if final.is_dir():
        if copy.complete(final):
            return final
        shutil.rmtree(stage, ignore_errors=True)
        final.rename(stage)
    stage.mkdir(parents=True, exist_ok=True)
    for file in sidecars(repo.files):
        copy.bring(file, stage)
    weights = weight_files(repo.files, stage)
    if not weights:
        raise ModelError(f"{repo.id} has no safetensors weights")
    for file in weights:
        copy.bring(file, stage)
    sync(stage)
    stage.rename(final)
    sync(final.parent)
    return final


@dataclass(frozen=True)
class _Copy:
    repo: Repo
    content: Content
    sha256: Callable[[Path], str]
    advance: Advance

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
        part = target.with_name(f".{target.name}.part")
        for last_try in (False, True):
            try:
                self._receive(file, part)
            except _MismatchError as wrong:
                part.unlink()
                if last_try:
                    raise ModelError(f"{self.repo.id} {file.path}: {wrong}") from None
                # The fault may lie in what a killed run left, or on the way: from the start.
            else:
                part.replace(target)
                return

    def _intact(self, folder: Path, file: RepoFile) -> bool:
        return intact(folder / file.path, file, self.sha256)

    def _receive(self, file: RepoFile, part: Path) -> None:
        """Complete `part` and check it; it stays as it is when the connection breaks."""
        with part.open("a+b") as out:
            if part.stat().st_size > file.size:
                out.truncate(0)
            digest = _digest(file)
            length = _feed(out, digest, self.advance)
            if length < file.size:
                with self.content(self.repo, file, length) as (start, blocks):
                    if start != length:
                        out.truncate(0)
                        digest, length = _digest(file), 0
                    for block in blocks:
                        out.write(block)
                        digest.update(block)
                        length += len(block)
                        self.advance(len(block))
                        if length > file.size:
                            raise _MismatchError(f"more than the {file.size} bytes declared")
            out.flush()
            os.fsync(out.fileno())
        expected = file.sha256 or file.blob
        if length != file.size:
            raise _MismatchError(f"{length} bytes where the hub declares {file.size}")
        if expected is not None and digest.hexdigest() != expected:
            raise _MismatchError(f"its hash is {digest.hexdigest()}, not {expected} as declared")


def _digest(file: RepoFile) -> hashlib._Hash:
    """The hash that the hub tells of this file: sha256, else git's of the blob."""
    if file.sha256 is not None or file.blob is None:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _feed(out: BinaryIO, digest: hashlib._Hash, advance: Advance) -> int:
    """Hash what is there already. Returns its length."""
    out.seek(0)
    length = 0
    while block := out.read(_BLOCK):
        digest.update(block)
        length += len(block)
        advance(len(block))
    return length
