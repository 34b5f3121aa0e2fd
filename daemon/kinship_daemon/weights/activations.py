"""Live models on texts: what their layers are given, what they make of a text."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinship_daemon.errors import KinshipError, ModelError, UsageError
from kinship_daemon.weights.assembly import Makeable
from kinship_daemon.weights.fit import their_names
from kinship_daemon.weights.layer_inputs import matrix_file
from kinship_daemon.weights.live_model import live_model
from kinship_daemon.weights.places import places
from kinship_daemon.weights.sidecars import sidecars
from kinship_daemon.weights.tokenizer import load_tokenizer
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["Reader", "ends", "measure_inputs", "read_texts", "reader"]

# Tokens of a text that are read.
_LONGEST = 2048
# Of a file of texts, in bytes.
_LARGEST = 1 << 30


def read_texts(path: Path) -> list[str]:
    """
    One text a line; empty lines are none.

    Raises:
        UsageError: It cannot be read, or there is none.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path} is larger than {_LARGEST >> 20} MB; give fewer texts")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"{path} has no text; it should have one a line")
    return texts


@dataclass(frozen=True, eq=False)
class Reader:
    """
    A live model, and texts as its tokens.

    Attributes:
        model: In evaluation mode, in its checkpoint's dtype.
        tokens: Of each text, (tokens,) int64, on the model's device.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: Sequence[Tensor]


def reader(assembly: Makeable, texts: Sequence[str], device: str) -> Reader:
    """
    A model that is to read some texts; of each the first 2,048 tokens.

    Raises:
        ModelError: The model cannot be built, or its tokenizer makes nothing of a text.
    """
    with TemporaryDirectory() as room:
        folder = Path(room)
        sidecars(assembly).write(folder)
        tokenizer = load_tokenizer(folder, assembly.donor)
    read = [tokenizer(text, truncation=True, max_length=_LONGEST)["input_ids"] for text in texts]
    if not all(read):
        empty = texts[[not tokens for tokens in read].index(True)]
        raise ModelError(f"{assembly.donor}: its tokenizer has no token for {empty[:40]!r}")
    opened = assembly.open()
    dtype = opened.own_dtype(max(opened.tensors, key=lambda info: info.elements).name)
    model = live_model(assembly, dtype=dtype, device=device)
    return Reader(model, tokenizer, [torch.tensor(tokens, device=device) for tokens in read])


@torch.inference_mode()
def ends(
    model: PreTrainedModel,
    texts: Sequence[Tensor],
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """
    What a model makes of the end of each text: the last hidden state, and the next token's logits.

    Args:
        texts: Tokens, (tokens,) each.
        progress: Told after each text.

    Returns:
        (texts, width) and (texts, vocabulary), float32 on the CPU.
    """
    states: list[Tensor] = []
    logits: list[Tensor] = []

    def keep(_: nn.Module, __: object, found: Any) -> None:
        states.append(found.last_hidden_state[0, -1].float().cpu())

    # Not of every token, where the model can be told so.
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    hook = model.base_model.register_forward_hook(keep)
    try:
        for text in texts:
            found = model(input_ids=text[None], use_cache=False, **last)
            logits.append(found.logits[0, -1].float().cpu())
            progress(1)
    finally:
        hook.remove()
    return torch.stack(states), torch.stack(logits)


@torch.inference_mode()
def measure_inputs(
    model: PreTrainedModel,
    texts: Sequence[Tensor],
    names: Sequence[str],
    folder: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """
    Write the mean of x x^T over the inputs x of each linear layer, for `LayerInputs`.

    The mean is over tokens, of those that reach the layer. Sums are float32 in mapped files, which
    take 4 n^2 bytes for each layer of n inputs.

    Args:
        texts: Tokens, (tokens,) each.
        names: The checkpoint's tensors; embeddings and the head are left out.
        folder: An empty one.
        progress: Told after each text.

    Raises:
        ModelError: The model has no such layer, or one is given NaN or infinity.
        KinshipError: The disk is full.
    """
    layers = _linear(model, names)
    if not layers:
        raise ModelError(f"{model.config.name_or_path}: it has no linear layer with a weight alone")
    sums = {name: _room(matrix_file(folder, name), each) for name, each in layers.items()}
    tokens: Counter[str] = Counter()

    def add(name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        inputs = given[0].reshape(-1, given[0].shape[-1]).float()
        sums[name].add_((inputs.T @ inputs).cpu())
        tokens[name] += len(inputs)

    with _watched(layers, add):
        for text in texts:
            model.base_model(input_ids=text[None], use_cache=False)
            progress(1)
    for name, total in sums.items():
        total.div_(max(tokens[name], 1))
        if not bool(total.isfinite().all()):
            raise ModelError(
                f"{model.config.name_or_path}: on these texts the layer of {name} is given NaN or "
                "infinity; the model is broken"
            )


@contextmanager
def _watched(
    layers: Mapping[str, nn.Linear], add: Callable[[str, nn.Module, tuple[Any, ...]], None]
) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _linear(model: PreTrainedModel, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers by the checkpoint's name of their weight."""
    free = places(model)
    of = {
        place.data_ptr(): name
        for name, called in their_names(free, names).items()
        if (place := free.get(called)) is not None and not is_vocabulary(name)
    }
    return {
        of[each.weight.data_ptr()]: each
        for each in model.modules()
        if isinstance(each, nn.Linear) and each.weight.data_ptr() in of
    }


def _room(path: Path, layer: nn.Linear) -> Tensor:
    """Zeros (n, n) in a file; its blocks are taken at once, for a map cannot tell a full disk."""
    size = layer.in_features**2
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, 4 * size)
    except OSError as error:
        raise KinshipError(f"cannot keep what a layer is given in {path.parent}: {error}") from None
    return torch.from_file(str(path), shared=True, size=size).view(layer.in_features, -1)
