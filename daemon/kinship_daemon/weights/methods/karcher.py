"""The direction nearest to all parents' (Karcher mean), by mergekit's iteration."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kinship_daemon.weights.methods.method import Parameter, span_method

__all__ = ["karcher"]

# The smallest angle that float64 inner products can tell from none.
_LEAST_ANGLE = 1e-7


@span_method(
    Parameter("max_iter", default=10, doc="steps at most; 0 for the normalized mean"),
    Parameter("tol", default=1e-5, doc="norms and angles up to this count as zero"),
    parents=(1, None),
)
def karcher(dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """
    The Karcher mean of the directions w_i/|w_i|, as long as the mean of the |w_i|.

    From the normalized mean m of the directions u_i, steps along mean_i θ_i/sinθ_i (u_i - cosθ_i m)
    by its own length as an angle, until that is below `tol`. Everything happens in coefficients
    over the parents. (arXiv 2603.04972 is the paper that mergekit names.)

    As in mergekit all parents weigh the same; its `base_model` is one more of them. Parents whose
    norm is at most `tol` have no direction, though they count for the length; where none has one,
    the child is zero. Directions whose mean is shorter than `tol` start at the first. Unlike there,
    a direction opposite to m is not followed (there is no one way to it), and `tol` is at
    least 1e-7. A single parent is itself.
    """
    tol = parameters["tol"].clamp_min(_LEAST_ANGLE)[:, None]
    norms = dots.diagonal(dim1=1, dim2=2)[:, 1:].clamp_min(0).sqrt()
    if norms.shape[1] == 1:
        return torch.ones(len(dots), 2, dtype=torch.float64) * torch.tensor([0.0, 1.0])
    valid = norms > tol
    inverse = torch.where(valid, 1 / torch.where(valid, norms, 1.0), 0.0)
    units = inverse[:, :, None] * dots[:, 1:, 1:] * inverse[:, None, :]
    mean = _karcher(units, valid, parameters["max_iter"][:, None], tol)
    factors = norms.mean(1, keepdim=True) * mean * inverse
    return torch.cat([torch.zeros_like(norms[:, :1]), factors], 1)


def _karcher(units: Tensor, valid: Tensor, max_iter: Tensor, tol: Tensor) -> Tensor:
    """
    The mean's coefficients over the directions, (T, p).

    Args:
        units: Inner products of the directions, (T, p, p); 0 where there is none.
        valid: Which have one, (T, p) bool.
        max_iter: (T, 1).
        tol: (T, 1).
    """
    share = valid.double() / valid.sum(1, keepdim=True).clamp_min(1)
    mean = _start(units, valid, share, tol)
    moving = torch.ones_like(valid[:, :1])
    for step in range(int(max_iter.max())):
        tangent = _tangent(units, share, mean, tol)
        angle = _length(units, tangent)
        moving = moving & (step < max_iter) & (angle >= tol)
        if not bool(moving.any()):
            break
        moved = angle.cos() * mean + angle.sin() / torch.where(moving, angle, 1.0) * tangent
        mean = torch.where(moving, _normalized(units, moved), mean)
    return mean


def _start(units: Tensor, valid: Tensor, share: Tensor, tol: Tensor) -> Tensor:
    first = valid & (valid.cumsum(1) == 1)
    balanced = _length(units, share) < tol
    return torch.where(balanced, first.double(), _normalized(units, share))


def _tangent(units: Tensor, share: Tensor, mean: Tensor, tol: Tensor) -> Tensor:
    """The mean of the ways from `mean` to the directions, in coefficients over these."""
    cos = (units @ mean[:, :, None])[:, :, 0].clamp(-1, 1)
    theta = cos.acos()
    followed = (theta >= tol) & (torch.pi - theta >= tol)
    speed = torch.where(followed, share * theta / torch.where(followed, theta.sin(), 1.0), 0.0)
    return speed - (speed * cos).sum(1, keepdim=True) * mean


def _length(units: Tensor, coefficients: Tensor) -> Tensor:
    square = coefficients[:, None, :] @ units @ coefficients[:, :, None]
    return square[:, 0].clamp_min(0).sqrt()


def _normalized(units: Tensor, coefficients: Tensor) -> Tensor:
    length = _length(units, coefficients)
    return coefficients / torch.where(length > 0, length, 1.0)
