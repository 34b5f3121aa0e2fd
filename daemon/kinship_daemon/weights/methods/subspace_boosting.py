"""Subspace boosting (arXiv 2506.16506): what tasks do not share is made as strong as the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinship_daemon.weights.methods.method import Parameter, Settings, matrix_method
from kinship_daemon.weights.methods.singular import share, svd

__all__ = ["subspace_boosting"]


@matrix_method(
    Parameter("beta", default=0.01, doc="share of the sum of singular values, 0 to 1; 1 for none"),
    parents=(2, None),
)
def subspace_boosting(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    U diag(max(s, s_k)) V^T, where U diag(s) V^T is the mean of the deltas, and k the first for
    which s_1 .. s_k are `beta` of their sum.

    On the sum, times a factor, in the paper: `lambda` is that factor times the number of parents.
    Singular values that are rounding stay out; the paper makes them as large as the others.
    """
    beta = share(parameters, "beta")
    u, s, v = svd(sum(deltas[1:], start=deltas[0]) / len(deltas))
    if len(s):
        reached = s.cumsum(0) >= beta * s.sum() * (1 - 1e-12)
        s = s.clamp_min(float(s[torch.argmax(reached.int())]))
    return u * s.float() @ v.T
