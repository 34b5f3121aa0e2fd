"""Weighted deltas added to the base (task arithmetic, arXiv 2212.04089), as in mergekit."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.deltas import over_weights
from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["task_arithmetic"]

# mergekit's: weights that sum to less are not divided by their sum.
_NO_SUM = 1e-8


@span_method(
    Parameter("weight", per_model=True, doc="share of its delta; negative to unlearn"),
    Parameter("lambda", default=1.0, doc="scale of the summed deltas"),
    Parameter("normalize", default=False, doc="divide the weights by their sum"),
    parents=(1, None),
    uses_dots=False,
)
def task_arithmetic(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    Child = b + lambda sum_i weight_i (w_i - b).

    With `normalize` the weights are divided by their sum, unless that is below 1e-8. mergekit's
    `density`, `rescale` and `int8_mask` do nothing for this method and are left out.
    """
    del dots
    weight = parameters["weight"]
    total = weight.sum(1)
    divided = parameters["normalize"] & (total.abs() >= _NO_SUM)
    scale = parameters["lambda"] / torch.where(divided, total, 1.0)
    return over_weights(scale[:, None] * weight)
