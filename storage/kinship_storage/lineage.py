"""
The lineage: which models exist and from which exact bytes, who descends from whom, what a watch
noticed of whom, every kinship, score, decision, gate, publication and step of the work (design
section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kinship_storage.damage import damage
from kinship_storage.errors import KinshipError
from kinship_storage.export import export
from kinship_storage.store import Store
from kinship_storage.tables import Tables
from kinship_storage.verify import verify

__all__ = ["Lineage"]


class Lineage(Tables):
    """
    The one database of a home. For one thread at a time, whichever opened it.

    Every write is committed and on the disk when its method returns, unless a transaction is open.
    """

    def __init__(self, store: Store, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        now: Callable[[], datetime],
        readonly: bool = False,
        beside: bool = False,
        whole: bool = False,
    ) -> Self:
        """
        Opens the database, made or brought to the latest schema where need be.

        Args:
            path: The database file; its folder must exist.
            now: The clock that stamps what is added.
            readonly: Never writes a row; works beside a running daemon and on a read-only disk.
            beside: Writes, perhaps beside a running daemon.
            whole: This process holds the file already, and has looked for damage.

        Raises:
            LineageError: Not there (readonly), not a database, another program's, from a newer
                version, not accessible; the message says what would help.
            DamagedLineage: It is to be written, and damaged; nothing has been written.
        """
        return cls(Store(path, readonly=readonly, beside=beside, whole=whole), now=now)

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """What nobody expected, of a damaged file, is told as the damage that it comes from."""
        try:
            if isinstance(error, Exception) and not isinstance(error, KinshipError):
                self._store.blame(error)
        finally:
            self.close()

    def check_in_place(self) -> None:
        """Raises DamagedLineage once the file was deleted, replaced or changed by others."""
        self._store.check_in_place()

    def damage(self) -> list[str]:
        """A line per damaged cell or part of the file: all else that is read rests on these."""
        return damage(self.path)

    def backup(self, target: Path) -> None:
        """
        Copies the lineage to a new file, as it is at one moment; safe beside a running daemon.

        The copy is one file without a log. Interrupted, it leaves a part of a file behind.

        Raises:
            DamagedLineage: The lineage, or the copy, is damaged.
        """
        self._store.backup(target)

    @property
    def path(self) -> Path:
        return self._store.path

    def transaction(self) -> AbstractContextManager[None]:
        """All that is written inside or nothing; may be nested."""
        return self._store.transaction()

    def snapshot(self) -> AbstractContextManager[None]:
        """All that is read inside is from one moment, whatever a daemon writes meanwhile."""
        return self._store.snapshot()

    def export(self) -> dict[str, Any]:
        """All of it as the JSON of `kinship-daemon lineage --format json`."""
        with self.snapshot():
            return export(self, self._store)

    def verify(
        self, identity: Callable[[Mapping[str, Any], Sequence[str]], str] | None = None
    ) -> list[str]:
        """
        Looks for contradictions within the lineage, and recomputes what can be recomputed.

        Args:
            identity: Gives the weights identity of a recipe (JSON) and its parents' identities, to
                recompute those of the merges.

        Returns:
            A line per problem, what is damaged first; empty if there is none.
        """
        damaged = self.damage()
        try:
            with self.snapshot():
                return [*damaged, *verify(self, self._store, identity)]
        except Exception:
            if not damaged:
                raise
            return damaged  # what is read from the rest makes no sense
