"""Measures the rows of the Gram ledger: each model is read once when it joins, by tensors."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from kinship_daemon.errors import ModelError
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Content, Descendant, LowRank
from kinship_daemon.weights.inner import Kernel, Pending, doubtful_products, remeasure
from kinship_daemon.weights.ledger import Ledger
from kinship_daemon.weights.low_rank import low_rank_products

__all__ = ["BadTensor", "Joining", "Ledger", "extend", "start", "unmeasured"]

# Tensors that are begun while the first of them is finished, so that no core waits.
_AHEAD = 4
# Of hundreds of models they would take more memory than all else: beyond so many bytes one is begun
# ahead, and no more.
_AHEAD_BYTES = 100_000_000
# Linux maps so much around what is read of a file.
_AROUND_BYTES = 131_072
# The most that a delta's square may be in one tensor, so that float64 holds what is made of many:
# an infinity in one row would be a NaN in everyone's kinship.
_LARGEST = 1e290


class BadTensor(ModelError):
    """
    A tensor holds NaN, infinity or numbers that float64 cannot square; `identity` says which model
    is to be quarantined.
    """

    def __init__(self, identity: str, path: Path, tensor: str, value: str) -> None:
        super().__init__(f"{path}: tensor {tensor} holds {value}; the model is broken")
        self.identity, self.path, self.tensor, self.value = identity, path, tensor, value

    def __reduce__(self) -> tuple[type[Self], tuple[str, Path, str, str]]:
        """It may have been met in another process."""
        return type(self), (self.identity, self.path, self.tensor, self.value)


def start(base: Checkpoint, identity: str) -> Ledger:
    """
    The ledger of a base alone.

    Raises:
        BadTensor: The base holds NaN or infinity.
    """
    ledger = unmeasured(base, identity)
    with Kernel("cpu", lambda _bytes: None) as kernel:
        for index, name in enumerate(ledger.names):
            pending = kernel.begin([base.tensor(name).reshape(-1)], 0, frame=True)
            ledger.gram[index] = _settled(name, pending, [(identity, base.path)], first=0)
    return ledger


def unmeasured(base: Checkpoint, identity: str) -> Ledger:
    """The ledger of a base that nothing was read of: extended, it is measured with the others."""
    names = tuple(base.tensors)
    sizes = tuple(base.tensors[name].elements for name in names)
    return Ledger(identity, (), names, sizes, torch.zeros(len(names), 2, 2, dtype=torch.float64))


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
    `progress` is called with the bytes just read. Where not all of `known` are at hand at once,
    extend the ledger of some at a time and put the parts together (`Ledger.joined`).

    Raises:
        BadTensor: A checkpoint holds NaN or infinity; the ledger given is still good.
    """
    joining = {identity: new[identity] for identity in new if identity not in ledger.rows}
    if not joining:
        return ledger
    paths = {identity: leaf.path for identity, leaf in joining.items()}
    with Joining(ledger, base, known, paths, device=device, progress=progress) as rows:
        for name in ledger.names:
            rows.add(name, [leaf.content(name) for leaf in joining.values()])
        return rows.ledger()


class Joining:
    """
    New rows, measured tensor by tensor: from files, or while a model is being made.

    Inside `with`, every tensor of the ledger is added once; then `ledger` gives the longer ledger.
    """

    def __init__(
        self,
        ledger: Ledger,
        base: Checkpoint,
        known: Mapping[str, Descendant],
        joining: Mapping[str, Path],
        *,
        device: str = "cpu",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        Get ready to read the base and every model of the ledger once.

        Args:
            ledger: Without the new rows.
            base: Its base.
            known: The models of all its rows, by weights identity.
            joining: Where the new rows' models lie, by weights identity; for messages.
            device: Where inner products are computed.
            progress: Called with the bytes just read.
        """
        self._before = ledger
        self._base = base
        self._known = [known[identity] for identity in ledger.rows]
        self._models = [
            (ledger.base, base.path),
            *((identity, known[identity].path) for identity in ledger.rows),
            *joining.items(),
        ]
        count = len(self._models) + 1
        # Without rows, nothing says that the base was measured.
        self._first = len(ledger.rows) + 2 if ledger.rows else 0
        self._gram = torch.zeros(len(ledger.names), count, count, dtype=torch.float64)
        old = ledger.gram.shape[1]
        self._gram[:, :old, :old] = ledger.gram
        self._places = {name: place for place, name in enumerate(ledger.names)}
        self._kernel = Kernel(device, progress or (lambda _bytes: None))
        self._begun: deque[_Begun] = deque()

    def __enter__(self) -> Self:
        self._kernel.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._kernel.__exit__(*error)

    def add(self, name: str, new: Sequence[Content]) -> None:
        """
        One tensor of the new models, in their order.

        Raises:
            BadTensor: A model holds NaN or infinity in this tensor, or in one added before.
        """
        contents = [*(model.content(name) for model in self._known), *new]
        begun = _Begun(
            name,
            self._base.tensor(name),
            contents,
            self._kernel,
            new=len(self._known),
            base_is_new=self._first == 0,
        )
        self._begun.append(begun)
        while len(self._begun) > _AHEAD or self._holds_much():
            self._finish(self._begun.popleft())

    def ledger(self) -> Ledger:
        """
        The ledger with the new rows.

        Raises:
            BadTensor: As `add`.
        """
        while self._begun:
            self._finish(self._begun.popleft())
        rows = tuple(identity for identity, _ in self._models[1:])
        return replace(self._before, rows=rows, gram=self._gram)

    def _holds_much(self) -> bool:
        return len(self._begun) > 2 and sum(each.nbytes for each in self._begun) > _AHEAD_BYTES

    def _finish(self, begun: "_Begun") -> None:
        place, first = self._places[begun.name], self._first
        measured = begun.products(self._models, self._gram[place].diagonal()[:first])
        self._gram[place, first:] = measured[first:]
        self._gram[place, :, first:] = measured[first:].T


class _Begun:
    """One tensor of all models, its dense part on its way through the kernel."""

    def __init__(
        self,
        name: str,
        base: Tensor,
        contents: Sequence[Content],
        kernel: Kernel,
        *,
        new: int,
        base_is_new: bool,
    ) -> None:
        self.name = name
        self._contents = contents
        self._dense = [i for i, each in enumerate(contents) if isinstance(each, Tensor)]
        self._low = [i for i, each in enumerate(contents) if isinstance(each, LowRank)]
        self._tensors = [each.reshape(-1) for each in (base, *contents) if isinstance(each, Tensor)]
        self._known = sum(i < new for i in self._dense)
        self._first = 0 if base_is_new else 2 + self._known
        joins = base_is_new or self._known < len(self._dense)
        self._pending = (
            kernel.begin(self._tensors, self._known, frame=base_is_new) if joins else None
        )

    @property
    def nbytes(self) -> int:
        """Of the memory that its tensors take until it is finished."""
        return sum(each.nbytes + _AROUND_BYTES for each in self._tensors)

    def products(self, models: Sequence[tuple[str, Path]], known: Tensor) -> Tensor:
        """
        (rows, rows) float64, right in every row and column of a new model.

        `known` are the squares of the rows before these.
        """
        size = len(self._contents) + 2
        measured = torch.zeros(size, size, dtype=torch.float64)
        rows = [0, 1, *(i + 2 for i in self._dense)]
        if self._pending is not None:
            theirs = [models[0], *(models[i + 1] for i in self._dense)]
            before = known[rows[: self._first]]
            dense = _settled(self.name, self._pending, theirs, first=self._first, known=before)
            measured[torch.tensor(rows)[:, None], torch.tensor(rows)] = dense
        if self._low:
            self._add_low_rank(measured, rows, models)
        return measured

    def _add_low_rank(
        self, measured: Tensor, rows: list[int], models: Sequence[tuple[str, Path]]
    ) -> None:
        low = [each for each in self._contents if isinstance(each, LowRank)]
        for place, delta in zip(self._low, low, strict=True):
            _refuse_bad(self.name, [models[place + 1]] * 2, [delta.up, delta.down])
        frame, own = low_rank_products(self._tensors, low)
        places = torch.tensor([i + 2 for i in self._low])
        dense = torch.tensor(rows)
        measured[dense[:, None], places] = frame
        measured[places[:, None], dense] = frame.T
        measured[places[:, None], places] = own


def _settled(
    name: str,
    pending: Pending,
    models: Sequence[tuple[str, Path]],
    *,
    first: int,
    known: Tensor | None = None,
) -> Tensor:
    """Dense inner products, (rows, rows), those that fp32 could not hold measured in float64."""
    measured, tensors = pending.result(), pending.tensors
    doubtful = doubtful_products(measured, tensors, first, known)
    if bool(doubtful.any()):
        _refuse_bad(name, models, tensors)
        remeasure(measured, tensors, doubtful, first)
    for row in range(max(first, 1), len(measured)):
        if not float(measured[row, row]) <= _LARGEST:
            identity, path = models[row - 1]
            raise BadTensor(identity, path, name, "numbers too large to be squared")
    return measured


def _refuse_bad(name: str, models: Sequence[tuple[str, Path]], tensors: Sequence[Tensor]) -> None:
    for (identity, path), tensor in zip(models, tensors, strict=True):
        if not bool(tensor.isfinite().all()):
            value = "NaN" if bool(tensor.isnan().any()) else "infinity"
            raise BadTensor(identity, path, name, value)
