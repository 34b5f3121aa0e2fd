"""Kinships and coefficients from the home's Gram ledger, which takes torch: imported when asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from kinship_daemon.errors import KinshipError
from kinship_daemon.home import Home
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

if TYPE_CHECKING:
    from kinship_daemon.context import Rows

__all__ = ["Kinships", "Share"]

# What pages import when they are asked for: scipy, torch.
_SLOW = ("analysis", "draw.clustering", "steps.assemblies", "weights.mergekit", "web.sample_map")


@dataclass(frozen=True)
class Share:
    """What a merge takes of a leaf's weight change: its factor's mean, least and most by tensor."""

    leaf: str
    mean: float
    least: float
    most: float


class Kinships:
    """The ledger of one home, read again when it changed. For any thread."""

    def __init__(self, home: Home) -> None:
        self._path = home.ledger
        self._lock = threading.Lock()
        self._read: tuple[int, Rows] | None = None

    def prepare(self) -> None:
        """
        Import what takes seconds, once.

        Whoever needs it meanwhile waits here: scipy breaks on a torch that is half imported.
        """
        with self._lock:
            for name in _SLOW:
                import_module(f"kinship_daemon.{name}")
            self._rows()

    def matrix(
        self, lineage: Lineage, models: Sequence[Model], metric: str
    ) -> tuple[list[Model], list[list[float | None]]]:
        """
        Those of the models that the ledger knows, and the kinship of every pair of them.

        Without a ledger nobody is known.
        """
        with self._lock:
            rows = self._rows()
            if rows is None:
                return [], []
            from kinship_daemon.steps.assemblies import (  # noqa: PLC0415 - imports torch
                combination,
                pairwise_kinship,
            )

            known, made_of = [], []
            for model in models:
                try:
                    made_of.append(combination(lineage, rows, model))
                except KinshipError:
                    continue  # a leaf of it has left the ledger
                known.append(model)
            return known, pairwise_kinship(rows.ledger, made_of, metric)  # type: ignore[arg-type]  # a metric by name

    def shares(self, lineage: Lineage, model: Model) -> list[Share]:
        """What a merge is made of, largest first; empty where algebra cannot tell."""
        with self._lock:
            rows = self._rows()
            if rows is None or model.recipe is None:
                return []
            import torch  # noqa: PLC0415 - takes seconds

            from kinship_daemon.steps.assemblies import combination  # noqa: PLC0415 - as above
            from kinship_daemon.steps.leaves import is_leaf  # noqa: PLC0415 - as above

            if is_leaf(model):
                return []
            try:
                made_of = combination(lineage, rows, model)
            except KinshipError:
                return []
            sizes = torch.tensor(rows.ledger.sizes, dtype=torch.float64)
            means = (made_of.deltas * sizes[:, None]).sum(0) / sizes.sum()
            shares = [
                Share(
                    lineage.by_weights(row)[0].id, float(mean), float(all_.min()), float(all_.max())
                )
                for row, mean, all_ in zip(made_of.rows, means, made_of.deltas.T, strict=True)
            ]
            return sorted(shares, key=lambda each: (-abs(each.mean), each.leaf))

    def _rows(self) -> Rows | None:
        try:
            changed = self._path.stat().st_mtime_ns
        except OSError:
            return None
        if self._read is None or self._read[0] != changed:
            from kinship_daemon.context import Rows  # noqa: PLC0415 - imports torch
            from kinship_daemon.weights.ledger import Ledger  # noqa: PLC0415 - as above

            self._read = changed, Rows(Ledger.load(self._path))
        return self._read[1]
