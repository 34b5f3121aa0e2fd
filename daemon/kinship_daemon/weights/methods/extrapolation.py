"""Beyond one parent, away from the other (ExPO, arXiv 2404.16792)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["extrapolation"]


@span_method(
    Parameter("lambda", doc="0 for the first model; the paper's best are 0.1 to 0.5"),
    parents=(2, 2),
    uses_dots=False,
)
def extrapolation(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    w_1 + lambda (w_1 - w_2): on along the way from the second model, or the base, to the first.

    mergekit has no such method; its `linear` does the same with the weights 1 + lambda and -lambda
    and `normalize` false.
    """
    del dots
    step = parameters["lambda"]
    return torch.stack([torch.zeros_like(step), 1 + step, -step], 1)
