"""Pieces of a model's files, from a folder or a hub, so that little is read of what is large."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kinship_daemon.errors import ModelError, unreadable

__all__ = ["FolderRanges", "Ranges"]


class Ranges(Protocol):
    """
    Pieces of the files of one model, which does not change meanwhile.

    Attributes:
        bytes_read: So far; what really came.
    """

    bytes_read: int

    def read(self, file: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """
        The bytes of each [start, end) of a file, in the order asked.

        Raises:
            ModelError: the file is not there, ends before, or is not what it was.
            Transient: it cannot be had now.
        """

    def close(self) -> None:
        """Let go of files and connections."""


class FolderRanges:
    """Pieces of the files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.bytes_read = 0

    def read(self, file: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        path = self._folder / file
        try:
            with path.open("rb") as content:
                found = []
                for start, end in ranges:
                    content.seek(start)
                    found.append(content.read(end - start))
        except OSError as error:
            raise unreadable(path, error) from error
        for (start, end), data in zip(ranges, found, strict=True):
            if len(data) != end - start:
                raise ModelError(f"{path}: ends before byte {end}; fetch it again")
        self.bytes_read += sum(map(len, found))
        return found

    def close(self) -> None:
        """Nothing is kept open."""
