"""Reads a plan's blocks: of the base once, then of every descendant, as differences from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kinship_daemon.durable import whole_file
from kinship_daemon.errors import KinshipError, ModelError
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Descendant, LowRank
from kinship_daemon.weights.remote import Remote
from kinship_daemon.weights.sample.blocks import Blocks, Progress, read_blocks
from kinship_daemon.weights.sample.plan import Plan
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["BaseSample", "Sample", "base_sample", "take", "take_local"]

# Beyond, float32 does not hold the sums of millions that a compact vector is made of: an infinity
# in one vector would fail every newcomer's comparison.
_LARGEST = 1e25


@dataclass(frozen=True, eq=False)
class BaseSample:
    """
    A plan's blocks of the base itself.

    Attributes:
        plan: The plan's identity.
        values: By tensor, its blocks one after the other, (elements,) in the base's dtype.
    """

    plan: str
    values: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        metadata = {"plan": json.dumps(self.plan)}
        whole_file(path, save(dict(self.values), metadata))

    @classmethod
    def load(cls, path: Path, plan: Plan) -> Self:
        """
        Read a saved sample.

        Raises:
            KinshipError: It is missing, damaged or of another plan.
        """
        try:
            with safe_open(path, framework="pt") as file:
                identity = json.loads((file.metadata() or {})["plan"])
                values = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise KinshipError(
                f"{path}: not a readable sample ({error}); remove it and it is read again"
            ) from error
        sizes = {name: sum(end - start for start, end in blocks) for name, blocks in plan.blocks}
        if identity != plan.identity or {n: v.numel() for n, v in values.items()} != sizes:
            raise KinshipError(f"{path}: a sample of another plan; remove it and it is read again")
        return cls(identity, values)


@dataclass(frozen=True, eq=False)
class Sample:
    """
    A plan's blocks of one descendant, less the base's.

    Attributes:
        plan: All of the base's plan, or its view without the vocabulary.
        deltas: The blocks one after the other, (plan.elements,) float32, of 1e25 at most.
    """

    plan: Plan
    deltas: Tensor


def base_sample(
    plan: Plan, source: Remote | Checkpoint, progress: Progress | None = None
) -> BaseSample:
    """
    The base's blocks, from its files or from afar.

    Args:
        progress: Called with the bytes just read.

    Raises:
        ModelError: It holds NaN or infinity, or cannot be read.
        Transient: It cannot be had now.
    """
    if isinstance(source, Checkpoint):
        values = {
            name: _values(source.tensor(name).reshape(-1), blocks) for name, blocks in plan.blocks
        }
    else:
        values = read_blocks(source, dict(plan.blocks), progress)
    for name, own in values.items():
        _refuse_bad(source.path, name, own)
    return BaseSample(plan.identity, values)


def take(
    plan: Plan,
    base: BaseSample,
    source: Remote,
    rows: Tensor | None = None,
    progress: Progress | None = None,
) -> Sample:
    """
    A model's blocks less the base's; nothing else of it is read.

    Differences are in float32, as the ledger's. A token that the model lacks has the base's row.

    Args:
        plan: The base's, or its view without the vocabulary.
        base: Of the same plan.
        source: Fits the base (`check_fits`).
        rows: Where the model keeps each row of the base's vocabulary, (rows,) int64, -1 where it
            lacks the token (`vocabulary.alignment`); None where the tokens are the base's.
        progress: Called with the bytes just read.

    Raises:
        ModelError: NaN or infinity; or more or fewer rows than the base's, and no `rows`.
        Transient: It cannot be had now.
    """
    _check(plan, base)
    places: dict[str, Blocks] = dict(plan.blocks)
    lacking: dict[str, Tensor] = {}
    for name in filter(is_vocabulary, list(places)):
        if rows is None:
            _refuse_other_rows(plan, source, name)
        else:
            places[name], lacking[name] = _moved(plan, name, places[name], rows)
    values = read_blocks(source, places, progress)
    deltas = []
    for name, _ in plan.blocks:
        delta = _difference(source.path, name, values.pop(name), base.values[name])
        deltas.append(delta.masked_fill_(lacking[name], 0.0) if name in lacking else delta)
    return Sample(plan, torch.cat(deltas))


def take_local(plan: Plan, base: BaseSample, model: Descendant) -> Sample:
    """
    The same of a model or an adapter in a folder; of a low-rank delta only the blocks are computed.

    Raises:
        ModelError: NaN or infinity, or a file cannot be read.
    """
    _check(plan, base)
    deltas = []
    for name, blocks in plan.blocks:
        match model.content(name):
            case None:
                delta = torch.zeros(sum(end - start for start, end in blocks))
            case LowRank() as factors:
                delta = _multiplied(factors, blocks)
                _refuse_bad(model.path, name, delta)
            case own:
                values = _values(own.reshape(-1), blocks)
                delta = _difference(model.path, name, values, base.values[name])
        deltas.append(delta)
    return Sample(plan, torch.cat(deltas))


def _check(plan: Plan, base: BaseSample) -> None:
    if base.plan != plan.identity:
        raise ValueError(f"a base's sample of {base.plan} is no use for {plan.identity}")


def _refuse_other_rows(plan: Plan, source: Remote, name: str) -> None:
    own, wanted = (model.tensors[name].shape[0] for model in (source, plan))
    if own != wanted:
        raise ModelError(
            f"{source.name}: {name} has {own} rows, the base's {wanted}; its tokens must be known"
        )


def _moved(
    plan: Plan, name: str, blocks: Blocks, rows: Tensor
) -> tuple[list[tuple[int, int]], Tensor]:
    """Blocks of a vocabulary tensor at a model's own rows, and (elements,) where it lacks these."""
    columns = plan.tensors[name].elements // plan.tensors[name].shape[0]
    starts, ends = torch.tensor(blocks).T
    own = rows[starts // columns]
    shift = (own.clamp_min(0) - starts // columns) * columns
    # Of a row that is not there another is read, and not looked at.
    moved = [
        (int(start), int(end)) for start, end in zip(starts + shift, ends + shift, strict=True)
    ]
    return moved, (own < 0).repeat_interleave(ends - starts)


def _values(flat: Tensor, blocks: Blocks) -> Tensor:
    return torch.cat([flat[start:end] for start, end in blocks])


def _difference(path: PurePath, name: str, own: Tensor, base: Tensor) -> Tensor:
    """As the ledger's kernel has it: in float32, from a base that is no wider unless it was."""
    exact = base if base.dtype == torch.float64 else base.float()
    delta = (own - exact).float()
    _refuse_bad(path, name, delta)
    return delta


def _refuse_bad(path: PurePath, name: str, values: Tensor) -> None:
    # One pass over the values; NaN where there is one.
    largest = float(torch.stack(torch.aminmax(values)).abs().max())
    if largest <= _LARGEST:
        return
    finite = f"numbers beyond {_LARGEST:g}"
    value = finite if math.isfinite(largest) else "NaN" if math.isnan(largest) else "infinity"
    raise ModelError(f"{path}: tensor {name} holds {value}; the model is broken")


def _multiplied(factors: LowRank, blocks: Blocks) -> Tensor:
    """Some entries of up @ down, (elements,) float32; summed in float64."""
    up, down = factors.up.double(), factors.down.double()
    columns = down.shape[1]
    found = []
    for start, end in blocks:
        row, column = divmod(start, columns)
        last = (end - 1) // columns
        if row == last:
            found.append(up[row] @ down[:, column : column + end - start])
        else:
            rows = (up[row : last + 1] @ down).reshape(-1)
            found.append(rows[column : column + end - start])
    return torch.cat(found).float()
