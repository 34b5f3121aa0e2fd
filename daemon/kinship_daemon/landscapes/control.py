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
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["CONTROLS", "Control", "write_control"]

Control = Literal["random", "rotated"]
CONTROLS: tuple[Control, ...] = ("random", "rotated")

_WEIGHTS = "model.safetensors"


def write_control(control: Control, base: Path, folder: Path, target: Path) -> None:
    """
    A copy of a fine-tune with deltas that know of no task.

    Args:
        base, folder: Of one file `model.safetensors` each, with the same tensors.
    """
    shutil.copytree(folder, target)
    before, after = load_file(base / _WEIGHTS), load_file(folder / _WEIGHTS)
    changed = {}
    for name, weights in sorted(after.items()):
        start = before[name].float()
        delta = weights.float() - start
        # One rotation for all fine-tunes, but a draw for each.
        chance = _chance(name if control == "rotated" else f"{folder.name} {name}")
        other = _rotated(delta, chance) if control == "rotated" else _random(delta, chance)
        changed[name] = (start + other).to(weights.dtype).contiguous()
    save_file(changed, target / _WEIGHTS, metadata={"format": "pt"})


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
