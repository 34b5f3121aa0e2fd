"""Fine-tunes in a plane, the near ones alike: from compact samples, so also who only waits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kinship_daemon.weights.sample.sketch import folded

__all__ = ["places"]


def places(vectors: Sequence[bytes]) -> tuple[NDArray[np.float64], float]:
    """
    The two directions in which weight changes of one length differ most (classical scaling).

    With all the directions, the square of a distance would be 2 (1 - cosine).

    Args:
        vectors: Of one plan; fewer than three have no plane.

    Returns:
        (vectors, 2), NaN for a model that does not differ from the base; and the share of all
        squared distances that the plane shows, in [0, 1].

    Raises:
        KinshipError: A vector is damaged, or of another plan than the first.
    """
    if len(vectors) < 3:
        return np.full((len(vectors), 2), np.nan), 0.0
    cells, _ = folded(vectors)  # the lengths do not matter
    flat = cells.flatten(1)
    lengths = torch.linalg.vector_norm(flat, dim=1)
    moved = lengths > 0
    units = flat[moved] / lengths[moved, None]
    found = np.full((len(vectors), 2), np.nan)
    if len(units) < 3:
        return found, 0.0
    products = (units @ units.T).double().numpy()
    centred = products - products.mean(0) - products.mean(1)[:, None] + products.mean()
    values, directions = np.linalg.eigh(centred)
    plane = directions[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0.0))
    # A direction has no sign of its own: the farthest is on its positive side.
    farthest = np.abs(plane).argmax(0)
    plane *= np.where(plane[farthest, [0, 1]] < 0, -1.0, 1.0)
    found[moved.numpy()] = plane
    whole = float(np.maximum(values, 0.0).sum())
    return found, float(values[:-3:-1].sum()) / whole if whole > 0 else 0.0
