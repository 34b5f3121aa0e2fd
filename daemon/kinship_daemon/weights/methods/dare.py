"""DARE (arXiv 2311.03099): drop changes at random, rescale the rest, add them up."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.arithmetic import (
    COMMON,
    SEED,
    merge,
    shares,
    switches,
)
from kinship_daemon.weights.methods.method import Draw, Settings, elementwise_method
from kinship_daemon.weights.methods.sparse import keep_random

__all__ = ["dare_linear", "dare_ties"]


@elementwise_method(
    *COMMON,
    *switches(normalize=False, rescale=True),
    SEED,
    parents=(1, None),
)
def dare_linear(deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
    """
    sum_i weight_i s(d_i), where s keeps each element with probability `density`.

    As in mergekit, rescaling gives a delta back its very sum of magnitudes, where the paper divides
    by the density, which does so on average. mergekit's choice depends on what was drawn before,
    ours on `seed`, the tensor's name and the place of the parent alone.
    """
    return _merged(deltas, parameters, draw, elect=False)


@elementwise_method(
    *COMMON,
    *switches(normalize=False, rescale=True),
    SEED,
    parents=(1, None),
)
def dare_ties(deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
    """
    Each element of a delta stays with probability `density`; per element those are summed, by
    weight, whose sign is that of the weighted sum.

    As in mergekit, rescaling gives a delta back its very sum of magnitudes, where the paper divides
    by the density, which does so on average. mergekit's choice depends on what was drawn before,
    ours on `seed`, the tensor's name and the place of the parent alone.
    """
    return _merged(deltas, parameters, draw, elect=True)


def _merged(deltas: Sequence[Tensor], parameters: Settings, draw: Draw, *, elect: bool) -> Tensor:
    """What both do: sparsify every delta, then add up; `elect`: only the elected signs."""
    density = shares(parameters, "density")

    def sparsify(index: int, delta: Tensor) -> None:
        keep_random(delta, density[index], draw(index))

    return merge(deltas, parameters, sparsify, elect=elect)
