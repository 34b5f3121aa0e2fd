"""DARE (arXiv 2311.03099): drop changes at random, rescale the rest, add them up."""

from collections.abc import Sequence

from torch import Tensor

from kinship_daemon.weights.methods.arithmetic import (
    COMMON,
    SEED,
    Settings,
    merge,
    shares,
    switches,
)
from kinship_daemon.weights.methods.method import Draw, elementwise_method
from kinship_daemon.weights.methods.sparse import keep_random

__all__ = ["dare_linear"]


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
    density = shares(parameters, "density")

    def sparsify(index: int, delta: Tensor) -> None:
        keep_random(delta, density[index], draw(index))

    return merge(deltas, parameters, sparsify, elect=False)
