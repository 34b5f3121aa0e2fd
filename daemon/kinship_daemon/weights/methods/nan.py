"""Weights by the inverse of the norms (NAN, arXiv 2505.16148)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.deltas import delta_dots, over_weights
from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["nan"]


@span_method(
    Parameter("lambda", default=1.0, doc="factor of the merged delta"),
    Parameter("delta_norms", default=False, doc="norms of the deltas, not of the weights"),
    parents=(2, None),
)
def nan(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    Child = b + lambda (p / 2) sum_i weight_i (w_i - b), weight_i = |w_i|^-1 / sum_j |w_j|^-1.

    The norms are Frobenius norms of whole models, so that every tensor has the same weights. Those
    of fine-tunes of one base are nearly the same: each delta then has about half its length. With
    `delta_norms`, |w_i - b| stands for |w_i|, and long deltas do not drown short ones; a parent
    that is the base has no weight there. The paper's own text could not be read: the formula is
    that of summaries and of a public reproduction, which has both norms, and the factor p / 2.
    mergekit has no such method.
    """
    weights = dots[:, 1:, 1:].diagonal(dim1=1, dim2=2)
    deltas = delta_dots(dots).diagonal(dim1=1, dim2=2)
    squares = torch.where(
        parameters["delta_norms"][:, None], deltas.clamp_min(0).sum(0), weights.sum(0)
    )
    # As shares of the smallest: no inverse overflows.
    least = torch.where(squares > 0, squares, torch.inf).amin(1, keepdim=True)
    inverse = torch.where(squares > 0, (least / squares).sqrt(), 0.0)
    total = inverse.sum(1, keepdim=True)
    weight = inverse / torch.where(total > 0, total, 1.0)
    return over_weights(parameters["lambda"][:, None] * weight.shape[1] / 2 * weight)
