"""Model breadcrumbs (arXiv 2312.06795): drop small changes and outliers, add up the rest."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.arithmetic import (
    COMMON,
    GAMMA,
    merge,
    shares,
    switches,
)
from kinship_daemon.weights.methods.method import Draw, Settings, elementwise_method
from kinship_daemon.weights.methods.sparse import keep_largest

__all__ = ["breadcrumbs", "breadcrumbs_ties"]


@elementwise_method(
    *COMMON,
    GAMMA,
    *switches(normalize=False, rescale=False),
    parents=(1, None),
)
def breadcrumbs(deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
    """
    sum_i weight_i s(d_i), where s drops the `gamma` largest elements, then keeps the `density`
    largest of the rest.

    Where both shares exceed the whole, fewer outliers are dropped. mergekit leaves open which of
    several equal magnitudes at a threshold stay; here the first in order count as the larger.
    """
    del draw
    return _merged(deltas, parameters, elect=False)


@elementwise_method(
    *COMMON,
    GAMMA,
    *switches(normalize=False, rescale=False),
    parents=(1, None),
)
def breadcrumbs_ties(deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
    """
    Of each delta the `gamma` largest elements go, then the `density` largest of the rest stay; per
    element those are summed, by weight, whose sign is that of the weighted sum.

    Where both shares exceed the whole, fewer outliers are dropped. mergekit leaves open which of
    several equal magnitudes at a threshold stay; here the first in order count as the larger.
    """
    del draw
    return _merged(deltas, parameters, elect=True)


def _merged(deltas: Sequence[Tensor], parameters: Settings, *, elect: bool) -> Tensor:
    """What both do: sparsify every delta, then add up; `elect`: only the elected signs."""
    density, gamma = shares(parameters, "density"), shares(parameters, "gamma")

    def sparsify(index: int, delta: Tensor) -> None:
        kept = int(density[index] * delta.numel())
        outliers = int(gamma[index] * delta.numel())
        keep_largest(delta, kept, skip=min(outliers, delta.numel() - kept))

    return merge(deltas, parameters, sparsify, elect=elect)
