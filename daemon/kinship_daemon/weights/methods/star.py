"""STAR (arXiv 2502.10339): each delta without its small singular values, as strong as before."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinship_daemon.weights.methods.method import Parameter, Settings, matrix_method
from kinship_daemon.weights.methods.singular import share, svd

__all__ = ["star"]


@matrix_method(
    Parameter("eta", default=0.4, doc="share of the sum of singular values kept, 0 to 1"),
    parents=(2, None),
)
def star(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    The mean of the deltas, each by its largest singular values, as few as have `eta` of their sum,
    multiplied so that the sum is what it was.

    The paper gives `eta` in percent.
    """
    eta = share(parameters, "eta")
    merged = torch.zeros_like(deltas[0])
    for delta in deltas:
        u, s, v = svd(delta)
        if len(s):
            # As many as it takes, or all: rounding may leave the last sum just below the whole.
            kept = min(int((s.cumsum(0) < eta * s.sum() * (1 - 1e-12)).sum()) + 1, len(s))
            scaled = s[:kept] * (s.sum() / s[:kept].sum() / len(deltas))
            merged.addmm_(u[:, :kept] * scaled.float(), v[:, :kept].T)
    return merged
