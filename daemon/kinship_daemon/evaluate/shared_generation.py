"""
Greedy texts of a batch of prompts, what these begin with being computed once. Worker only.

transformers' own `generate` writes them; it is given a cache that holds the common beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache

from kinship_daemon.evaluate.prefix_plan import Tokens, common
from kinship_daemon.evaluate.settings import Cost
from kinship_daemon.evaluate.shared_prefix import cache_argument, head_sees

__all__ = ["SharedPrompt", "generate"]

# Fewer tokens saved are not worth a pass of their own.
_LEAST = 64
# lm-eval's: a stop string may be made of other tokens than its own.
_FURTHER_TOKENS = 2


@dataclass
class SharedPrompt:
    """
    What the prompts of a chunk begin with, kept from batch to batch.

    Attributes:
        layers: (keys, values) of each layer, (1, heads, tokens, head size).
    """

    tokens: Tokens = ()
    layers: Sequence[tuple[Tensor, Tensor]] = field(default_factory=list)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    context: Tensor,
    attention_mask: Tensor,
    *,
    stop: Sequence[str],
    shared: SharedPrompt | None,
    settings: Mapping[str, Any],
) -> tuple[Tensor, Cost]:
    """
    The prompts and what greedy decoding adds to them, and what that cost.

    Args:
        context: Prompts, padded at the left, (prompts, width).
        attention_mask: Which places are no padding.
        stop: A text that has one of them is not gone on with.
        shared: Beginnings that are known already; takes up new ones. None where the model cannot
            share.
        settings: For transformers' `generate`.

    Returns:
        (prompts, width + new tokens); the padding may lie elsewhere among the first `width`.
    """
    prompts = [row[real.bool()].tolist() for row, real in zip(context, attention_mask, strict=True)]
    whole = sum(len(prompt) for prompt in prompts)
    width = context.shape[1]
    given = {"input_ids": context, "attention_mask": attention_mask, **settings}
    known, read = (0, 0) if shared is None else _share(model, prompts, shared)
    if known and shared is not None:
        given |= _after(prompts, known, width, context.device, tokenizer.pad_token_id)
        given[cache_argument(model)] = _cache(shared, known, len(prompts))
    write: Any = model.generate  # transformers types it not
    made: Tensor = write(
        **given,
        stopping_criteria=StoppingCriteriaList([_EndsRow(tokenizer, stop, width)]),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    new = int((made[:, width:] != tokenizer.pad_token_id).sum())
    computed = read + whole - known * len(prompts) + new
    return made, Cost(computed=computed, lm_eval=whole + new)


@torch.no_grad()
def _share(
    model: PreTrainedModel, prompts: Sequence[Tokens], shared: SharedPrompt
) -> tuple[int, int]:
    """How many tokens at the beginning of all prompts are now known, and how many were read."""
    # One must be left, to go on from.
    alike = min(common(prompts[0], prompt) for prompt in prompts)
    most = min(alike, min(len(prompt) for prompt in prompts) - 1)
    known = common(shared.tokens, prompts[0][:most])
    if known and 2 * known >= most:
        return known, 0
    if most * (len(prompts) - 1) < _LEAST:
        return 0, 0
    shared.tokens = prompts[0][:most]
    cache: Any = DynamicCache()
    ids = torch.tensor([shared.tokens], device=model.device)
    with head_sees(model, torch.tensor([[0, most - 1]], device=model.device)):
        model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})
    shared.layers = [(layer.keys, layer.values) for layer in cache.layers]
    return most, most


def _cache(shared: SharedPrompt, known: int, rows: int) -> DynamicCache:
    """The first `known` tokens for each row."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(shared.layers):
        shape = (rows, -1, -1, -1)
        cache.update(keys[:, :, :known].expand(shape), values[:, :, :known].expand(shape), number)
    return cache


def _after(
    prompts: Sequence[Tokens], known: int, width: int, device: torch.device, pad: int
) -> dict[str, Tensor]:
    """The prompts with their padding after what is known: that has none."""
    ids = [[*p[:known], *[pad] * (width - len(p)), *p[known:]] for p in prompts]
    mask = [[*[1] * known, *[0] * (width - len(p)), *[1] * (len(p) - known)] for p in prompts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


class _EndsRow(StoppingCriteria):
    """lm-eval's goes on until every row has the same one of the stop strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], width: int) -> None:
        lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in stop]
        self._tokenizer = tokenizer
        self._stop = stop
        self._width = width
        self._last = max(lengths, default=0) + _FURTHER_TOKENS

    def __call__(self, input_ids: Tensor, _scores: Tensor, **_: object) -> Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._width :][:, -self._last :])
        ended = [any(stop in text for stop in self._stop) for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)
