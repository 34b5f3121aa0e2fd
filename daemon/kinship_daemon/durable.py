"""Files: hashed, synced, and under their final name only when they are whole and on disk."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinship_daemon.errors import KinshipError

__all__ = ["hash_file", "sync", "whole_file", "whole_folder"]


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def whole_file(path: Path, content: bytes) -> None:
    """Replace a file: a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        raise KinshipError(_why(path, error)) from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """
    A folder to fill, renamed to `path` when the block ends well and removed when it does not.

    What a killed process left beside `path` is removed first.

    Raises:
        KinshipError: `path` exists and is not empty, or the disk refuses (full, read-only).
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise KinshipError(f"{path} exists and is not empty; choose another folder or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path)
        partial, lock = _claim(path)
        try:
            yield partial
            for entry in sorted(partial.rglob("*")):
                sync(entry)
            sync(partial)
            # Fails, as it should, where another process made `path` in the meantime.
            partial.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise KinshipError(_why(path, error)) from error


def _claim(path: Path) -> tuple[Path, int]:
    """A new hidden sibling, locked so that others see whether we live; the lock ends with us."""
    while True:
        partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        partial.mkdir()
        lock = os.open(partial, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if partial.exists():
            return partial, lock
        # Another process cleaned it between mkdir and lock.
        os.close(lock)


def _clean(path: Path) -> None:
    prefix = f".{path.name}.partial-"
    for partial in sorted(path.parent.iterdir()):
        if partial.name.startswith(prefix) and not _owner_lives(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _owner_lives(partial: Path) -> bool:
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _why(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; free some space and run it again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{path}: cannot be written ({error.strerror}); choose a folder you may write to"
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return f"{path} exists and is not empty; choose another folder or remove it"
    return f"{path}: cannot be written: {error.strerror or error}"
