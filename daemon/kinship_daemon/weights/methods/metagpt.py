"""Weights by the squared lengths of the deltas (MetaGPT, arXiv 2406.11385)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.deltas import delta_dots, over_weights
from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["metagpt"]


@span_method(
    Parameter("lambda", default=1.0, doc="factor of the merged delta"),
    parents=(1, None),
)
def metagpt(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    Child = b + lambda sum_i weight_i (w_i - b) with weight_i = |w_i - b|^2 / sum_j |w_j - b|^2.

    The lengths are those of whole models, so that every tensor has the same weights. Where nobody
    differs from the base, so does the child not. mergekit has no such method.
    """
    squares = delta_dots(dots).diagonal(dim1=1, dim2=2).clamp_min(0).sum(0)
    total = squares.sum()
    weight = squares / torch.where(total > 0, total, 1.0)
    return over_weights(parameters["lambda"][:, None] * weight)
