"""TSV-Merge (arXiv 2412.00081): each task's largest singular vectors, kept apart from others'."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinship_daemon.weights.methods.method import Settings, matrix_method
from kinship_daemon.weights.methods.singular import orthonormal, svd

__all__ = ["tsv"]


@matrix_method(parents=(1, None))
def tsv(deltas: Sequence[Tensor], parameters: Settings) -> Tensor:
    """
    U' diag(s) V'^T: of each of p deltas the min(m, n) / p largest singular values with their
    vectors, side by side; U' and V' are the orthonormal matrices nearest to U and V.

    Singular values that are rounding are left out; the paper takes vectors for them, too, which are
    nobody's choice, and turns the others away from them.
    """
    del parameters
    kept = max(1, min(deltas[0].shape) // len(deltas))
    parts = [[each[..., :kept] for each in svd(delta)] for delta in deltas]
    u, s, v = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    return orthonormal(u) * s.float() @ orthonormal(v).T
