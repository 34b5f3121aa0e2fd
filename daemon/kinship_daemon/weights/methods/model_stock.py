"""Between base and average, by how much the deltas agree (Model Stock, arXiv 2403.19522)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.deltas import delta_dots, over_weights
from kinship_daemon.weights.methods.method import span_method

__all__ = ["model_stock"]

# mergekit's constants: the product of norms that none goes below, the denominator that counts as 0.
_EPS = 1e-6
_SINGULAR = 1e-6


@span_method(parents=(2, None))
def model_stock(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    Child = t mean_i w_i + (1-t) b with t = p cosθ / (1 + (p-1) cosθ).

    cosθ is the mean cosine of the p deltas' pairs, per tensor (mergekit's `filter_wise` false; per
    row it is no span method). Deltas that mostly oppose each other give a t below 0, as in
    mergekit, and where the denominator vanishes t is 0. Deltas whose norms' product is below 1e-6
    count as nearly at right angles; tensors without deltas stay the base's.
    """
    del parameters
    inner = delta_dots(dots)
    parents = inner.shape[1]
    norms = inner.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    first, second = torch.triu_indices(parents, parents, offset=1)
    cos = (inner[:, first, second] / (norms[:, first] * norms[:, second]).clamp_min(_EPS)).clamp(
        -1, 1
    )
    mean = cos.mean(1)
    denominator = 1 + (parents - 1) * mean
    singular = denominator.abs() < _SINGULAR
    t = torch.where(singular, 0.0, parents * mean / torch.where(singular, 1.0, denominator))
    return over_weights((t / parents)[:, None].expand(-1, parents))
