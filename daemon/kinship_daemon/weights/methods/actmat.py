"""RegMean without data, its covariances estimated from the deltas (ACT-Mat, arXiv 2604.01329)."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.least_squares import RIDGE, solve
from kinship_daemon.weights.methods.method import Settings, matrix_method

__all__ = ["actmat"]


@matrix_method(RIDGE, parents=(1, None))
def actmat(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    X sum_i G_i = sum_i d_i G_i with G_i = d_i^T d_i: longer deltas count for more.

    The paper takes a pseudo-inverse of sum_i G_i, which leaves directions that no delta uses at
    zero; so does the ridge, and it averages where all deltas are small.
    """
    return solve(deltas, [1.0] * len(deltas), parameters)
