"""Files: hashed, synced, and under their final name only when they are whole and on disk."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinship_daemon.errors import KinshipError, ModelError, Stopped

__all__ = ["changed_ns", "hash_file", "sync", "whole_file", "whole_folder"]

# What renaming a folder to one that is not empty fails with.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


def hash_file(path: Path, stop: threading.Event | None = None) -> str:
    """
    SHA-256 of a file, in hex, read block by block.

    Raises:
        Stopped: `stop` was set meanwhile; a large file takes minutes.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            if stop is not None and stop.is_set():
                raise Stopped
            digest.update(block[:count])
    return digest.hexdigest()


def changed_ns(stat: os.stat_result) -> int:
    """
    When a file was changed, to tell it from what it was; in 64 bits, as SQLite has them.

    Nanoseconds since 1970 take more from the year 2262 on, of which a file may say that it is.
    """
    return (stat.st_mtime_ns + (1 << 63)) % (1 << 64) - (1 << 63)


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
def whole_folder(path: Path, *, resume: str | None = None) -> Iterator[Path]:
    """
    A folder to fill, renamed to `path` when the block ends well.

    When the block fails the folder is removed, and what a killed process left is removed by the
    next call. With `resume`, a name for the content, whatever was filled in before an interruption
    or a full disk is found again by the next call with the same name.

    Raises:
        KinshipError: `path` exists and is not empty, is being written, or the disk refuses (full,
            read-only).
    """
    path = path.resolve()  # `.`, and a link to an empty folder, cannot be renamed to
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise KinshipError(f"{path} exists and is not empty; choose another folder or remove it")
    label = secrets.token_hex(4) if resume is None else hashlib.sha256(resume.encode()).hexdigest()
    partial = path.with_name(f".{path.name}.partial-{label[:16]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path, keep=partial)
        lock = _claim(partial, path)
        try:
            yield partial
            for entry in sorted(partial.rglob("*")):
                sync(entry)
            sync(partial)
            # Fails, as it should, where another process made `path` in the meantime.
            partial.rename(path)
            sync(path.parent)
        except ModelError:
            shutil.rmtree(partial, ignore_errors=True)  # the next try would fail as this one did
            raise
        except OSError as error:
            if error.errno in _TAKEN:
                shutil.rmtree(partial, ignore_errors=True)  # nobody would come back for it
            raise
        finally:
            if resume is None:
                shutil.rmtree(partial, ignore_errors=True)
            elif partial.exists() and not any(partial.iterdir()):
                partial.rmdir()
            os.close(lock)
    except OSError as error:
        raise KinshipError(_why(path, error)) from error


def _claim(partial: Path, path: Path) -> int:
    """Make the folder and lock it, so that others see whether we live; the lock ends with us."""
    while True:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise KinshipError(f"{path} is being written by another process") from None
        if partial.exists():
            return lock
        # Another process cleaned it between mkdir and lock.
        os.close(lock)


def _clean(path: Path, keep: Path) -> None:
    prefix = f".{path.name}.partial-"
    for partial in sorted(path.parent.iterdir()):
        if partial.name.startswith(prefix) and partial != keep:
            _remove_if_dead(partial)


def _remove_if_dead(partial: Path) -> None:
    try:
        lock = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:
        return  # another process has just removed it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(partial, ignore_errors=True)  # under the lock: nobody takes it up meanwhile
    except BlockingIOError:
        pass  # its owner lives
    finally:
        os.close(lock)


def _why(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; free some space and run it again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{path}: cannot be written ({error.strerror}); choose a folder you may write to"
    if error.errno in _TAKEN:
        return f"{path} exists and is not empty; choose another folder or remove it"
    return f"{path}: cannot be written: {error.strerror or error}"
