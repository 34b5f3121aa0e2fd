"""Singular values of deltas, for the methods that merge by them."""

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods.method import Settings

__all__ = ["STEP", "orthonormal", "share", "svd"]

# The step of float32 at 1, which deltas are in: numpy's measure of what is rounding.
STEP = 2.0**-23


def svd(matrix: Tensor, size: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """
    U, s, V with M = U diag(s) V^T, of those singular values that are more than rounding.

    Singular vectors beyond the rank are nobody's choice, so they are left out: k is the rank, which
    is 0 for zeros. From the eigenvectors of the smaller of M^T M and M M^T in float64, in which
    singular values down to 1e-8 of the largest are told; a float32 SVD takes several times as long.

    Args:
        size: Of what the matrix is a difference of, whose rounding is in it, too.

    Returns:
        (m, k) float32, (k,) float64 descending, (n, k) float32.
    """
    rows, columns = matrix.shape
    if rows < columns:
        v, s, u = svd(matrix.T, size)
        return u, s, v
    exact = matrix.double()
    squares, vectors = torch.linalg.eigh(exact.T @ exact)
    s = squares.clamp_min(0).sqrt().flip(0)
    rank = int((s > s[:1].clamp_min(size) * rows * STEP).sum())
    v = vectors.flip(1)[:, :rank]
    return (exact @ v / s[:rank]).float(), s[:rank], v.float()


def orthonormal(vectors: Tensor) -> Tensor:
    """
    The orthonormal columns nearest to these, (n, k) (Procrustes), as a task's singular vectors need
    to be beside those of others. Columns that depend on each other share what they span.
    """
    u, _, v = svd(vectors)
    return u @ v.T


def share(parameters: Settings, name: str) -> float:
    """
    The value of a parameter that is a share.

    Raises:
        UsageError: It is not within 0 to 1.
    """
    value = parameters[name]
    assert isinstance(value, float)
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is a share from 0 to 1, not {value:g}")
    return value
