"""Spherical interpolation between two parents, defined on full weights as mergekit defines it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["slerp"]

# mergekit's constants (its slerp's `eps` and `dot_threshold`).
_EPS = 1e-8
_NEARLY_PARALLEL = 0.9995


@span_method(Parameter("t", doc="0 for the first model, 1 for the second"), parents=(2, 2))
def slerp(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    sin((1-t)θ)/sinθ w_1 + sin(tθ)/sinθ w_2, θ the angle between the full weights of a tensor.

    Nearly parallel or opposite tensors (|cos θ| > 0.9995) are averaged plainly. A tensor whose
    norm is below 1e-8 counts as having norm 1. The factors do not sum to 1: the child keeps a
    part along the base.
    """
    t = parameters["t"]
    norms = dots.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    norms = torch.where(norms > _EPS, norms, 1.0)
    cos = (dots[:, 1, 2] / (norms[:, 1] * norms[:, 2])).clamp(-1, 1)
    plain = cos.abs() > _NEARLY_PARALLEL
    theta = torch.where(plain, 0.0, cos).acos()
    first = torch.where(plain, 1 - t, ((1 - t) * theta).sin() / theta.sin())
    second = torch.where(plain, t, (t * theta).sin() / theta.sin())
    return torch.stack([torch.zeros_like(t), first, second], 1)
