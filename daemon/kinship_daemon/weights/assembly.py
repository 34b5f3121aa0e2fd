"""A model as weighted checkpoints: all that is needed to make its weights, anywhere, in blocks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.checkpoint import DTYPES, Checkpoint, TensorInfo
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.recipe import NEGLIGIBLE, Coefficients

__all__ = ["Assembly", "Sources", "assemble", "leaf_assembly", "weights_over"]

# Elements made at a time: 16 MB in fp32, so that no tensor is ever whole in private memory.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Assembly:
    """
    Where a model's weights come from; picklable, and small.

    Attributes:
        identity: Weights identity of the result.
        base: Folder of the base; names the tensors and their shapes.
        leaves: Folders of the leaves.
        coefficients: Per tensor, its name and the weights of (base, *leaves).
        donor: Folder whose config, tokenizer, generation config and chat template go along.
    """

    identity: str
    base: Path
    leaves: tuple[Path, ...]
    coefficients: tuple[tuple[str, tuple[float, ...]], ...] = field(repr=False)
    donor: Path


def assemble(
    ledger: Ledger,
    coefficients: Coefficients,
    base: Path,
    leaves: Mapping[str, Path],
    identity: str,
    *,
    donor: Path,
) -> Assembly:
    """
    The assembly of a collapsed recipe.

    `leaves` are folders by weights identity; more than are needed may be given.

    Raises:
        UsageError: The folder of a needed leaf is not among them.
    """
    missing = [row for row in coefficients.rows if row not in leaves]
    if missing:
        raise UsageError(f"no folder is known for the leaf {missing[0]}; fetch it again")
    weights = weights_over(coefficients)
    table = tuple(
        (name, tuple(row)) for name, row in zip(ledger.names, weights.tolist(), strict=True)
    )
    folders = tuple(leaves[row] for row in coefficients.rows)
    return Assembly(identity, base, folders, table, donor)


def leaf_assembly(path: Path, identity: str) -> Assembly:
    """
    A plain checkpoint, unchanged.

    Raises:
        ModelError: It cannot be read.
    """
    table = tuple((name, (1.0,)) for name in Checkpoint.open(path).tensors)
    return Assembly(identity, path, (), table, path)


def weights_over(coefficients: Coefficients) -> Tensor:
    """
    The same model over the full weights {b, w_1 .. w_n} instead of {b, d_1 .. d_n}.

    Full weights, because where the factors sum to 1 the base then drops out and is not read, and
    because one rounding of w is less than those of w - b and of adding b back.

    Returns:
        (tensors, 1 + rows) float64.
    """
    of_base = coefficients.base - coefficients.deltas.sum(1)
    scale = coefficients.base.abs() + coefficients.deltas.abs().sum(1)
    of_base = torch.where(of_base.abs() <= NEGLIGIBLE * scale, 0.0, of_base)
    return torch.cat([of_base[:, None], coefficients.deltas], 1)


class Sources:
    """The opened checkpoints of an assembly."""

    def __init__(self, assembly: Assembly) -> None:
        """
        Open base and leaves; headers only.

        Raises:
            ModelError: A checkpoint cannot be read.
        """
        self.base = Checkpoint.open(assembly.base)
        self._checkpoints = (self.base, *(Checkpoint.open(path) for path in assembly.leaves))
        self._weights = dict(assembly.coefficients)

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """The result's tensors: the base's names and shapes, in sorted order."""
        return [self.base.tensors[name] for name in self._weights]

    def blocks(self, name: str, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
        """
        One tensor of the result, flat, block after block.

        Summed in fp32 in the order base, leaves, and rounded to `dtype` once. A tensor that is
        one source's own is handed on without a sum, hence exact in any dtype.
        """
        weighted = [
            (checkpoint.tensor(name).reshape(-1), weight)
            for checkpoint, weight in zip(self._checkpoints, self._weights[name], strict=True)
            if weight != 0
        ]
        info = self.base.tensors[name]
        for begin in range(0, info.elements, _BLOCK):
            length = min(_BLOCK, info.elements - begin)
            parts = [(flat[begin : begin + length].to(device), w) for flat, w in weighted]
            if len(parts) == 1 and parts[0][1] == 1:
                yield parts[0][0].to(dtype)
                continue
            total = torch.zeros(length, dtype=torch.float32, device=device)
            for part, weight in parts:
                total.add_(part.float(), alpha=weight)
            yield total.to(dtype)

    def own_dtype(self, name: str) -> torch.dtype:
        return DTYPES[self.base.tensors[name].dtype]
