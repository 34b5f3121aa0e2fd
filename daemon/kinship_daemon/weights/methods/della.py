"""DELLA (arXiv 2406.11617): drop at random, the small more often; elect signs; average."""

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

__all__ = ["della"]


@elementwise_method(
    *COMMON,
    EPSILON,
    *switches(normalize=True, rescale=True),
    SEED,
    parents=(1, None),
)
def della(deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
    """
    Each element stays with a probability that rises, with the rank of its magnitude in its row,
    from density - epsilon to density + epsilon; per element those are averaged, by weight, whose
    sign is that of the weighted sum.

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

    return merge(deltas, parameters, sparsify, elect=True)
