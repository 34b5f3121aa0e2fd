"""
Inner products of low-rank deltas `up @ down`, which are never multiplied out.

With D dense, <D, UV> = sum(U * (D Vᵀ)), and <UV, XY> = sum((UᵀX) * (V Yᵀ)).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinship_daemon.weights.descendant import LowRank

__all__ = ["low_rank_products"]

# Elements of a dense matrix that are worked on at a time, 1 MB in fp32.
_BLOCK = 1 << 18


def low_rank_products(dense: Sequence[Tensor], low: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """
    Inner products that touch a low-rank delta of one matrix.

    Args:
        dense: Flat, of the base and the dense leaves, which are taken as deltas from the base.
        low: The low-rank deltas, (rows, columns) each.

    Returns:
        (2 + leaves, low) float64 of the rows {ones, b, dense deltas} with the low-rank ones, and
        (low, low) float64 of those with each other.
    """
    columns = low[0].down.shape[1]
    ups = [delta.up.double() for delta in low]
    downs = [delta.down.double() for delta in low]
    frame = torch.zeros(1 + len(dense), len(low), dtype=torch.float64)
    frame[0] = torch.stack([up.sum(0) @ down.sum(1) for up, down in zip(ups, downs, strict=True)])
    height = max(1, _BLOCK // columns)
    for begin in range(0, dense[0].numel(), height * columns):
        rows = [flat[begin : begin + height * columns].view(-1, columns) for flat in dense]
        base = rows[0] if rows[0].dtype == torch.float64 else rows[0].float()
        for place, row in enumerate(rows):
            delta = (base if place == 0 else row - base).float()
            first = begin // columns
            for index, up in enumerate(ups):
                # Each for itself: the bits of a product must not depend on the other rows.
                part = (delta @ low[index].down.T).double()
                if not bool(part.isfinite().all()):  # sums that float32 cannot hold
                    part = delta.double() @ downs[index].T
                frame[1 + place, index] += (up[first : first + len(part)] * part).sum()
    own = [
        ((ups[i].T @ ups[j]) * (downs[i] @ downs[j].T)).sum()
        for i in range(len(low))
        for j in range(len(low))
    ]
    return frame, torch.stack(own).view(len(low), len(low))
