"""WUDI's loss solved exactly (arXiv 2503.08099): no task's change disturbs another's inputs."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.least_squares import RIDGE, solve, squared
from kinship_daemon.weights.methods.method import Settings, matrix_method

__all__ = ["wudi"]


@matrix_method(RIDGE, parents=(1, None))
def wudi(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    The X where sum_i |(X - d_i) d_i^T|^2 / |d_i|^2 is least: X sum_i G_i = sum_i d_i G_i with
    G_i = d_i^T d_i / |d_i|^2.

    The paper goes 300 steps of Adam from sum_i d_i towards it; this is where they lead, but for the
    ridge: directions in which all deltas are small are averaged. A matrix that a parent left as it
    was has no inputs of its own, and is only averaged in by the ridge.
    """
    squares = [squared(delta) for delta in deltas]
    return solve(deltas, [1 / square if square else 0.0 for square in squares], parameters)
