"""
A landscape from a JSON table, such as a paper's::

    {"founders": [{"name", "score"}], "merges": [{"name", "parents", "score", "kinship"}],
     "kinship": [[a, b, value]]}

`greedy_path` and `kinship_path`, as in the table of arXiv 2410.12613, count as merges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kinship_policies.simulate.landscape import DEFAULT_METHOD, DEFAULT_PARAMETERS, Model
from kinship_policies.simulate.recorded import Kinships, Record, Recorded, Relations, pair
from kinship_storage.errors import UsageError

__all__ = ["read_table"]


class _Founder(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    score: float = Field(allow_inf_nan=False)


class _Merge(_Founder):
    parents: tuple[str, ...] = Field(min_length=2)
    kinship: float | None = Field(default=None, ge=-1, le=1)
    method: str = DEFAULT_METHOD
    parameters: dict[str, Any] = Field(default_factory=lambda: dict(DEFAULT_PARAMETERS))

    def made(self) -> object:
        """What two rows of one merge must agree in."""
        return self.score, sorted(self.parents), self.method, self.parameters


class _Table(BaseModel):
    founders: tuple[_Founder, ...] = Field(min_length=1)
    merges: tuple[_Merge, ...] = ()
    greedy_path: tuple[_Merge, ...] = ()
    kinship_path: tuple[_Merge, ...] = ()
    kinship: tuple[tuple[str, str, float | None], ...] = ()

    @property
    def rows(self) -> tuple[_Merge, ...]:
        return (*self.merges, *self.greedy_path, *self.kinship_path)


class _Algebra(Relations):
    """
    Kinships that are not on record follow from the founders'.

    A merge is the mean of its parents' deltas, the founders' deltas have length 1.
    """

    def __init__(self, known: Kinships) -> None:
        super().__init__(known)
        self._parts: dict[str, dict[str, float]] = {}

    def length(self, name: str) -> float | None:
        square = self._dot(name, name)
        return math.sqrt(square) if square > 0 else None  # also where it is NaN

    def kin(self, a: str, b: str) -> float | None:
        if a == b or pair(a, b) in self._known:
            return super().kin(a, b)
        square = self._dot(a, a) * self._dot(b, b)
        if not square > 0:
            return None
        value = self._dot(a, b) / math.sqrt(square)
        return None if math.isnan(value) else max(-1.0, min(1.0, value))

    def descends(self, child: str, parents: Sequence[str]) -> None:
        sums: dict[str, float] = {}
        for parent in parents:
            for founder, part in self._of(parent).items():
                sums[founder] = sums.get(founder, 0.0) + part / len(parents)
        self._parts[child] = dict(sorted(sums.items()))

    def _of(self, name: str) -> dict[str, float]:
        return self._parts.get(name, {name: 1.0})

    def _dot(self, a: str, b: str) -> float:
        """NaN where two founders' kinship is not known."""
        total = 0.0
        for p, x in self._of(a).items():
            for q, y in self._of(b).items():
                kin = super().kin(p, q)
                total += math.nan if kin is None else x * y * kin
        return total


def read_table(path: Path) -> Recorded:
    """
    The table's landscape.

    Raises:
        UsageError: The file cannot be read, is no such table, or contradicts itself.
    """
    table = _parse(path)
    merges: dict[str, _Merge] = {}
    known: dict[tuple[str, str], float | None] = {}
    for row in table.rows:
        if merges.setdefault(row.name, row).made() != row.made():
            raise UsageError(f"table {path}: {row.name} is there twice, and not the same")
        if row.kinship is not None and len(row.parents) == 2:
            known[pair(*row.parents)] = row.kinship
    known |= {pair(a, b): value for a, b, value in table.kinship}
    _check_names(path, table, merges, known)
    founders = [_model(founder) for founder in table.founders]
    records = [Record(_model(m), m.parents, m.method, m.parameters) for m in merges.values()]
    title = f"{path.name}: {len(founders)} founders, {len(records)} merges on record"
    return Recorded(title, founders, records, _Algebra, known)


def _model(row: _Founder) -> Model:
    return Model(row.name, row.score, {"score": row.score})


def _parse(path: Path) -> _Table:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the table {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"table {path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f'table {path}: expected an object with "founders" and "merges"')
    try:
        return _Table.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"table {path}: {where}: {first['msg']}") from None


def _check_names(path: Path, table: _Table, merges: dict[str, _Merge], known: Kinships) -> None:
    founders = [founder.name for founder in table.founders]
    twice = sorted(
        {name for name in founders if founders.count(name) > 1} | {*founders} & {*merges}
    )
    if twice:
        raise UsageError(f"table {path}: {twice[0]} is there twice")
    there = {*founders, *merges}
    named = [name for merge in merges.values() for name in merge.parents]
    named += [name for both in known for name in both]
    if unknown := [name for name in named if name not in there]:
        raise UsageError(f"table {path}: {unknown[0]} is named but is neither founder nor merge")
