"""
Right-multiplied merges in closed form: X that keeps what each parent does to its own inputs.

With the uncentred covariance G_i of the inputs that parent i was trained on, sum_i |X x - d_i x|^2
over those inputs is least where X sum_i G_i = sum_i d_i G_i (RegMean, arXiv 2212.09849). Without
data, the rows of d_i stand for the inputs: G_i = scale_i d_i^T d_i. The methods differ in that.

A ridge goes to every G_i alike, so that it draws X to the plain mean of the deltas, not to zero:
one parent is exactly itself, and so is what all agree on.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods.method import Parameter, Settings

__all__ = ["RIDGE", "solve", "solve_inputs", "squared"]

# Below, float32 cannot tell rounding from what a delta of low rank leaves empty.
_LEAST_RIDGE = 1e-6
RIDGE = Parameter(
    "ridge", default=0.01, doc="added to each G_i, of its mean eigenvalue; more is nearer the mean"
)
# How often the ridge is raised tenfold before it is as if it were endless.
_TRIES = 6
# Columns of a symmetric product are made in so many runs, and what lies above copied from below.
_RUNS = 4


def solve(
    deltas: Sequence[Tensor],
    scales: Sequence[float],
    parameters: Settings,
    *,
    centred: bool = False,
) -> Tensor:
    """
    The X with X sum_i (G_i + r I) = sum_i d_i (G_i + r I) and G_i = scale_i s_i^T s_i.

    s_i is d_i, or with `centred` d_i less the mean of its rows. r is `ridge` times the mean
    eigenvalue of the G_i; where float32 cannot factor the sum all the same, ten times as much, and
    so on; in the end X is the mean, as for deltas whose squares float32 cannot hold.

    All in float32, without TF32. Of p parents the smaller of two equal systems is solved: of the n
    inputs, or of the p m rows.

    Args:
        deltas: Matrices (m, n).
        scales: Of each G_i; 0 leaves a parent out of the sums.

    Raises:
        UsageError: The ridge is too small.
    """
    ridge = _ridge(parameters)
    if len(deltas) == 1:
        return deltas[0]
    sources = [delta - delta.mean(0) for delta in deltas] if centred else list(deltas)
    rows, columns = deltas[0].shape
    traces = [scale * squared(source) for scale, source in zip(scales, sources, strict=True)]
    shift = ridge * sum(traces) / (len(deltas) * columns)
    if len(deltas) * rows < columns:
        return _tried(deltas, shift, lambda r: _over_rows(deltas, sources, scales, r))

    def gram(i: int) -> Tensor:
        return _gram(sources[i]).mul_(scales[i])

    return _tried(deltas, shift, lambda r: _over_inputs(deltas, gram, r))


def solve_inputs(
    deltas: Sequence[Tensor], gram: Callable[[int], Tensor], trace: float, parameters: Settings
) -> Tensor:
    """
    The X with X sum_i (G_i + r I) = sum_i d_i (G_i + r I) of given G_i; see `solve`.

    Args:
        deltas: Matrices (m, n).
        gram: G_i of the i-th, (n, n) float32, each time a new one.
        trace: Of all G_i, their sum.

    Raises:
        UsageError: The ridge is too small.
    """
    shift = _ridge(parameters) * trace / (len(deltas) * deltas[0].shape[1])
    if len(deltas) == 1:
        return deltas[0]
    return _tried(deltas, shift, lambda r: _over_inputs(deltas, gram, r))


def _ridge(parameters: Settings) -> float:
    ridge = parameters["ridge"]
    assert isinstance(ridge, float)
    if not ridge >= _LEAST_RIDGE:
        raise UsageError(f"ridge is {ridge:g}: it has to be {_LEAST_RIDGE:g} or more")
    return ridge


def _tried(deltas: Sequence[Tensor], shift: float, way: Callable[[float], Tensor | None]) -> Tensor:
    """What a way finds with this ridge, or with a larger one; in the end the mean."""
    for _ in range(_TRIES if shift else 0):
        found = way(shift)
        if found is not None:
            return found
        shift *= 10
    return _mean(deltas)


def squared(matrix: Tensor) -> float:
    """The sum of its squares, in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _over_inputs(
    deltas: Sequence[Tensor], gram: Callable[[int], Tensor], shift: float
) -> Tensor | None:
    """
    X = d_p + sum_i (d_i - d_p) (G_i + r I) A^-1, A = sum_i (G_i + r I), an (n, n) system.

    One product less than with the mean for d_p, and only one G_i in memory at a time.
    """
    last = deltas[-1]
    system = gram(len(deltas) - 1)
    system.diagonal().add_(shift)
    if len(deltas) == 2 and len(last) > len(system):
        # (n, n) unknowns instead of (m, n): what (G_1 + r I) A^-1 is.
        first = gram(0)
        first.diagonal().add_(shift)
        share = _solved(system.add_(first), first)
        return None if share is None else last + (deltas[0] - last) @ share.T
    right = torch.zeros_like(last)
    for i, delta in enumerate(deltas[:-1]):
        own = gram(i)
        own.diagonal().add_(shift)
        system.add_(own)
        right.addmm_(delta - last, own)
    found = _solved(system, right.T)
    return None if found is None else found.T.add_(last)


def _over_rows(
    deltas: Sequence[Tensor], sources: Sequence[Tensor], scales: Sequence[float], shift: float
) -> Tensor | None:
    """
    X = mean + N (S S^T + p r I)^-1 S, S the p sqrt(scale_i) s_i stacked, a (p m, p m) system.

    N has the blocks (d_i - mean) s_i^T sqrt(scale_i), which are in S S^T but for the rows' means.
    """
    count, (rows, _) = len(deltas), deltas[0].shape
    mean = _mean(deltas)
    system = mean.new_empty(count * rows, count * rows)
    left = mean.new_empty(rows, count * rows)
    places = [slice(i * rows, (i + 1) * rows) for i in range(count)]
    roots = [scale**0.5 for scale in scales]
    for i, own in enumerate(places):
        system[own, own] = _gram(sources[i].T)
        for source, there in zip(sources[:i], places, strict=False):
            system[own, there] = sources[i] @ source.T
            system[there, own] = system[own, there].T
    for i, own in enumerate(places):
        block = left[:, own].copy_(system[own, own])
        for other in places:
            block.sub_(system[other, own], alpha=1 / count)
        if sources[i] is not deltas[i]:
            # d_i is s_i plus the mean of its rows; theirs has no part in S S^T.
            off = deltas[i][0] - sources[i][0] - (mean - _mean(sources))[0]
            block.add_(off @ sources[i].T)
    for root, own in zip(roots, places, strict=True):
        left[:, own] *= root
        system[own] *= root
        system[:, own] *= root
    system.diagonal().add_(count * shift)
    factors = _solved(system, left.T)
    if factors is None:
        return None
    for root, source, own in zip(roots, sources, places, strict=True):
        mean.addmm_(factors[own].T, source, alpha=root)
    return mean


def _solved(system: Tensor, right: Tensor) -> Tensor | None:
    """System^-1 right, of a symmetric system; None where float32 cannot factor it."""
    factor, failed = torch.linalg.cholesky_ex(system)
    return None if int(failed) else torch.cholesky_solve(right, factor)


def _gram(matrix: Tensor) -> Tensor:
    """M^T M, (n, n)."""
    columns = matrix.shape[1]
    gram = matrix.new_empty(columns, columns)
    step = max(-(-columns // _RUNS), 128)
    for begin in range(0, columns, step):
        end = begin + step
        gram[begin:, begin:end] = matrix[:, begin:].T @ matrix[:, begin:end]
        gram[begin:end, end:] = gram[end:, begin:end].T
    return gram


def _mean(deltas: Sequence[Tensor]) -> Tensor:
    return sum(deltas[1:], start=deltas[0]) / len(deltas)
