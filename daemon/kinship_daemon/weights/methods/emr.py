"""The unified model of EMR-Merging (arXiv 2405.17461): per element, the largest change elected."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinship_daemon.weights.methods.blocks import Blocks, buffers_of, in_blocks
from kinship_daemon.weights.methods.method import Draw, Settings, elementwise_method

__all__ = ["emr"]


@elementwise_method(parents=(1, None))
def emr(deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
    """
    Per element the delta of largest magnitude among those that have the sign of the sum.

    Every element of the child is thus some parent's own. A sum of 0 counts as negative, as in the
    authors' code. The masks and scales that make each parent of it again: `kinship-daemon pack`.
    """
    del parameters, draw
    flat = [delta.view(-1) for delta in deltas]

    def work(blocks: Blocks) -> None:
        total, largest = buffers_of(flat[0], 2)
        for block in blocks:
            parts = [delta[block] for delta in flat]
            sign = total[: len(parts[0])].copy_(parts[0])
            for part in parts[1:]:
                sign.add_(part)
            sign.copy_((sign > 0).to(sign.dtype).mul_(2).sub_(1))
            found = largest[: len(sign)].zero_()
            for part in parts:
                torch.maximum(found, part * sign, out=found)
            parts[0].copy_(found.mul_(sign))

    in_blocks(work, flat[0])
    return deltas[0]
