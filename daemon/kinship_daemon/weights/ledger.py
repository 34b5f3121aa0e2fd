"""
The Gram ledger: per tensor, the inner products of {ones, b, d_1 .. d_n}, summed in float64.

Each checkpoint is read once when it joins (see `gram`); every kinship, slerp angle and merge
follows from the ledger (design.md section 3).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kinship_daemon.durable import whole_file
from kinship_daemon.errors import KinshipError

__all__ = ["Ledger"]

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Ledger:
    """
    Inner products of the deltas of one base's descendants.

    Attributes:
        base: The base's weights identity.
        rows: The leaves' weights identities, in the order they joined.
        names: Tensors, sorted.
        sizes: Elements of each tensor.
        gram: (tensors, rows+2, rows+2) float64, of {ones, b, d_1 .. d_n}; symmetric.
    """

    base: str
    rows: tuple[str, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    gram: Tensor

    def total(self) -> Tensor:
        """Sums over all tensors, (rows+2, rows+2) float64."""
        return self.gram.sum(0)

    def keep(self, rows: Sequence[str]) -> "Ledger":
        """The ledger of some of its rows, in the order they joined; no weight is read."""
        kept = [i for i, row in enumerate(self.rows) if row in set(rows)]
        index = torch.tensor([0, 1, *(i + 2 for i in kept)])
        gram = self.gram[:, index][:, :, index]
        return replace(self, rows=tuple(self.rows[i] for i in kept), gram=gram)

    def grown(self, new: Sequence[str], columns: Tensor) -> "Ledger":
        """
        The ledger with new rows, as they were measured elsewhere.

        Args:
            columns: (tensors, all rows + 2, columns) float64, the last ones of the longer Gram
                matrix: those of the new rows, or all of them.
        """
        rows = (*self.rows, *new)
        size, known = len(rows) + 2, len(self.rows) + 2
        first = size - columns.shape[2]
        gram = self.gram.new_zeros(len(self.names), size, size)
        gram[:, :known, :known] = self.gram
        gram[:, :, first:] = columns
        gram[:, first:] = columns.transpose(1, 2)
        return replace(self, rows=rows, gram=gram)

    def joined(self, parts: Sequence["Ledger"]) -> "Ledger":
        """
        The ledger with new rows that were measured against some of its leaves at a time.

        Bit for bit what one `gram.extend` over all of them gives, for when not all leaves are on
        the disk at once.

        Args:
            parts: Each `gram.extend(ledger.keep(group), base, group, new)`, of the same new ones;
                every row of this ledger is in at least one.

        Raises:
            KinshipError: A row is in no part, or the parts are not of this ledger or not of the
                same new rows.
        """
        self._check(parts)
        new = parts[0].rows[len(self._in(parts[0])) :]
        rows, known = (*self.rows, *new), len(self.rows) + 2
        gram = self.gram.new_zeros(len(self.names), len(rows) + 2, len(rows) + 2)
        # Without rows, nothing says that the base was measured.
        gram[:, :known, :known] = self.gram if self.rows else parts[0].gram[:, :known, :known]
        place = {row: i + 2 for i, row in enumerate(rows)}
        for part in reversed(parts):  # what all measured, new by new, is the first one's
            theirs = torch.tensor([0, 1, *(place[row] for row in part.rows)])
            strip = part.gram[:, :, len(part.rows) + 2 - len(new) :]
            gram[:, theirs, known:] = strip
            gram[:, known:, theirs] = strip.transpose(1, 2)
        return replace(self, rows=rows, gram=gram)

    def _in(self, part: "Ledger") -> tuple[str, ...]:
        """Those of this ledger's rows that a part holds."""
        mine = set(self.rows)
        return tuple(row for row in part.rows if row in mine)

    def _check(self, parts: Sequence["Ledger"]) -> None:
        held = {row for part in parts for row in part.rows}
        if missing := [row for row in self.rows if row not in held]:
            raise KinshipError(
                f"the new models were not measured against {missing[0]}"
                f" ({len(missing)} of {len(self.rows)} in no part); measure them against all"
            )
        facts = {(part.base, part.names, part.sizes) for part in parts}
        if facts != {(self.base, self.names, self.sizes)}:
            raise KinshipError(f"the parts are not of the ledger of base {self.base}")
        if len({part.rows[len(self._in(part)) :] for part in parts}) > 1:
            raise KinshipError("the parts of a ledger hold different new rows")

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all; the same ledger gives the same bytes."""
        facts = {
            "format": _FORMAT,
            "base": self.base,
            "rows": self.rows,
            "names": self.names,
            "sizes": self.sizes,
        }
        # One key: safetensors does not promise the order of several.
        metadata = {"ledger": json.dumps(facts, sort_keys=True)}
        whole_file(path, save({"gram": self.gram.contiguous()}, metadata))

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """
        Read a saved ledger.

        Raises:
            KinshipError: It is missing, damaged or of a newer format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["ledger"])
                gram = file.get_tensor("gram").clone()
            if facts["format"] > _FORMAT:
                raise KinshipError(f"{path}: written by a newer version; upgrade kinship-daemon")
            rows, names = tuple(facts["rows"]), tuple(facts["names"])
            if gram.shape != (len(names), len(rows) + 2, len(rows) + 2):
                raise ValueError("its parts do not fit together")
            return cls(facts["base"], rows, names, tuple(facts["sizes"]), gram)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise KinshipError(
                f"{path}: not a readable ledger ({error}); remove it and it is computed again"
            ) from error
