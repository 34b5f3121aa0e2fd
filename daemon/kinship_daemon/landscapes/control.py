"""
Fine-tunes that learnt nothing: what a merge of them gains is averaging, not skill.

`random` draws every tensor's delta anew, with the same length. `rotated` puts every tensor's delta
through one permutation with random signs, the same for all fine-tunes: lengths and inner products
stay, what was learnt is gone.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from kinship_daemon.model_files import SINGLE
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import LowRank, descend

__all__ = ["CONTROLS", "Control", "write_control"]

Control = Literal["random", "rotated"]
CONTROLS: tuple[Control, ...] = ("random", "rotated")


def write_control(control: Control, base: Path, folder: Path, target: Path) -> None:
    """
    A copy of the base with a fine-tune's deltas, after they forgot all tasks.

    Args:
        base: Of one file `model.safetensors`.
        folder: A fine-tune or an adapter of it.
    """
    opened = Checkpoint.open(base)
    leaf = descend(opened, folder)
    changed = {}
    for name in opened.tensors:
        before, own = opened.tensor(name), leaf.content(name)
        if isinstance(own, LowRank):
            delta = own.up @ own.down
        else:
            delta = torch.zeros(before.shape) if own is None else own.float() - before.float()
        # One rotation for all fine-tunes, but a draw for each.
        chance = _chance(name if control == "rotated" else f"{folder.name} {name}")
        other = _rotated(delta, chance) if control == "rotated" else _random(delta, chance)
        changed[name] = (before.float() + other).to(before.dtype).contiguous()
    shutil.copytree(base, target, dirs_exist_ok=True)
    save_file(changed, target / SINGLE, metadata={"format": "pt"})


def _random(delta: Tensor, chance: torch.Generator) -> Tensor:
    drawn = torch.randn(delta.shape, generator=chance)
    drawn *= delta.norm() / drawn.norm()
    return drawn


def _rotated(delta: Tensor, chance: torch.Generator) -> Tensor:
    order = torch.randperm(delta.numel(), generator=chance)
    signs = torch.randint(0, 2, (delta.numel(),), generator=chance) * 2 - 1
    return (delta.flatten()[order] * signs).reshape(delta.shape)


def _chance(name: str) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    return torch.Generator().manual_seed(seed)
