"""Spherical interpolation by two weights, of full weights or of deltas (mergekit's NuSLERP)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.deltas import delta_dots, over_weights
from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["nuslerp"]

# mergekit's constants: the norm that none goes below, the sum of weights that counts as 0.
_EPS = 1e-7
_NO_SUM = 1e-6
# From here on cos² is 1 in float32, in which mergekit compares it; its own 1e-16 is never met.
_COLLINEAR = 2.0**-25


@span_method(
    Parameter("weight", per_model=True, doc="relative; t is the second's share of both"),
    Parameter("of_deltas", default=False, doc="turn w - b instead of w; mergekit: with base_model"),
    parents=(2, 2),
)
def nuslerp(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    sin((1-t)θ)/sinθ w_1 + sin(tθ)/sinθ w_2 with t = weight_2 / (weight_1 + weight_2).

    θ is the angle between the tensors as flat vectors (mergekit's `nuslerp_flatten`, its default;
    its row- and column-wise forms are no span methods). With `of_deltas` the same for w_i - b,
    added to b. t is 0.5 where the weights sum to less than 1e-6. Parallel and opposite vectors are
    averaged plainly. A vector shorter than 1e-7 counts as being that long, so a zero one stands at
    a right angle to the other: the factors are then sin((1-t)π/2) and sin(tπ/2).
    """
    t = _share(parameters["weight"])
    of_deltas = parameters["of_deltas"]
    spanned = torch.where(of_deltas[:, None, None], delta_dots(dots), dots[:, 1:, 1:])
    factors = _turned(spanned, t)
    on_weights = torch.cat([torch.zeros_like(t)[:, None], factors], 1)
    return torch.where(of_deltas[:, None], over_weights(factors), on_weights)


def _share(weight: Tensor) -> Tensor:
    total = weight.sum(1)
    none = total.abs() < _NO_SUM
    return torch.where(none, 0.5, weight[:, 1] / torch.where(none, 1.0, total))


def _turned(dots: Tensor, t: Tensor) -> Tensor:
    """The factors of two vectors, (T, 2), from their inner products."""
    norms = dots.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().clamp_min(_EPS)
    cos = (dots[:, 0, 1] / norms.prod(1)).clamp(-1, 1)
    plain = 1 - cos.square() <= _COLLINEAR
    theta = torch.where(plain, 0.0, cos).acos()
    shares = torch.stack([1 - t, t], 1)
    turned = (shares * theta[:, None]).sin() / theta.sin()[:, None]
    return torch.where(plain[:, None], shares, turned)
