"""Singular value calibration (arXiv 2602.05536): what tasks share is not counted several times."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods.method import Parameter, Settings, matrix_method
from kinship_daemon.weights.methods.singular import STEP, svd

__all__ = ["svc"]


@matrix_method(
    Parameter("alpha", default=1.0, doc="above 0; the least a task counts as counted"),
    parents=(1, None),
)
def svc(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    U diag(gamma s) V^T, where U diag(s) V^T is the sum of the p deltas, and
    gamma_r = p / sum_i max(alpha, <a, a_i> / |a_i|^2) with a = u_r^T sum_i d_i, a_i = u_r^T d_i.

    Deltas that are the same come to themselves, deltas that have nothing in common to their sum.
    The paper calibrates any merge so; here it is the plain sum. A delta that has nothing but
    rounding along u_r counts as `alpha`.
    """
    alpha = parameters["alpha"]
    assert isinstance(alpha, float)
    if not alpha > 0:
        raise UsageError(f"alpha is {alpha:g}: it has to be above 0")
    u, s, v = svd(sum(deltas[1:], start=deltas[0]))
    counted = torch.zeros_like(s)
    for delta in deltas:
        response = (u.T @ delta).double()
        squares = response.square().sum(1)
        along = s * (response * v.T).sum(1)
        nothing = squares.sqrt() <= s[:1] * max(delta.shape) * STEP
        times = torch.where(nothing, alpha, along / torch.where(nothing, 1.0, squares))
        counted += times.clamp_min(alpha)
    return u * (s * len(deltas) / counted).float() @ v.T
