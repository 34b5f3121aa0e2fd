"""Weights by a power of the deltas' Frobenius norms (FroM for full models, arXiv 2506.02478)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.deltas import delta_dots, over_weights
from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["frobenius"]


@span_method(
    Parameter("k", default=2.0, doc="power of the norms; 0 is the mean, below 0 favours short"),
    Parameter("lambda", default=1.0, doc="factor of the merged delta"),
    parents=(1, None),
)
def frobenius(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    Child = b + lambda sum_i weight_i d_i with weight_i = |d_i|^k / sum_j |d_j|^k, per tensor.

    It minimises sum_i |d_i|^k |d - d_i|^2, FroM's loss for full models. Of that paper no more could
    be read: the default of k is ours, and its form for adapters is not here. Unless k is 0, a
    parent that does not differ from the base in a tensor has no weight there. mergekit has no
    such method.
    """
    lengths = delta_dots(dots).diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    k = parameters["k"][:, None]
    scores = torch.where(lengths > 0, k * lengths.log(), -torch.inf)
    # By logarithms, so that no power overflows; where all differ in nothing, softmax has no answer.
    weights = torch.where(k == 0, 0.0, scores).softmax(1).nan_to_num(0.0)
    return over_weights(parameters["lambda"][:, None] * weights)
