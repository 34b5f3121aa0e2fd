"""The closed form of ACE-Merging (arXiv 2603.02945): covariances of the deltas' rows."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.least_squares import RIDGE, solve, squared
from kinship_daemon.weights.methods.method import Settings, matrix_method

__all__ = ["ace"]


@matrix_method(RIDGE, parents=(1, None))
def ace(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    X sum_i G_i = sum_i d_i G_i with G_i = s_i^T s_i / |s_i|^2, s_i being d_i less the mean of its
    rows.

    The paper's first step, always with the division by the trace, which it makes where the traces
    differ much. Its other two are left out: a prior common to all columns, and a part of flat
    spectrum that is added. They depend on the unit of the weights, and give one parent not back.
    The paper's ridge is 0.01 of no unit; this one is relative.
    """
    traces = [squared(delta - delta.mean(0)) for delta in deltas]
    scales = [1 / trace if trace else 0.0 for trace in traces]
    return solve(deltas, scales, parameters, centred=True)
