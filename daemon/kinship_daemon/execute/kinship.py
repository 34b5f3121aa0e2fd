"""A kinship pass as a job: newcomers measured beside known leaves, wherever those can be had."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from kinship_daemon.execute.executor import Needs, Site
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend

__all__ = ["NEEDS", "Measure"]

# Buffers, and Python with torch: the weights themselves are mapped.
NEEDS = Needs(memory_bytes=1_000_000_000)


@dataclass(frozen=True)
class Measure:
    """
    The job to read a base and its leaves once; gives columns as `Ledger.grown` takes them.

    All columns where nobody is known yet, else those of the new rows. It says how many bytes were
    read, of how many.

    Attributes:
        base: Weights identity, as are:
        known: The rows of the ledger that is to grow, in their order.
        new: The rows that join.
        squares: Diagonals of the ledger's matrices, (tensors, known + 2) float64: beside them it
            shows which products must be measured in float64.
        device: Where inner products are computed.
    """

    base: str
    known: tuple[str, ...]
    new: tuple[str, ...]
    squares: Tensor = field(compare=False)
    device: str = "cpu"

    @classmethod
    def of(cls, ledger: gram.Ledger, new: tuple[str, ...], device: str = "cpu") -> Self:
        """The rows by which a ledger is to grow."""
        squares = ledger.gram.diagonal(dim1=1, dim2=2).contiguous()
        return cls(ledger.base, ledger.rows, new, squares, device)

    def __call__(self, site: Site) -> Tensor:
        base = Checkpoint.open(site.folder(self.base))
        known = {row: descend(base, site.folder(row)) for row in self.known}
        new = {row: descend(base, site.folder(row)) for row in self.new}
        total = base.nbytes + sum(leaf.nbytes for leaf in (*known.values(), *new.values()))
        done, counting = 0, threading.Lock()

        def advance(more: int) -> None:  # called by several threads
            nonlocal done
            with counting:
                done += more
                site.progress(done, total)

        blank = gram.unmeasured(base, self.base)
        blank = replace(blank, rows=self.known, gram=self.squares.diag_embed())
        longer = gram.extend(blank, base, known, new, device=self.device, progress=advance)
        return longer.gram[:, :, len(known) + 2 if known else 0 :].contiguous()
