"""
The Gram ledger: per tensor, the inner products of {ones, b, d_1 .. d_n}, summed in float64.

Each checkpoint is read once when it joins; every kinship, slerp angle and merge follows from the
ledger (design.md section 3).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kinship_daemon.durable import whole_file
from kinship_daemon.errors import KinshipError, ModelError
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Descendant
from kinship_daemon.weights.inner import Kernel, doubtful_products, exact_fp32, remeasure

__all__ = ["BadTensor", "Ledger", "extend", "start"]

_FORMAT = 1


class BadTensor(ModelError):
    """A tensor holds NaN or infinity; `identity` says which model is to be quarantined."""

    def __init__(self, identity: str, path: Path, tensor: str, value: str) -> None:
        super().__init__(f"{path}: tensor {tensor} holds {value}; the model is broken")
        self.identity = identity
        self.tensor = tensor


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


def start(base: Checkpoint, identity: str) -> Ledger:
    """
    The ledger of a base alone.

    Raises:
        BadTensor: The base holds NaN or infinity.
    """
    names = tuple(base.tensors)
    sizes = tuple(base.tensors[name].elements for name in names)
    empty = Ledger(identity, (), names, sizes, torch.zeros(len(names), 2, 2, dtype=torch.float64))
    return _measure(empty, base, {}, first=0, device="cpu", progress=None)


def extend(
    ledger: Ledger,
    base: Checkpoint,
    known: Mapping[str, Descendant],
    new: Mapping[str, Descendant],
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Ledger:
    """
    Add rows, reading the base and every resident checkpoint once.

    `known` are the models of all the ledger's rows and `new` those that join, by weights identity.
    `progress` is called with the bytes just read.

    Raises:
        BadTensor: A checkpoint holds NaN or infinity; the ledger given is still good.
    """
    joining = {identity: new[identity] for identity in new if identity not in ledger.rows}
    if not joining:
        return ledger
    first = len(ledger.rows) + 2
    leaves = {identity: known[identity] for identity in ledger.rows} | joining
    return _measure(ledger, base, leaves, first=first, device=device, progress=progress)


def _measure(
    ledger: Ledger,
    base: Checkpoint,
    leaves: Mapping[str, Descendant],
    *,
    first: int,
    device: str,
    progress: Callable[[int], None] | None,
) -> Ledger:
    """The ledger with every inner product that touches a row at or after `first` measured."""
    models = [(ledger.base, base.path), *((row, leaf.path) for row, leaf in leaves.items())]
    count = len(leaves) + 2
    gram = torch.zeros(len(ledger.names), count, count, dtype=torch.float64)
    old = ledger.gram.shape[1]
    gram[:, :old, :old] = ledger.gram
    kernel = Kernel(count, first, device, progress or (lambda _bytes: None))
    with exact_fp32():
        for index, name in enumerate(ledger.names):
            own = base.tensor(name)
            contents = [leaf.content(name) for leaf in leaves.values()]
            tensors = [t.reshape(-1) for t in (own, *contents) if isinstance(t, Tensor)]
            measured = kernel.products(tensors)
            doubtful = doubtful_products(measured, tensors, first)
            if bool(doubtful.any()):
                _refuse_bad(name, models, tensors)
                remeasure(measured, tensors, doubtful)
            gram[index, first:] = measured[first:]
            gram[index, :, first:] = measured[first:].T
    return replace(ledger, rows=tuple(leaves), gram=gram)


def _refuse_bad(name: str, models: Sequence[tuple[str, Path]], tensors: Sequence[Tensor]) -> None:
    for (identity, path), tensor in zip(models, tensors, strict=True):
        if not bool(tensor.isfinite().all()):
            value = "NaN" if bool(tensor.isnan().any()) else "infinity"
            raise BadTensor(identity, path, name, value)
