"""
Kinship from the Gram ledger: how alike the weight changes of models are, leaves and merges alike.

No weights are read: a merge's row is its coefficients times the ledger (design.md section 3).
The metrics are those of Exploring Model Kinship for Merging Large Language Models
(arXiv 2410.12613), with cosine's sign kept.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal, TypeVar

import torch
from torch import Tensor

from kinship_daemon.weights.ledger import Ledger
from kinship_daemon.weights.parameters import layer_of
from kinship_daemon.weights.recipe import NEGLIGIBLE, Coefficients

__all__ = [
    "KINDS",
    "METRICS",
    "Kind",
    "Metric",
    "by_kind",
    "by_layer",
    "by_tensor",
    "grouped",
    "kind_of",
    "lengths",
    "matrix",
    "mean_pairwise",
]

Metric = Literal["pcc", "cosine", "euclidean"]
METRICS: tuple[Metric, ...] = ("pcc", "cosine", "euclidean")

Kind = Literal["attention", "mlp", "embeddings", "norms", "other"]
KINDS: tuple[Kind, ...] = ("attention", "mlp", "embeddings", "norms", "other")

_Label = TypeVar("_Label", bound=Hashable)

# At worst, for constant deltas, a run of 512 products summed in fp32 is off by 512 roundings of
# 2^-24: below this share of its squared length, what is left of a delta after cancelling, or after
# taking its mean away, may be rounding alone.
_RESOLUTION = 3e-5

# The sums here are float64: a squared distance below this share of the squared lengths is theirs.
_ROUNDING = 1e-13

# Coefficients are laid out for so many tensors at a time that they take 32 MB.
_ROOM = 2**22
# The product is symmetric: only blocks of so many models on and below the diagonal are computed.
_BLOCK = 128

# The words of tensors' names in Mistral, Llama, Qwen and Gemma, and in their elders. The first
# that fits decides: self_attn.q_norm is a norm.
_WORDS: Mapping[Kind, tuple[str, ...]] = {
    "norms": ("norm", "ln_"),
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "feed_forward", "experts"),
    "embeddings": ("embed", "lm_head", "wte", "wpe"),
}


def matrix(ledger: Ledger, coefficients: Sequence[Coefficients], metric: Metric) -> Tensor:
    """
    Kinship of every pair of models over all parameters.

    A value depends on its two models alone, but for the order of float64 sums (1e-12).

    Returns:
        (models, models) float64, symmetric. pcc and cosine in [-1, 1], NaN beside a delta that is
        zero (for pcc, constant), else 1 on the diagonal; euclidean at least 0.
    """
    return grouped(ledger, coefficients, metric, [None] * len(ledger.names))[None]


def by_tensor(ledger: Ledger, coefficients: Sequence[Coefficients], metric: Metric) -> Tensor:
    """The same within each tensor, (tensors, models, models) float64, in the ledger's order."""
    found = grouped(ledger, coefficients, metric, range(len(ledger.names)))
    return torch.stack(list(found.values()))


def by_layer(
    ledger: Ledger, coefficients: Sequence[Coefficients], metric: Metric
) -> dict[int | None, Tensor]:
    """The same within each layer, ascending; under None, last, all tensors outside the layers."""
    found = grouped(ledger, coefficients, metric, [layer_of(name) for name in ledger.names])
    inside = sorted(layer for layer in found if layer is not None)
    return {layer: found[layer] for layer in [*inside, *([None] if None in found else [])]}


def by_kind(
    ledger: Ledger, coefficients: Sequence[Coefficients], metric: Metric
) -> dict[Kind, Tensor]:
    """The same within each kind of module, in the order of KINDS; kinds of no tensor left out."""
    found = grouped(ledger, coefficients, metric, [kind_of(name) for name in ledger.names])
    return {kind: found[kind] for kind in KINDS if kind in found}


def grouped(
    ledger: Ledger,
    coefficients: Sequence[Coefficients],
    metric: Metric,
    groups: Sequence[_Label],
) -> dict[_Label, Tensor]:
    """
    Kinship within groups of tensors, as `matrix` gives it for all of them.

    Args:
        groups: The label of each tensor's group, in the ledger's order.

    Returns:
        (models, models) float64 by label, in the order in which the labels first appear.
    """
    return {
        label: _METRICS[metric](sums)
        for label, sums in _summed(ledger, coefficients, groups).items()
    }


def lengths(ledger: Ledger, coefficients: Sequence[Coefficients], metric: Metric) -> Tensor:
    """
    Length of every model's delta in the metric's geometry: for pcc, of the delta less its mean.

    Returns:
        (models,) float64; the inner product of two deltas is their kinship times their lengths.
    """
    sums = _summed(ledger, coefficients, [None] * len(ledger.names))[None]
    squares = sums.dots.diagonal()
    if metric == "pcc":
        squares = squares - sums.ones.square() / max(sums.elements, 1)
    return squares.clamp_min(0).sqrt()


def mean_pairwise(matrix: Tensor) -> float:
    """The kinship of more than two models: the mean over pairs. NaN for fewer than two."""
    pairs = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return float(matrix[pairs[0], pairs[1]].mean())


def kind_of(tensor: str) -> Kind:
    """The kind of module that a tensor of this name belongs to."""
    module = tensor.lower()
    return next(
        (kind for kind, words in _WORDS.items() if any(w in module for w in words)), "other"
    )


def _summed(
    ledger: Ledger, coefficients: Sequence[Coefficients], groups: Sequence[_Label]
) -> "dict[_Label, _Sums]":
    sums = {label: _Sums(len(coefficients)) for label in groups}
    rank = {label: place for place, label in enumerate(sums)}
    order = sorted(range(len(groups)), key=lambda index: rank[groups[index]])
    places = _places(ledger, coefficients)
    for chunk in _chunks(order, len(coefficients) * len(places)):
        parts = _parts(ledger, coefficients, places, chunk)
        for label, first, last in _runs([groups[index] for index in chunk]):
            run = chunk[first:last]
            elements = sum(ledger.sizes[index] for index in run)
            sums[label].add(parts[:, first:last], ledger.gram[run], places, elements)
    return sums


def _places(ledger: Ledger, coefficients: Sequence[Coefficients]) -> list[int]:
    """Where in the ledger b lies, and the leaves that any of the models draws on, sorted."""
    used = {row for model in coefficients for row in model.rows}
    return [1, *sorted(ledger.rows.index(row) + 2 for row in used)]


def _chunks(order: Sequence[int], each: int) -> Iterator[list[int]]:
    """Tensors in turn, as many at a time as there is room for at `each` coefficients a tensor."""
    step = max(1, _ROOM // max(1, each))
    for first in range(0, len(order), step):
        yield list(order[first : first + step])


def _runs(labels: Sequence[_Label]) -> Iterator[tuple[_Label, int, int]]:
    """Each label with where its run begins and ends."""
    first = 0
    for label, run in groupby(labels):
        last = first + len(list(run))
        yield label, first, last
        first = last


def _parts(
    ledger: Ledger,
    coefficients: Sequence[Coefficients],
    places: Sequence[int],
    tensors: Sequence[int],
) -> Tensor:
    """The models' deltas over the ledger's places, (models, tensors, places) float64."""
    column = {ledger.rows[place - 2]: at for at, place in enumerate(places) if place > 1}
    parts = torch.zeros(len(coefficients), len(tensors), len(places), dtype=torch.float64)
    index = torch.tensor(tensors)
    for own, model in zip(parts, coefficients, strict=True):
        own[:, 0] = model.base.index_select(0, index)
        columns = torch.tensor([column[row] for row in model.rows], dtype=torch.int64)
        own.index_copy_(1, columns, model.deltas.index_select(0, index))
    # A merge whose factors sum to 1 has no part along the base, but for rounding.
    along_base = parts[..., 0] - 1
    negligible = along_base.abs() <= NEGLIGIBLE * (1 + parts[..., 1:].abs().sum(-1))
    parts[..., 0] = torch.where(negligible, 0.0, along_base)
    return parts


class _Sums:
    """
    Inner products of the deltas of m models, summed over tensors, all float64.

    Attributes:
        dots: (m, m), symmetric.
        ones: Sums of the elements, (m,).
        reach: The squared length each delta could have if nothing in it cancelled, the scale of
            its rounding, (m,).
        elements: How many there are.
    """

    def __init__(self, models: int) -> None:
        self.dots = torch.zeros(models, models, dtype=torch.float64)
        self.ones = torch.zeros(models, dtype=torch.float64)
        self.reach = torch.zeros(models, dtype=torch.float64)
        self.elements = 0

    def add(self, parts: Tensor, gram: Tensor, places: Sequence[int], elements: int) -> None:
        """Tensors: parts (m, t, places), the ledger of these tensors, and their elements."""
        inner = gram[:, places][:, :, places]
        lengths = gram.diagonal(dim1=1, dim2=2)[:, places].clamp_min(0).sqrt()
        left = parts.flatten(1)
        right = (parts.transpose(0, 1) @ inner).transpose(0, 1).flatten(1)
        self._add_dots(left, right)
        self.ones += left @ gram[:, 0, places].flatten()
        self.reach += (parts.abs() * lengths).sum(2).square().sum(1)
        self.elements += elements

    def _add_dots(self, left: Tensor, right: Tensor) -> None:
        for first in range(0, len(left), _BLOCK):
            last = first + _BLOCK
            self.dots[first:last, :last] += left[first:last] @ right[:last].T
        # The diagonal blocks' two halves were rounded apart.
        self.dots = self.dots.tril() + self.dots.tril(-1).T


def _cosine(sums: _Sums) -> Tensor:
    return _normalised(sums.dots, sums.reach)


def _pcc(sums: _Sums) -> Tensor:
    means = torch.outer(sums.ones, sums.ones) / max(sums.elements, 1)
    return _normalised(sums.dots - means, sums.reach)


def _euclidean(sums: _Sums) -> Tensor:
    squares = sums.dots.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * sums.dots
    # Twins are at 0, not at the root of what rounding left.
    rounding = _ROUNDING * (sums.reach[:, None] + sums.reach[None, :])
    return torch.where(distances > rounding, distances, 0.0).sqrt()


def _normalised(dots: Tensor, reach: Tensor) -> Tensor:
    squares = dots.diagonal()
    defined = (squares > _RESOLUTION * reach) & (squares > 0)
    lengths = torch.where(defined, squares, torch.nan).sqrt()
    cosines = (dots / torch.outer(lengths, lengths)).clamp_(-1, 1)
    cosines.diagonal()[defined] = 1.0
    return cosines


_METRICS = {"pcc": _pcc, "cosine": _cosine, "euclidean": _euclidean}
