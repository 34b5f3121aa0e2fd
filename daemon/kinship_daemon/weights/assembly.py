"""A model as weighted checkpoints: all that is needed to make its weights, anywhere, in blocks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.adapter import LowRank, is_adapter
from kinship_daemon.weights.checkpoint import DTYPES, Checkpoint, TensorInfo
from kinship_daemon.weights.descendant import Descendant, descend
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.recipe import NEGLIGIBLE, Coefficients
from kinship_daemon.weights.tokenizer import has_tokenizer
from kinship_daemon.weights.vocabulary import Union, Vocabulary, is_vocabulary, same, unite

__all__ = ["Assembly", "Makeable", "Opened", "Sources", "assemble", "leaf_assembly", "weights_over"]

# Elements handed on at a time (no tensor is ever whole in private memory) and summed at a time (on
# a CPU fp32 sum and summand, 2 MB, stay in the cache).
_STEPS = {"cpu": (1 << 20, 1 << 18), "cuda": (1 << 22, 1 << 22)}


class Opened(Protocol):
    """What a model's tensors are drawn from; see `Sources`."""

    @property
    def base(self) -> Checkpoint: ...

    @property
    def leaves(self) -> tuple[Descendant, ...]: ...

    @property
    def union(self) -> Union | None: ...

    @property
    def rows(self) -> int | None: ...

    @property
    def tokenizers(self) -> tuple[Path, ...]: ...

    @property
    def tensors(self) -> Sequence[TensorInfo]: ...

    def blocks(self, name: str, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]: ...

    def own_dtype(self, name: str) -> torch.dtype: ...


class Makeable(Protocol):
    """A model that can be made: an `Assembly`, or what else knows its base and its donor."""

    @property
    def identity(self) -> str: ...

    @property
    def base(self) -> Path: ...

    @property
    def donor(self) -> Path: ...

    @property
    def config_base(self) -> Path:
        """Folder of the base whose config the model is built from."""

    def open(self) -> Opened: ...


@dataclass(frozen=True)
class Assembly:
    """
    Where a model's weights come from; picklable, and small.

    Attributes:
        identity: Weights identity of the result.
        base: Folder of the base; names the tensors and their shapes.
        leaves: Folders of the leaves, adapters among them.
        coefficients: Per tensor, its name and the weights of (base, *leaves).
        donor: Folder whose tokenizer, generation config and chat template go along.
        foundation: Folder of its base where `base` is a plain checkpoint, handed on unchanged.
    """

    identity: str
    base: Path
    leaves: tuple[Path, ...]
    coefficients: tuple[tuple[str, tuple[float, ...]], ...] = field(repr=False)
    donor: Path
    foundation: Path | None = None

    @property
    def config_base(self) -> Path:
        return self.foundation or self.base

    def open(self) -> "Sources":
        """
        Open base and leaves; headers only.

        Raises:
            ModelError: A checkpoint cannot be read, or a leaf does not fit the base.
        """
        return Sources(self)


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

    `leaves` are folders by weights identity; more than are needed may be given. Where vocabularies
    differ, the coefficients come from a ledger of the base's tokens alone (slerp's angle, for one),
    and are used for the rows of all tokens.

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


def leaf_assembly(path: Path, identity: str, base: Path | None = None) -> Assembly:
    """
    A plain checkpoint, unchanged; or an adapter on its base, whose folder is then needed.

    A checkpoint's config is its base's where that is given, else its own.

    Raises:
        ModelError: It cannot be read, or the adapter does not fit.
        UsageError: It is an adapter, and there is no base.
    """
    if not is_adapter(path):
        table = tuple((name, (1.0,)) for name in Checkpoint.open(path).tensors)
        return Assembly(identity, path, (), table, path, base)
    if base is None:
        raise UsageError(f"{path}: an adapter is no model by itself; give its base too")
    opened = Checkpoint.open(base)
    descend(opened, path)
    return Assembly(identity, base, (path,), tuple((n, (0.0, 1.0)) for n in opened.tensors), path)


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
    """
    The opened checkpoints of an assembly.

    Attributes:
        base: The base.
        leaves: The leaves as descendants of it.
        union: The result's tokens, where its models differ in theirs; else None.
        rows: Of the result's embeddings; None where the base has none.
        tokenizers: Folders of the tokenizers of base and leaves, in the union's order.
    """

    def __init__(self, assembly: Assembly) -> None:
        """See `Assembly.open`."""
        self.base = Checkpoint.open(assembly.base)
        self.leaves = tuple(descend(self.base, path) for path in assembly.leaves)
        self._weights = dict(assembly.coefficients)
        vocabularies, donor = self._vocabularies(assembly)
        self.union = unite(donor, vocabularies) if donor else None
        self.rows = self.union.rows if self.union else donor.rows if donor else None
        self.tokenizers = tuple(vocabulary.folder for vocabulary in vocabularies)

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """The result's tensors: the base's names, in sorted order; embeddings as its tokens ask."""
        return [self._info(name) for name in self._weights]

    def blocks(self, name: str, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
        """
        One tensor of the result, flat, block after block of whole rows.

        Summed in fp32 in the order base, leaves, and rounded to `dtype` once. A tensor that is
        one source's own is handed on without a sum, hence exact in any dtype.
        """
        terms = self._terms(name)
        shape = self._info(name).shape
        columns = shape[-1] if len(shape) > 1 else 1
        rows = self._info(name).elements // max(columns, 1)
        alone = terms[0] if len(terms) == 1 and terms[0].is_itself else None
        step, rows_at_once = _steps(columns, device)
        total = torch.empty(min(rows_at_once, rows), columns, dtype=torch.float32, device=device)
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            if alone:
                yield alone.rows(begin, end, device).to(dtype).flatten()
                continue
            block = torch.empty(end - begin, columns, dtype=dtype, device=device)
            for first in range(begin, end, rows_at_once):
                last = min(first + rows_at_once, end)
                part = total[: last - first].zero_()
                for term in terms:
                    term.add_to(part, first, last)
                block[first - begin : last - begin] = part
            yield block.flatten()

    def own_dtype(self, name: str) -> torch.dtype:
        return DTYPES[self.base.tensors[name].dtype]

    def _info(self, name: str) -> TensorInfo:
        info = self.base.tensors[name]
        if self.rows is None or not is_vocabulary(name):
            return info
        return replace(info, shape=(self.rows, *info.shape[1:]))

    def _vocabularies(self, assembly: Assembly) -> tuple[list[Vocabulary], Vocabulary | None]:
        """Those of base and leaves, and the donor's."""
        base = Vocabulary.of(self.base)
        if base is None:
            return [], None
        found = [base, *(leaf.vocabulary or base for leaf in self.leaves)]
        if assembly.donor == assembly.base:
            return found, base
        if assembly.donor in assembly.leaves:
            donor = self.leaves[assembly.leaves.index(assembly.donor)]
        else:
            donor = descend(self.base, assembly.donor)
        if donor.vocabulary is not None or not has_tokenizer(assembly.donor):
            return found, donor.vocabulary or base
        # Its tokenizer goes along, and may have tokens without a row though all rows are alike. An
        # adapter's may call the base's rows otherwise, and they stay in their places.
        own = replace(base, folder=assembly.donor)
        return found, own if same(own, base) else base

    def _terms(self, name: str) -> list["_Term"]:
        """What is to be summed, in the order base, leaves; the base stands under each delta."""
        weights = self._weights[name]
        if self.union is None or not is_vocabulary(name):
            spread, places = torch.tensor([weights], dtype=torch.float64), None
        else:
            spread, places = self.union.spread(weights), self.union.places
        of_base, terms = spread[:, 0].clone(), []
        reach = of_base.abs()
        for number, leaf in enumerate(self.leaves, start=1):
            if not bool(spread[:, number].any()):
                continue
            own = leaf.own(name)
            if not isinstance(own, Tensor):
                of_base += spread[:, number]
                reach += spread[:, number].abs()
            if own is not None:
                terms.append(_term(own, spread[:, number], places, number))
        of_base[of_base.abs() <= NEGLIGIBLE * reach] = 0
        if bool(of_base.any()):
            terms.insert(0, _term(self.base.tensor(name), of_base, places, 0))
        return terms


@dataclass(frozen=True, eq=False)
class _Term:
    """
    One summand of a tensor.

    Attributes:
        content: (rows, columns), or the factors of such a matrix.
        weight: Of the whole, or of each of the result's rows, (rows, 1) fp32.
        places: Where the result's rows are in `content`, -1 for nowhere; None where they are its.
    """

    content: Tensor | LowRank
    weight: float | Tensor
    places: Tensor | None

    @property
    def is_itself(self) -> bool:
        if isinstance(self.weight, Tensor) or isinstance(self.content, LowRank):
            return False
        return self.weight == 1

    def rows(self, begin: int, end: int, device: torch.device) -> Tensor:
        """Some rows of a full tensor, in its own dtype."""
        assert isinstance(self.content, Tensor)
        return _pick(self.content, self.places, begin, end).to(device)

    def add_to(self, total: Tensor, begin: int, end: int) -> None:
        """Add weight times rows; (end - begin, columns) fp32."""
        if isinstance(self.weight, float) and isinstance(self.content, Tensor):
            total.add_(self.rows(begin, end, total.device), alpha=self.weight)
        elif isinstance(self.weight, float):
            total.addmm_(*self._factors(begin, end, total.device), alpha=self.weight)
        else:
            weight = self.weight[begin:end].to(total.device)
            if isinstance(self.content, Tensor):
                total.addcmul_(self.rows(begin, end, total.device).float(), weight)
            else:
                up, down = self._factors(begin, end, total.device)
                total.addmm_(up * weight, down)

    def _factors(self, begin: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        assert isinstance(self.content, LowRank)
        up = _pick(self.content.up, self.places, begin, end)
        return up.to(device), self.content.down.to(device)


def _pick(rows: Tensor, places: Tensor | None, begin: int, end: int) -> Tensor:
    if places is None:
        return rows[begin:end]
    return rows.index_select(0, places[begin:end].clamp_min(0))


def _term(own: Tensor | LowRank, weights: Tensor, places: Tensor | None, number: int) -> _Term:
    """As simple a term as the weights (rows,) and places (rows, sources) allow."""
    content = (
        own.reshape(-1, own.shape[-1] if own.dim() > 1 else 1) if isinstance(own, Tensor) else own
    )
    uniform = bool((weights == weights[0]).all())
    weight = float(weights[0]) if uniform else weights.float()[:, None]
    if places is None:
        return _Term(content, weight, None)
    column = places[:, number]
    in_place = torch.equal(column, torch.arange(len(column)))
    return _Term(content, weight, None if in_place else column.contiguous())


def _steps(columns: int, device: torch.device) -> tuple[int, int]:
    """Rows in a block that is handed on, and rows summed at a time."""
    handed, summed = _STEPS["cpu" if device.type == "cpu" else "cuda"]
    return max(1, handed // max(columns, 1)), max(1, summed // max(columns, 1))
