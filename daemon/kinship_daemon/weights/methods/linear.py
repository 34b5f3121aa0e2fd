"""Weighted average of the parents (model soups, arXiv 2203.05482), with mergekit's parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["linear"]


@span_method(
    Parameter("weight", per_model=True, doc="share of the child"),
    Parameter("normalize", default=True, doc="divide the weights by their sum"),
    parents=(1, None),
    uses_dots=False,
)
def linear(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    sum_i weight_i w_i, divided by the sum of the weights where `normalize` is set.

    Raises:
        UsageError: Weights to be normalized that sum to 0.
    """
    weight, normalize = parameters["weight"], parameters["normalize"]
    total = weight.sum(1)
    if bool((normalize & (total == 0)).any()):
        raise UsageError("linear: the weights sum to 0; change them, or set normalize to false")
    divisor = torch.where(normalize, total, 1.0)
    of_base = torch.zeros(len(dots), 1, dtype=torch.float64)
    return torch.cat([of_base, weight / divisor[:, None]], 1)
