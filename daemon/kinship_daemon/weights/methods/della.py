"""DELLA (arXiv 2406.11617): drop changes at random, the small more often, add up the rest."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.arithmetic import (
    COMMON,
    EPSILON,
    SEED,
    epsilons,
    merge,
    shares,
    switches,
)
from kinship_daemon.weights.methods.method import Draw, Settings, elementwise_method
from kinship_daemon.weights.methods.sparse import keep_by_rank

__all__ = ["della", "della_linear"]


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
    return _merged(deltas, parameters, draw, elect=True)


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
    return _merged(deltas, parameters, draw, elect=False)


def _merged(deltas: Sequence[Tensor], parameters: Settings, draw: Draw, *, elect: bool) -> Tensor:
    """What both do: sparsify every delta, then add up; `elect`: only the elected signs."""
    density, epsilon = shares(parameters, "density"), epsilons(parameters)

    def sparsify(index: int, delta: Tensor) -> None:
        if density[index] == 0:
            delta.zero_()
        else:
            keep_by_rank(delta, density[index], epsilon[index], draw(index))

    return merge(deltas, parameters, sparsify, elect=elect)
