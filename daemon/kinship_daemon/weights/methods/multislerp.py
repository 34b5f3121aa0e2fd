"""Weighted mean of any number of directions on the sphere (mergekit's Multi-SLERP)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods.deltas import delta_dots, over_weights
from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["multislerp"]

# A mean of unit vectors that is shorter is the rounding of float64 inner products.
_NO_MEAN = 1e-7


@span_method(
    Parameter("weight", per_model=True, doc="share of its direction and of its norm"),
    Parameter("normalize_weights", default=True, doc="divide the weights by their sum"),
    Parameter("eps", default=1e-8, doc="added to norms; a shorter mean counts as zero"),
    Parameter("of_deltas", default=False, doc="of w - b instead of w; mergekit: with base_model"),
    parents=(1, None),
)
def multislerp(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    cos(eps) m/|m| sum_i weight_i |w_i|, where m = sum_i weight_i w_i / (|w_i| + eps).

    The definition goes on to average the tangents towards the w_i at m/|m|, with the same weights,
    and to follow their mean (https://goddard.blog/posts/multislerp-wow-what-a-cool-idea). As m is
    that very mean, they cancel, but for the eps that is added to their length. With `of_deltas` the
    same for w_i - b, added to b. A single parent is itself.

    Where m is zero, or below the 1e-7 that inner products can tell, the child is the plain weighted
    sum; mergekit does so for two parents, and stops for more.

    Raises:
        UsageError: Weights to be normalized that sum to 0.
    """
    of_deltas = parameters["of_deltas"]
    spanned = torch.where(of_deltas[:, None, None], delta_dots(dots), dots[:, 1:, 1:])
    if spanned.shape[1] == 1:
        factors = torch.ones_like(parameters["weight"])
    else:
        weight = _weight(parameters["weight"], parameters["normalize_weights"])
        factors = _mean_direction(spanned, weight, parameters["eps"])
    on_weights = torch.cat([torch.zeros_like(factors[:, :1]), factors], 1)
    return torch.where(of_deltas[:, None], over_weights(factors), on_weights)


def _weight(weight: Tensor, normalize: Tensor) -> Tensor:
    total = weight.sum(1)
    if bool((normalize & (total == 0)).any()):
        raise UsageError(
            "multislerp: the weights sum to 0; change them, or set normalize_weights to false"
        )
    return weight / torch.where(normalize, total, 1.0)[:, None]


def _mean_direction(dots: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """The factors of the vectors, (T, p), from their inner products."""
    norms = dots.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    # A zero vector adds nothing, and 1/eps times a zero delta is not a zero in floats.
    on_units = torch.where(norms > 0, weight / (norms + eps[:, None]), 0.0)
    square = (on_units[:, None, :] @ dots @ on_units[:, :, None])[:, 0, 0]
    length = square.clamp_min(0).sqrt()
    none = length <= torch.maximum(eps, _NO_MEAN * weight.abs().sum(1))
    norm = eps.cos() * (weight * norms).sum(1) / torch.where(none, 1.0, length)
    return torch.where(none[:, None], weight, norm[:, None] * on_units)
