"""
How the child of an elementwise merge is made: tensor by tensor, each whole in memory.

Unlike a span merge's, such a child is no combination of leaves, so it is made from its parents'
weights, whatever they are made from, and then is a leaf of its own.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.weights.assembly import Assembly, Sources
from kinship_daemon.weights.checkpoint import TensorInfo
from kinship_daemon.weights.methods.method import Draw, ElementwiseMethod
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe, resolve

__all__ = ["ElementwiseAssembly", "ElementwiseSources", "Settings", "elementwise_assembly"]

# One tensor's parameters by name; a list where each parent has its own.
Settings = Mapping[str, float | bool | list[float]]


@dataclass(frozen=True)
class ElementwiseAssembly:
    """
    Where an elementwise child's weights come from; picklable, and small.

    Attributes:
        identity: Weights identity of the recipe.
        base: Folder of the base; names the tensors and their shapes.
        parents: In the order of the recipe; descendants of the base.
        method: Name of an installed elementwise method.
        parameters: The method's parameters by tensor name; names all tensors of the child.
        donor: Folder whose config, tokenizer, generation config and chat template go along.
    """

    identity: str
    base: Path
    parents: tuple[Assembly, ...]
    method: str
    parameters: Mapping[str, Settings] = field(repr=False)
    donor: Path

    def open(self) -> "ElementwiseSources":
        """
        Open base and parents; headers only.

        Raises:
            ModelError: A checkpoint cannot be read, or does not fit the base.
        """
        return ElementwiseSources(self)


def elementwise_assembly(
    recipe: Recipe,
    parents: Sequence[Assembly],
    names: Sequence[str],
    base: Path,
    identity: str,
    donor: Path,
) -> ElementwiseAssembly:
    """
    The assembly of an elementwise recipe; no weight is read.

    `parents` are in the order of the recipe's; `names` are all tensors of the base.

    Raises:
        UsageError: The method, a parameter or the number of parents is wrong.
    """
    merge, resolved = resolve(recipe, names)
    if not isinstance(merge, ElementwiseMethod):
        raise UsageError(f"{recipe.method} is no elementwise method; its children are combined")
    if len(parents) != len(recipe.parents):
        raise UsageError(f"a recipe of {len(recipe.parents)} parents was given {len(parents)}")
    columns = {parameter: values.tolist() for parameter, values in resolved.items()}
    settings: dict[str, Settings] = {
        name: {parameter: values[row] for parameter, values in columns.items()}
        for row, name in enumerate(names)
    }
    for name in names:
        _check_settings(recipe.method, merge, settings[name], len(parents))
    return ElementwiseAssembly(identity, base, tuple(parents), recipe.method, settings, donor)


def _check_settings(name: str, merge: ElementwiseMethod, settings: Settings, parents: int) -> None:
    """Methods check their parameters when called: here on tensors of no elements."""
    try:
        merge([torch.empty(0) for _ in range(parents)], settings, _draw(settings, ""))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


class ElementwiseSources:
    """
    The opened checkpoints of an elementwise assembly; see `Sources` for the attributes.

    Base and parents are all seen over the union of all leaves' tokens.
    """

    def __init__(self, assembly: ElementwiseAssembly) -> None:
        """See `ElementwiseAssembly.open`."""
        base, *parents = (Sources(one) for one in _over_all_leaves(assembly))
        self.base, self.leaves = base.base, base.leaves
        self.union, self.rows, self.tokenizers = base.union, base.rows, base.tokenizers
        self._from_base, self._parents = base, parents
        self._identities = [parent.identity for parent in assembly.parents]
        self._parameters = assembly.parameters
        self._merge = method(assembly.method)

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """The result's tensors: the base's names, in sorted order; embeddings as its tokens ask."""
        return self._from_base.tensors

    def blocks(self, name: str, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
        """
        One tensor of the result, flat, block after block of whole rows.

        Merged in fp32 and rounded to `dtype` once. A tensor that no parent has changed is handed
        on, hence exact in any dtype. Holds the parents' deltas of the tensor, in fp32.

        Raises:
            ModelError: A parent's tensor, or the base's, holds NaN or infinity.
        """
        deltas = self._deltas(name, device)
        changed = [self._is_changed(index, name, delta) for index, delta in enumerate(deltas)]
        if not any(changed):
            yield from self._from_base.blocks(name, dtype, device)
            return
        assert isinstance(self._merge, ElementwiseMethod)
        settings = self._parameters[name]
        merged = self._merge(deltas, settings, _draw(settings, name)).reshape(-1)
        del deltas
        begin = 0
        for block in self._from_base.blocks(name, torch.float32, device):
            total = merged[begin : begin + len(block)].add_(block)
            yield total.to(dtype)
            begin += len(block)

    @cached_property
    def _infos(self) -> Mapping[str, TensorInfo]:
        return {info.name: info for info in self.tensors}

    def own_dtype(self, name: str) -> torch.dtype:
        return self._from_base.own_dtype(name)

    def _deltas(self, name: str, device: torch.device) -> list[Tensor]:
        """Each parent's w_i - b of one tensor, float32, in its shape."""
        info = self._infos[name]
        made = [torch.empty(info.elements, device=device) for _ in self._parents]
        opened = [
            sources.blocks(name, torch.float32, device)
            for sources in (self._from_base, *self._parents)
        ]
        begin = 0
        for base, *weights in zip(*opened, strict=True):
            end = begin + len(base)
            for delta, weight in zip(made, weights, strict=True):
                torch.sub(weight, base, out=delta[begin:end])
            begin = end
        return [delta.view(info.shape) for delta in made]

    def _is_changed(self, index: int, name: str, delta: Tensor) -> bool:
        if delta.numel() == 0:
            return False
        least, most = (float(extreme) for extreme in torch.aminmax(delta))
        # NaN is neither above nor below anything.
        if not (least > -torch.inf and most < torch.inf):
            raise ModelError(
                f"tensor {name} of the parent {self._identities[index]}, or of the base, holds "
                "NaN or infinity; the model is broken"
            )
        return not least == most == 0


def _over_all_leaves(assembly: ElementwiseAssembly) -> list[Assembly]:
    """
    The base and the parents as assemblies of the same leaves, hence with the same tokens.

    A parent that is a plain checkpoint, and so its own base, becomes a leaf.
    """
    folders = {folder: None for parent in assembly.parents for folder in _folders(parent)}
    leaves = tuple(folder for folder in folders if folder != assembly.base)
    columns = (assembly.base, *leaves)
    of_base = (1.0, *(0.0 for _ in leaves))
    table = tuple((name, of_base) for name in assembly.parameters)
    base = Assembly("", assembly.base, leaves, table, assembly.donor)
    return [base, *(_spread(parent, columns, base) for parent in assembly.parents)]


def _spread(parent: Assembly, columns: Sequence[Path], base: Assembly) -> Assembly:
    """The parent with a weight for each of `columns`, most of them 0."""
    places = [columns.index(folder) for folder in _folders(parent)]
    table = []
    for name, weights in parent.coefficients:
        spread = [0.0] * len(columns)
        for place, weight in zip(places, weights, strict=True):
            spread[place] += weight
        table.append((name, tuple(spread)))
    return replace(base, identity=parent.identity, coefficients=tuple(table))


def _folders(parent: Assembly) -> tuple[Path, ...]:
    return (parent.base, *parent.leaves)


def _draw(settings: Settings, name: str) -> Draw:
    """Chance that depends on the seed, the tensor's name and the parent's place alone."""

    def draw(index: int) -> torch.Generator:
        text = json.dumps([settings.get("seed", 0.0), name, index])
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))

    return draw
