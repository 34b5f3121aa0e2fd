"""
How the child of an elementwise or a matrix merge is made: tensor by tensor, each whole in memory.

Unlike a span merge's, such a child is no combination of leaves, so it is made from its parents'
weights, whatever they are made from, and then is a leaf of its own.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.weights.assembly import Assembly, Sources
from kinship_daemon.weights.checkpoint import TensorInfo
from kinship_daemon.weights.layer_inputs import LayerInputs
from kinship_daemon.weights.methods.blocks import Blocks, blocks_of, buffers_of, in_blocks
from kinship_daemon.weights.methods.method import (
    Draw,
    ElementwiseMethod,
    MatrixMethod,
    Settings,
    SpanMethod,
    needs_inputs,
)
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe, check, resolve
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["WholeTensorAssembly", "WholeTensorSources", "whole_tensor_assembly"]

# Elements handed on at a time.
_BLOCK = 1 << 22
# Of a delta's elements: methods sum them, square them, and divide their sum by what is left of it.
_LARGEST = 1e25

_WholeTensorMethod = ElementwiseMethod | MatrixMethod


@dataclass(frozen=True)
class WholeTensorAssembly:
    """
    Where the weights of an elementwise or matrix child come from; picklable, and small.

    Attributes:
        identity: Weights identity of the recipe.
        base: Folder of the base; names the tensors and their shapes.
        parents: In the order of the recipe; descendants of the base.
        method: Name of an installed elementwise or matrix method.
        parameters: The method's parameters by tensor name; names all tensors of the child.
        donor: Folder whose tokenizer, generation config and chat template go along.
        device: Where matrices are merged. Their last bits depend on it, on the number of threads
            and on torch's release; those of elementwise merges on nothing.
        inputs: Of the parents' layers, in their order, where the method needs them.
    """

    identity: str
    base: Path
    parents: tuple[Assembly, ...]
    method: str
    parameters: Mapping[str, Settings] = field(repr=False)
    donor: Path
    device: str = "cpu"
    inputs: LayerInputs | None = None

    @property
    def config_base(self) -> Path:
        return self.base

    def open(self) -> "WholeTensorSources":
        """
        Open base and parents; headers only.

        Raises:
            ModelError: A checkpoint cannot be read, or does not fit the base.
        """
        return WholeTensorSources(self)


def whole_tensor_assembly(
    recipe: Recipe,
    parents: Sequence[Assembly],
    names: Sequence[str],
    base: Path,
    identity: str,
    donor: Path,
    device: str = "cpu",
    inputs: LayerInputs | None = None,
) -> WholeTensorAssembly:
    """
    The assembly of an elementwise or matrix recipe; no weight is read.

    `parents` are in the order of the recipe's; `names` are all tensors of the base.

    Raises:
        UsageError: The method, a parameter or the number of parents is wrong.
    """
    check(recipe, names, texts=inputs is not None)
    merge, resolved = resolve(recipe, names)
    if merge.kind == "span":
        raise UsageError(f"{recipe.method} is a span method; its children are combined, not made")
    if len(parents) != len(recipe.parents):
        raise UsageError(f"a recipe of {len(recipe.parents)} parents was given {len(parents)}")
    columns = {parameter: values.tolist() for parameter, values in resolved.items()}
    settings: dict[str, Settings] = {
        name: {parameter: values[row] for parameter, values in columns.items()}
        for row, name in enumerate(names)
    }
    # Mostly the same for thousands of tensors.
    for different in {repr(each): each for each in settings.values()}.values():
        _check_settings(recipe.method, merge, different, len(parents))
    return WholeTensorAssembly(
        identity, base, tuple(parents), recipe.method, settings, donor, device, inputs
    )


def _check_settings(name: str, merge: _WholeTensorMethod, settings: Settings, parents: int) -> None:
    """Methods check their parameters when called: here on the smallest of tensors."""
    shape = (1, 1) if merge.kind == "matrix" else (0,)
    zeros = [torch.zeros(shape) for _ in range(parents)]
    try:
        _blend(merge, zeros, settings, "", zeros if needs_inputs(merge) else None)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _blend(
    merge: _WholeTensorMethod,
    deltas: Sequence[Tensor],
    settings: Settings,
    name: str,
    inputs: Sequence[Tensor] | None = None,
) -> Tensor:
    """The merged delta of one tensor, of that name and shape."""
    if isinstance(merge, ElementwiseMethod):
        return merge(deltas, settings, _draw(settings, name))
    # A vocabulary's rows are tokens: no matrix that maps one thing to another.
    flat = [delta.view(-1) for delta in deltas] if is_vocabulary(name) else deltas
    return merge(flat, settings, inputs)


class WholeTensorSources:
    """
    The opened checkpoints of such an assembly; see `Sources` for the attributes.

    Base and parents are all seen over the union of all leaves' tokens.
    """

    def __init__(self, assembly: WholeTensorAssembly) -> None:
        """See `WholeTensorAssembly.open`."""
        base, *parents = (_Source(one) for one in _over_all_leaves(assembly))
        self.base, self.leaves = base.base, base.leaves
        self.union, self.rows, self.tokenizers = base.union, base.rows, base.tokenizers
        self._from_base, self._parents = base, parents
        self._identities = [parent.identity for parent in assembly.parents]
        self._parameters, self._inputs = assembly.parameters, assembly.inputs
        merge = method(assembly.method)
        assert not isinstance(merge, SpanMethod)
        self._merge: _WholeTensorMethod = merge
        self._on = torch.device(assembly.device) if merge.kind == "matrix" else None
        self._held: Tensor | None = None

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """The result's tensors: the base's names, in sorted order; embeddings as its tokens ask."""
        return self._from_base.tensors

    def blocks(self, name: str, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
        """
        One tensor of the result, flat, block after block of whole rows.

        Merged in fp32 and rounded to `dtype` once. A tensor that no parent has changed is handed
        on, hence exact in any dtype. Holds the parents' deltas of the largest tensor, in fp32.

        Raises:
            ModelError: A parent's tensor, or the base's, holds NaN, infinity or numbers so large
                that float32 does not hold what methods make of them.
        """
        info = self._infos[name]
        on = self._on or device
        deltas = self._room(info.elements, on)
        if not self._measure(name, deltas):
            yield from self._from_base.blocks(name, dtype, device)
            return
        shaped = [delta.view(info.shape) for delta in deltas]
        inputs = self._inputs.of(name) if self._inputs else None
        merged = _blend(self._merge, shaped, self._parameters[name], name, inputs).reshape(-1)
        begin = 0
        for (base,) in _pieces([self._from_base], info, on):
            for block in blocks_of(len(base), _BLOCK):
                length = block.stop - block.start
                yield _sum(merged[begin : begin + length], base[block], dtype).to(device)
                begin += length

    @cached_property
    def _infos(self) -> Mapping[str, TensorInfo]:
        return {info.name: info for info in self.tensors}

    def own_dtype(self, name: str) -> torch.dtype:
        return self._from_base.own_dtype(name)

    def _room(self, elements: int, device: torch.device) -> list[Tensor]:
        """
        Where each parent's delta of one tensor goes, flat float32.

        The same memory for every tensor: new pages take the system longer than the sums take us.
        """
        if self._held is None or self._held.device.type != device.type:
            largest = max(info.elements for info in self.tensors)
            self._held = torch.empty(len(self._parents), largest, device=device)
        return [row[:elements] for row in self._held]

    def _measure(self, name: str, deltas: Sequence[Tensor]) -> bool:
        """Fill in each parent's w_i - b of one tensor; whether any of them is other than 0."""
        extremes, begin = [], 0
        sources = [self._from_base, *self._parents]
        for base, *weights in _pieces(sources, self._infos[name], deltas[0].device):
            end = begin + len(base)
            extremes += _subtract(weights, base, [delta[begin:end] for delta in deltas])
            begin = end
        if not extremes:
            return False
        least, most = torch.stack(extremes).amin(0)[0], torch.stack(extremes).amax(0)[1]
        # NaN is neither above nor below anything.
        bad = ~((least >= -_LARGEST) & (most <= _LARGEST))
        if bool(bad.any()):
            raise ModelError(
                f"tensor {name} of the parent {self._identities[int(bad.nonzero()[0])]}, or of "
                f"the base, holds NaN, infinity or numbers beyond {_LARGEST:g}; the model is broken"
            )
        return bool((least != 0).any() or (most != 0).any())


class _Source(Sources):
    """One of the models that a merge is made of."""

    def __init__(self, assembly: Assembly) -> None:
        super().__init__(assembly)
        self._table = dict(assembly.coefficients)

    def as_it_lies(self, info: TensorInfo) -> Tensor | None:
        """A tensor that is one file's own, flat, mapped and in its dtype; None where it is not."""
        if self.union is not None and is_vocabulary(info.name):
            return None
        used = [(place, weight) for place, weight in enumerate(self._table[info.name]) if weight]
        if len(used) != 1 or used[0][1] != 1:
            return None
        place = used[0][0]
        own = self.leaves[place - 1].own(info.name) if place else self.base.tensor(info.name)
        return own.reshape(-1)[: info.elements] if isinstance(own, Tensor) else None


def _pieces(
    sources: Sequence[_Source], info: TensorInfo, device: torch.device
) -> Iterator[Sequence[Tensor]]:
    """One tensor of each, flat, block after block: the files' own memory, or else float32."""
    whole = [source.as_it_lies(info) for source in sources]
    mapped = [tensor for tensor in whole if tensor is not None]
    if len(mapped) == len(whole):
        yield mapped
    else:
        made = [source.blocks(info.name, torch.float32, device) for source in sources]
        yield from zip(*made, strict=True)


def _subtract(weights: Sequence[Tensor], base: Tensor, deltas: Sequence[Tensor]) -> list[Tensor]:
    """Each of `weights` less `base`, in fp32, into `deltas`; per block (2, deltas) extremes."""

    def work(blocks: Blocks) -> list[Tensor]:
        buffer = buffers_of(deltas[0], 1)[0]
        found = []
        for block in blocks:
            exact = buffer[: block.stop - block.start].copy_(base[block])
            for weight, delta in zip(weights, deltas, strict=True):
                delta[block].copy_(weight[block]).sub_(exact)
            ends = [torch.stack(torch.aminmax(delta[block])) for delta in deltas]
            found.append(torch.stack(ends, 1).cpu())
        return found

    return list(chain.from_iterable(in_blocks(work, deltas[0])))


def _sum(merged: Tensor, base: Tensor, dtype: torch.dtype) -> Tensor:
    """Of one block, in fp32, rounded once."""
    total = torch.empty(len(merged), dtype=dtype, device=merged.device)

    def work(blocks: Blocks) -> None:
        buffer = buffers_of(merged, 1)[0]
        for block in blocks:
            exact = buffer[: block.stop - block.start].copy_(base[block])
            total[block].copy_(exact.add_(merged[block]))

    in_blocks(work, merged)
    return total


def _over_all_leaves(assembly: WholeTensorAssembly) -> list[Assembly]:
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
    # A plain checkpoint's own names may have the model's prefix where the base's have none.
    own = parent.coefficients if parent.leaves else [(n, (1.0,)) for n, _ in base.coefficients]
    table = []
    for name, weights in own:
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
