"""
Kinship from the Gram ledger: how alike the weight changes of models are, leaves and merges alike.

No weights are read: a merge's row is its coefficients times the ledger (design.md section 3).
The metrics are those of Exploring Model Kinship for Merging Large Language Models
(arXiv 2410.12613), with cosine's sign kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.recipe import NEGLIGIBLE, Coefficients

__all__ = ["METRICS", "Metric", "by_tensor", "matrix", "mean_pairwise"]

Metric = Literal["pcc", "cosine", "euclidean"]
METRICS: tuple[Metric, ...] = ("pcc", "cosine", "euclidean")

# At worst, for constant deltas, a run of 512 products summed in fp32 is off by 512 roundings of
# 2^-24: below this share of its squared length, what is left of a delta after cancelling, or after
# taking its mean away, may be rounding alone.
_RESOLUTION = 3e-5


def matrix(ledger: Ledger, coefficients: Sequence[Coefficients], metric: Metric) -> Tensor:
    """
    Kinship of every pair of models over all parameters.

    A value depends on its two models alone, to the last bit.

    Returns:
        (models, models) float64. pcc and cosine in [-1, 1], NaN beside a delta that is zero
        (for pcc, constant); euclidean at least 0.
    """
    # Each sum runs along memory, so that its order does not depend on how many models there are.
    dots, ones, reach = (moment.sum(-1) for moment in _moments(ledger, coefficients))
    elements = torch.tensor(float(sum(ledger.sizes)), dtype=torch.float64)
    return _METRICS[metric](dots, ones, reach, elements)


def by_tensor(ledger: Ledger, coefficients: Sequence[Coefficients], metric: Metric) -> Tensor:
    """The same within each tensor, (tensors, models, models) float64, in the ledger's order."""
    dots, ones, reach = (moment.movedim(-1, 0) for moment in _moments(ledger, coefficients))
    elements = torch.tensor(ledger.sizes, dtype=torch.float64)
    return _METRICS[metric](dots, ones, reach, elements)


def mean_pairwise(matrix: Tensor) -> float:
    """The kinship of more than two models: the mean over pairs. NaN for fewer than two."""
    pairs = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return float(matrix[pairs[0], pairs[1]].mean())


@dataclass(frozen=True, eq=False)
class _Delta:
    """A model's delta: the ledger's places (k,) it draws on and its parts of them (tensors, k)."""

    places: Tensor
    parts: Tensor
    key: tuple[tuple[str, ...], bytes]


def _moments(ledger: Ledger, coefficients: Sequence[Coefficients]) -> tuple[Tensor, Tensor, Tensor]:
    """
    Inner products of the models' deltas.

    Returns:
        dots (m, m, tensors), ones (m, tensors), and reach (m, tensors): the squared length each
        delta could have if nothing in it cancelled, the scale of its rounding.
    """
    deltas = [_delta(ledger, model) for model in coefficients]
    models, tensors = len(deltas), len(ledger.names)
    dots = torch.zeros(models, models, tensors, dtype=torch.float64)
    ones = torch.zeros(models, tensors, dtype=torch.float64)
    reach = torch.zeros(models, tensors, dtype=torch.float64)
    lengths = ledger.gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    for i, left in enumerate(deltas):
        ones[i] = (ledger.gram[:, 0, left.places] * left.parts).sum(1)
        reach[i] = (lengths[:, left.places] * left.parts.abs()).sum(1).square()
        for j, right in enumerate(deltas[: i + 1]):
            dots[i, j] = dots[j, i] = _inner(ledger, left, right)
    return dots, ones, reach


def _inner(ledger: Ledger, left: _Delta, right: _Delta) -> Tensor:
    """Inner products per tensor, (tensors,)."""
    if right.key < left.key:
        left, right = right, left  # the same sum whichever of the two is asked for first
    block = ledger.gram[:, left.places][:, :, right.places]
    return (left.parts[:, :, None] * block * right.parts[:, None, :]).flatten(1).sum(1)


def _delta(ledger: Ledger, model: Coefficients) -> _Delta:
    # A merge whose factors sum to 1 has no part along the base, but for rounding.
    along_base = model.base - 1
    negligible = along_base.abs() <= NEGLIGIBLE * (1 + model.deltas.abs().sum(1))
    along_base = torch.where(negligible, 0.0, along_base)
    parts = torch.cat([along_base[:, None], model.deltas], 1)
    places = torch.tensor([1, *(ledger.rows.index(row) + 2 for row in model.rows)])
    used = parts.any(0)
    key = (model.rows, parts.numpy().tobytes())
    return _Delta(places[used], parts[:, used], key)


def _cosine(dots: Tensor, _ones: Tensor, reach: Tensor, _elements: Tensor) -> Tensor:
    return _normalised(dots, reach)


def _pcc(dots: Tensor, ones: Tensor, reach: Tensor, elements: Tensor) -> Tensor:
    means = ones[..., :, None] * ones[..., None, :] / elements.clamp_min(1)[..., None, None]
    return _normalised(dots - means, reach)


def _euclidean(dots: Tensor, _ones: Tensor, _reach: Tensor, _elements: Tensor) -> Tensor:
    squares = dots.diagonal(dim1=-2, dim2=-1)
    # Rounding may leave the distance of near twins below 0.
    return (squares[..., :, None] + squares[..., None, :] - 2 * dots).clamp_min(0).sqrt()


def _normalised(dots: Tensor, reach: Tensor) -> Tensor:
    squares = dots.diagonal(dim1=-2, dim2=-1)
    defined = (squares > _RESOLUTION * reach) & (squares > 0)
    lengths = torch.where(defined, squares, torch.nan).sqrt()
    cosines = (dots / (lengths[..., :, None] * lengths[..., None, :])).clamp(-1, 1)
    own = torch.eye(dots.shape[-1], dtype=torch.bool) & defined[..., :, None]
    return torch.where(own, 1.0, cosines)


_METRICS = {"pcc": _pcc, "cosine": _cosine, "euclidean": _euclidean}
