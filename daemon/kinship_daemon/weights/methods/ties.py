"""TIES (arXiv 2306.01708): trim small changes, elect a sign per element, average who agree."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.arithmetic import COMMON, merge, shares, switches
from kinship_daemon.weights.methods.method import Draw, Settings, elementwise_method
from kinship_daemon.weights.methods.sparse import keep_largest

__all__ = ["ties"]


@elementwise_method(
    *COMMON,
    *switches(normalize=True, rescale=False),
    parents=(1, None),
)
def ties(deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
    """
    Of each delta the `density` largest elements stay; per element those are averaged, by weight,
    whose sign is that of the weighted sum.

    At least one element stays where density is above 0. mergekit leaves open which of several
    equal magnitudes at the threshold stay; here the first in order do.
    """
    del draw
    density = shares(parameters, "density")

    def sparsify(index: int, delta: Tensor) -> None:
        share = density[index]
        keep_largest(delta, max(1, int(share * delta.numel())) if share > 0 else 0)

    return merge(deltas, parameters, sparsify, elect=True)
