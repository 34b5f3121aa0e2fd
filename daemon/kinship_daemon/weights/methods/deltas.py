"""Inner products of deltas from those of full weights, and factors over deltas as over weights."""

import torch
from torch import Tensor

__all__ = ["delta_dots", "over_weights"]

# Of float64 inner products, ample: a delta below 1e-7 of its tensor drowns in their rounding. One
# bf16 step of a single weight in a hundred million is 2e-7.
_ROUNDING = 1e-14


def delta_dots(dots: Tensor) -> Tensor:
    """
    Inner products of {w_1 - b .. w_p - b}.

    A delta that is nothing but rounding counts as zero, so that the tensors that a fine-tune never
    touched get no direction from noise.

    Args:
        dots: Of the full weights {b, w_1 .. w_p}, (T, p+1, p+1) float64.

    Returns:
        (T, p, p) float64.
    """
    of_base, cross = dots[:, :1, :1], dots[:, 1:, :1]
    inner = dots[:, 1:, 1:] - cross - cross.transpose(1, 2) + of_base
    diagonal = dots.diagonal(dim1=1, dim2=2)
    squares = inner.diagonal(dim1=1, dim2=2)
    none = squares <= _ROUNDING * (diagonal[:, 1:] + diagonal[:, :1])
    return torch.where(none[:, :, None] | none[:, None, :], 0.0, inner)


def over_weights(factors: Tensor) -> Tensor:
    """Factors over {b, w_1 .. w_p}, (T, p+1), of b + sum_i factors_i (w_i - b), (T, p)."""
    return torch.cat([1 - factors.sum(1, keepdim=True), factors], 1)
