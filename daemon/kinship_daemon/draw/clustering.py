"""Who stands beside whom in a heat map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

__all__ = ["cluster"]

_Matrix = NDArray[np.float64]


def cluster(matrix: _Matrix, metric: str) -> _Matrix:
    """
    Average linkage over 1 - kinship (or the distance itself), leaves in the optimal order.

    What is not defined counts as farthest. Returns scipy's linkage, (models - 1, 4).
    """
    distances = matrix if metric == "euclidean" else 1 - matrix
    pairs = squareform(distances, checks=False)
    tree: _Matrix = linkage(np.nan_to_num(pairs, nan=2.0), "average", optimal_ordering=True)
    return tree
