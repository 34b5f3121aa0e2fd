"""Isotropic merging (arXiv 2502.04959): all singular values of the merge are the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinship_daemon.weights.methods.method import Parameter, Settings, matrix_method
from kinship_daemon.weights.methods.singular import orthonormal, share, svd

__all__ = ["iso_c", "iso_cts"]

_COMMON = Parameter("common", default=0.8, doc="share of directions taken from the sum, 0 to 1")


@matrix_method(parents=(2, None))
def iso_c(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    mean(s) U V^T, where U diag(s) V^T is the sum of the deltas.

    The mean is over singular values that are more than rounding. The paper's is over all, and its
    directions without a change, which are nobody's choice, get one of that size.
    """
    del parameters
    u, s, v = svd(sum(deltas[1:], start=deltas[0]))
    return u @ v.T * _mean(s)


@matrix_method(_COMMON, parents=(2, None))
def iso_cts(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    mean(s) U' V'^T, where U and V are the sum's largest singular vectors, beside them those that
    each delta has largest outside of these (of (I - U U^T) d_i), in equal number; U' and V' are the
    orthonormal matrices nearest to both.

    min(m, n) directions in all, of which about `common` are the sum's: as many as let the deltas
    have equally many each. As in `iso_c`, singular values that are rounding are left out.
    """
    directions = min(deltas[0].shape)
    common = int(share(parameters, "common") * directions)
    own = min(round((directions - common) / len(deltas)), directions // len(deltas))
    common = directions - own * len(deltas)
    parts = [[each[..., :common] for each in svd(sum(deltas[1:], start=deltas[0]))]]
    span = parts[0][0]
    for delta in deltas if own else ():
        found = svd(delta - span @ (span.T @ delta), float(delta.norm()))
        parts.append([each[..., :own] for each in found])
    u, s, v = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    return orthonormal(u) @ orthonormal(v).T * _mean(s)


def _mean(s: Tensor) -> float:
    return float(s.mean()) if len(s) else 0.0
