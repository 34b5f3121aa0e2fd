"""OptMerge (arXiv 2505.19892): WUDI's loss on what each delta is without its noise."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.least_squares import RIDGE, solve, squared
from kinship_daemon.weights.methods.method import Settings, matrix_method
from kinship_daemon.weights.methods.singular import svd

__all__ = ["optmerge"]


@matrix_method(RIDGE, parents=(1, None))
def optmerge(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    X sum_i G_i = sum_i t_i G_i with G_i = t_i^T t_i / |d_i|^2, where t_i is d_i by its
    min(m, n) / p largest singular values.

    The paper goes 300 steps of gradient descent from the mean of the deltas towards it, which also
    leaves directions that no t_i uses at their mean; here they are zero, but for the ridge. A
    single parent is itself.
    """
    if len(deltas) == 1:
        return deltas[0]
    kept = max(1, min(deltas[0].shape) // len(deltas))
    squares = [squared(delta) for delta in deltas]
    largest = []
    for delta in deltas:
        u, s, v = svd(delta)
        largest.append(u[:, :kept] * s[:kept].float() @ v[:, :kept].T)
    return solve(largest, [1 / square if square else 0.0 for square in squares], parameters)
