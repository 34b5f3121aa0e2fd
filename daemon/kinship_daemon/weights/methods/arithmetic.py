"""
Task arithmetic on sparsified deltas, which all our elementwise methods are:

merged = lambda * sum_i weight_i s(d_i). They differ in s, and in whether a sign is elected per
element. The sums run in place, on floats throughout: torch's comparisons into bools, and what is
done with bools, cost several times as much.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods.blocks import Blocks, buffers_of, in_blocks
from kinship_daemon.weights.methods.method import Parameter, Settings

__all__ = [
    "COMMON",
    "EPSILON",
    "GAMMA",
    "SEED",
    "epsilons",
    "merge",
    "shares",
    "switches",
]

# Those of mergekit that have one default for all methods.
COMMON = (
    Parameter("weight", per_model=True, doc="factor of each model's delta"),
    Parameter("density", per_model=True, default=1.0, doc="share of elements kept, 0 to 1"),
    Parameter("lambda", default=1.0, doc="factor of the merged delta"),
)
GAMMA = Parameter("gamma", per_model=True, default=0.01, doc="share of outliers dropped, 0 to 1")
EPSILON = Parameter(
    "epsilon", per_model=True, default=0.15, doc="how far the probability differs from density"
)
SEED = Parameter("seed", default=0.0, doc="of the random choice; the same seed, the same model")

# mergekit's constants: sums of magnitudes, and of weights, that count as none.
_NO_MASS = 1e-7
_NO_DIVISOR = 1e-8
_SIGN = -(1 << 31)  # of a float32, read as an int32


def switches(*, normalize: bool, rescale: bool) -> tuple[Parameter, Parameter]:
    """The two parameters whose defaults are each method's own."""
    return (
        Parameter("normalize", default=normalize, doc="divide by the sum of the weights"),
        Parameter("rescale", default=rescale, doc="give a delta back its sum of magnitudes"),
    )


def shares(parameters: Settings, name: str) -> list[float]:
    """
    The values of a per-model parameter that is a share.

    Raises:
        UsageError: One is not within 0 to 1.
    """
    values = _per_model(parameters, name)
    for value in values:
        if not 0 <= value <= 1:
            raise UsageError(f"{name} is a share from 0 to 1, not {value:g}")
    return values


def epsilons(parameters: Settings) -> list[float]:
    """
    Each model's `epsilon`.

    Raises:
        UsageError: density - epsilon to density + epsilon is not within 0 to 1; of no matter where
            the density is 0 or 1.
    """
    values = _per_model(parameters, "epsilon")
    for density, value in zip(shares(parameters, "density"), values, strict=True):
        if 0 < density < 1 and not abs(value) < min(density, 1 - density):
            raise UsageError(
                f"epsilon is {value:g}: it has to be below {min(density, 1 - density):g}, so that "
                f"density {density:g} plus or minus it is a probability"
            )
    return values


def merge(
    deltas: Sequence[Tensor],
    parameters: Settings,
    sparsify: Callable[[int, Tensor], None],
    *,
    elect: bool,
) -> Tensor:
    """
    Lambda * sum_i weight_i s(d_i), in the memory of the first delta; the others are spoilt.

    With `rescale` each s(d_i) gets back the sum of magnitudes that d_i had. With `normalize` the
    sum is divided by that of the weights; where a sign is elected, of those that were summed.

    Args:
        sparsify: Zeroes elements of the i-th delta in place; not called where its density is 1.
        elect: Sum per element only those that have the sign of the whole sum.
    """
    density, weights = shares(parameters, "density"), _per_model(parameters, "weight")
    whole = [delta.contiguous() for delta in deltas]
    factors = list(weights)
    for index, delta in enumerate(whole):
        if density[index] < 1:
            before = _mass(delta) if parameters["rescale"] else 0.0
            sparsify(index, delta)
            after = _mass(delta) if parameters["rescale"] else 0.0
            if min(before, after) >= _NO_MASS:
                factors[index] *= before / after
    scale = parameters["lambda"]
    assert isinstance(scale, float)
    flats = [delta.view(-1) for delta in whole]
    if elect:
        _sum_elected(flats, factors, weights if parameters["normalize"] else None, scale)
    else:
        total = sum(weights)
        divided = parameters["normalize"] and abs(total) >= _NO_DIVISOR
        divisor = total if divided else 1.0
        _sum_all(flats, [factor * scale / divisor for factor in factors])
    return whole[0]


def _per_model(parameters: Settings, name: str) -> list[float]:
    """The values of a parameter of which each parent has its own."""
    values = parameters[name]
    assert isinstance(values, list)
    return values


def _mass(delta: Tensor) -> float:
    """Sum of magnitudes; the same bits whatever the number of threads."""
    flat = delta.view(-1)

    def work(blocks: Blocks) -> list[float]:
        buffer = buffers_of(flat, 1)[0]
        magnitudes = (torch.abs(flat[b], out=buffer[: b.stop - b.start]) for b in blocks)
        return [float(block.sum(dtype=torch.float64)) for block in magnitudes]

    return math.fsum(chain.from_iterable(in_blocks(work, flat)))


def _sum_all(flats: Sequence[Tensor], factors: Sequence[float]) -> None:
    """sum_i factors_i flats_i, into the first."""

    def work(blocks: Blocks) -> None:
        for block in blocks:
            total = flats[0][block].mul_(factors[0])
            for flat, factor in zip(flats[1:], factors[1:], strict=True):
                total.add_(flat[block], alpha=factor)

    in_blocks(work, flats[0])


def _sum_elected(
    flats: Sequence[Tensor], factors: Sequence[float], weights: Sequence[float] | None, scale: float
) -> None:
    """
    Per element, scale * sum of those factors_i flats_i that have the sign of the whole sum, into
    the first; divided by the sum of their weights, where weights are given.

    A whole sum of 0 counts as positive; an element of 0 has no sign.
    """

    def work(blocks: Blocks) -> None:
        buffers = buffers_of(flats[0], 3)
        for block in blocks:
            sign, divisor, spare = buffers[:, : block.stop - block.start]
            parts = [flat[block].mul_(f) for flat, f in zip(flats, factors, strict=True)]
            _elect(parts, sign)
            if weights is not None:
                _sum_weights(parts, weights, divisor, spare)
            total = parts[0]
            for part in parts[1:]:
                total.add_(part)
            if weights is not None:
                total.div_(divisor)
            if scale != 1:
                total.mul_(scale)
            _flip(total, sign)

    in_blocks(work, flats[0])


def _elect(parts: Sequence[Tensor], sign: Tensor) -> None:
    """Leave the magnitudes of the elements that have the sum's sign, and zeros elsewhere."""
    sign.copy_(parts[0])
    for part in parts[1:]:
        sign.add_(part)
    # A sum of -0.0 needs no care: nothing but zeros sums to it.
    sign.view(torch.int32).bitwise_and_(_SIGN)
    for part in parts:
        _flip(part, sign)
        part.clamp_min_(0)


def _flip(part: Tensor, sign: Tensor) -> None:
    """Negate where `sign` is -0.0; elsewhere it is 0.0."""
    part.view(torch.int32).bitwise_xor_(sign.view(torch.int32))


def _sum_weights(
    parts: Sequence[Tensor], weights: Sequence[float], divisor: Tensor, spare: Tensor
) -> None:
    """Per element the sum of the weights of those parts that are above 0; 1 where it is none."""
    torch.gt(parts[0], 0, out=divisor).mul_(weights[0])
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        divisor.add_(torch.gt(part, 0, out=spare), alpha=weight)
    torch.abs(divisor, out=spare)
    divisor.add_(torch.lt(spare, _NO_DIVISOR, out=spare))
