"""DELLA (arXiv 2406.11617) without elected signs: drop the small more often, add up the rest."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.arithmetic import (
    COMMON,
    EPSILON,
    SEED,
    Settings,
    epsilons,
    merge,
    shares,
    switches,
)
from kinship_daemon.weights.methods.method import Draw, elementwise_method
from kinship_daemon.weights.methods.sparse import keep_by_rank

__all__ = ["della_linear"]


@elementwise_method(
    *COMMON,
    EPSILON,
    *switches(normalize=False, rescale=True),
    SEED,
    parents=(1, None),
)
def della_linear(deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
    """
    sum_i weight_i s(d_i), where an element stays with a probability that rises, with the rank of
    its magnitude in its row, from density - epsilon to density + epsilon.

    As in mergekit, rescaling gives a delta back its very sum of magnitudes, where the paper divides
    each element by its probability. Of equal magnitudes the later ranks higher, which mergekit
    leaves open, and rows are the last dimension, where mergekit takes the second.
    """
    density, epsilon = shares(parameters, "density"), epsilons(parameters)

    def sparsify(index: int, delta: Tensor) -> None:
        if density[index] == 0:
            delta.zero_()
        else:
            keep_by_rank(delta, density[index], epsilon[index], draw(index))

    return merge(deltas, parameters, sparsify, elect=False)
