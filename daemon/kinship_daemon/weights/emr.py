"""
EMR-Merging (arXiv 2405.17461): many fine-tunes as one model, and of each a mask and a number.

The unified model u has per element the largest of the changes that have the sign of their sum
(`methods/emr.py`). Fine-tune i is then b + scale_i mask_i (u - b): where its change has u's sign,
u's change, else none, and all as long as its own, sum |d_i| over the sum of what the mask leaves.
A pack is a folder: the unified model, masks of one bit an element, and what they belong to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kinship_daemon.durable import whole_folder
from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.weights.assembly import Assembly, Sources, leaf_assembly
from kinship_daemon.weights.materialise import write
from kinship_daemon.weights.recipe import Recipe
from kinship_daemon.weights.whole_tensor import whole_tensor_assembly

__all__ = ["PackedModel", "pack", "packed_model", "packed_names"]

_UNIFIED, _TASKS = "unified", "tasks.json"
_CPU = torch.device("cpu")
_BITS = 2 ** torch.arange(8, dtype=torch.uint8)


class _Task(msgspec.Struct, frozen=True):
    """One fine-tune of a pack: its name, the factor of its masked change, its mask's file."""

    name: str
    scale: float
    mask: Annotated[str, msgspec.Meta(pattern=r"^mask-\d+\.safetensors$")]


def pack(
    base: Path,
    models: Sequence[tuple[str, Path]],
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> None:
    """
    Write the pack of some fine-tunes, adapters among them; it appears when it is whole.

    In memory is one mask, an eighth of a byte for each number of a model.

    Args:
        models: Each by its name and folder.
        progress: Told of bytes of the unified model as they are written.

    Raises:
        UsageError: Two have one name, or one has tokens that the base lacks or numbers otherwise.
        ModelError: A checkpoint cannot be read, or holds NaN.
    """
    names = [name for name, _ in models]
    if len(set(names)) < len(names):
        raise UsageError("two of the models have one name; name each once")
    parents = [leaf_assembly(folder, name, base) for name, folder in models]
    tensors = tuple(name for name, _ in leaf_assembly(base, "base").coefficients)
    recipe = Recipe("emr", tuple(names), {})
    whole = whole_tensor_assembly(recipe, parents, tensors, base, "emr", base)
    if whole.open().union is not None:
        raise UsageError("models with tokens of their own cannot be packed; merge them instead")
    with whole_folder(out) as folder:
        write(whole, folder / _UNIFIED, progress=progress, without_tokenizer=True)
        tasks = []
        for number, parent in enumerate(parents):
            masks, scale = _masks(base, folder / _UNIFIED, parent)
            tasks.append(_Task(names[number], scale, f"mask-{number}.safetensors"))
            save_file(masks, folder / tasks[-1].mask)
        (folder / _TASKS).write_bytes(msgspec.json.format(msgspec.json.encode(tasks)))


def _masks(base: Path, unified: Path, parent: Assembly) -> tuple[dict[str, Tensor], float]:
    """A fine-tune's masks, packed, by tensor, and its scale."""
    foundation, whole, own = (
        each.open() for each in (leaf_assembly(base, ""), leaf_assembly(unified, ""), parent)
    )
    masks, length, left = {}, 0.0, 0.0
    for info in foundation.tensors:
        parts = []
        each = (s.blocks(info.name, torch.float32, _CPU) for s in (foundation, whole, own))
        for before, after, of_model in zip(*each, strict=True):
            change, delta = after - before, of_model - before
            mask = change * delta > 0
            length += float(delta.abs().sum(dtype=torch.float64))
            left += float(change[mask].abs().sum(dtype=torch.float64))
            parts.append(mask)
        masks[info.name] = _packed(torch.cat(parts)) if parts else torch.empty(0, dtype=torch.uint8)
    return masks, length / left if left else 0.0


def packed_names(folder: Path) -> list[str]:
    """
    The fine-tunes of a pack.

    Raises:
        UsageError: It is none.
    """
    return [task.name for task in _tasks(folder)]


def packed_model(folder: Path, name: str, base: Path) -> "PackedModel":
    """
    A fine-tune of a pack, to be written or loaded as any other model.

    Raises:
        UsageError: There is no such pack, or it has no fine-tune of that name.
    """
    tasks = {task.name: task for task in _tasks(folder)}
    if name not in tasks:
        raise UsageError(f"{folder} has no {name}; there are {', '.join(tasks)}")
    task = tasks[name]
    return PackedModel(name, base, folder / _UNIFIED, folder / task.mask, task.scale)


def _tasks(folder: Path) -> list[_Task]:
    try:
        return msgspec.json.decode((folder / _TASKS).read_bytes(), type=list[_Task])
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{folder} is no pack: {error}") from None


@dataclass(frozen=True)
class PackedModel:
    """
    One fine-tune of a pack: b + scale mask (u - b). Makeable (see `Makeable`).

    Attributes:
        donor: Folder of the unified model, whose tokenizer is the base's.
        mask: Its file.
    """

    identity: str
    base: Path
    donor: Path
    mask: Path
    scale: float

    @property
    def config_base(self) -> Path:
        return self.base

    def open(self) -> "_PackedSources":
        """
        Open base, unified model and mask; headers only.

        Raises:
            ModelError: One cannot be read, or they do not fit.
        """
        return _PackedSources(self)


class _PackedSources(Sources):
    """The base's tensors with a mask over their change to the unified model's."""

    def __init__(self, packed: PackedModel) -> None:
        super().__init__(leaf_assembly(packed.base, packed.identity))
        self._unified = leaf_assembly(packed.donor, packed.identity, packed.base).open()
        self._mask, self._scale = packed.mask, packed.scale

    def blocks(self, name: str, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
        """One tensor of the result, flat, block after block; fp32, rounded to `dtype` once."""
        elements, begin = self.base.tensors[name].elements, 0
        try:
            with safe_open(self._mask, framework="pt") as file:
                mask = _unpacked(file.get_tensor(name), elements)
        except Exception as error:  # safetensors raises all kinds
            raise ModelError(f"{self._mask}: no mask of {name} can be read: {error}") from error
        own = super().blocks(name, torch.float32, device)
        whole = self._unified.blocks(name, torch.float32, device)
        for before, after in zip(own, whole, strict=True):
            end = begin + len(before)
            change = (after - before).mul_(self._scale).mul_(mask[begin:end].to(device))
            yield before.add(change).to(dtype)
            begin = end


def _packed(mask: Tensor) -> Tensor:
    """Eight elements a byte, the first the lowest bit; uint8."""
    bits = torch.zeros(-(-len(mask) // 8) * 8, dtype=torch.uint8)
    bits[: len(mask)] = mask
    return (bits.view(-1, 8) * _BITS).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, elements: int) -> Tensor:
    """Bool, (elements,)."""
    if packed.dtype != torch.uint8 or packed.shape != (-(-elements // 8),):
        raise ValueError(f"it has not one bit for each of {elements} elements")
    return packed[:, None].bitwise_and(_BITS).ne(0).view(-1)[:elements]
