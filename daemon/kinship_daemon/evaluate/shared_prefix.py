"""
Log-likelihoods of answers, what their prompts have in common being computed once. Worker only.

lm-eval computes the whole prompt again for every choice, and the logits of every token of it. Here
the roots, groups and leaves of `prefix_plan` are computed one level after the other. Each level
attends to the keys and values of the levels before it, and only scored places reach the head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from kinship_daemon.evaluate.prefix_plan import Answer, Segment, Tokens, width

__all__ = ["Likelihood", "Scorer", "cache_argument", "head_sees", "why_not"]

# Of an answer: its logarithm, and whether greedy decoding would give this very answer.
Likelihood = tuple[float, bool]

# Rows of a batch for each that lm-eval would run: ours are shorter.
_ROWS = 4
# Kinds of rotary positions that depend on how long the whole prompt is.
_BY_LENGTH = ("dynamic", "longrope")


def why_not(model: PreTrainedModel, places: int) -> str | None:
    """
    Why prompts cannot share their beginnings in this model's cache; None where they can.

    Args:
        places: Of the widest row, padding counted.
    """
    takes = inspect.signature(model.forward).parameters
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    head: Any = model.get_output_embeddings  # transformers types it not
    refusals = {
        "it takes no keys and values of earlier tokens": not (
            {cache_argument(model), "position_ids", "attention_mask"} <= set(takes)
        ),
        "it keeps a state, which cannot be shared": getattr(model, "_is_stateful", False),
        "it has no head of its own": head() is None,
        "its layers share keys and values": bool(getattr(config, "num_kv_shared_layers", 0)),
        "its positions depend on the length of the whole prompt": any(
            kind in str(rope) for kind in _BY_LENGTH
        ),
    }
    found = [reason for reason, applies in refusals.items() if applies]
    return found[0] if found else _unlike(DynamicCache(config=model.config).layers, places)


def _unlike(layers: Sequence[Any], places: int) -> str | None:
    """What a cache does that is more than to keep all keys and values."""
    for layer in layers:
        if type(layer) is DynamicSlidingWindowLayer:
            if layer.sliding_window < places:
                return (
                    f"its sliding window of {layer.sliding_window} tokens is shorter than the "
                    f"prompts, which take {places}"
                )
        elif type(layer) is not DynamicLayer:
            return f"its cache has layers of another kind, {type(layer).__name__}"
    return None


def cache_argument(model: PreTrainedModel) -> str:
    """What this release of transformers calls the cache: renamed during version 5."""
    takes = inspect.signature(model.forward).parameters
    return "cache" if "cache" in takes else "past_key_values"


class Scorer:
    """
    Answers the log-likelihood requests of one chunk; what it answers depends on them alone.

    Args:
        batch_size: Requests that lm-eval would run together.
        answered: Called with the number of a request when its answer is found.

    Attributes:
        computed: Tokens that the model has read, padding not counted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch_size: int,
        answered: Callable[[int, Likelihood], None] = lambda *_: None,
    ) -> None:
        self._model = model
        self._batch_size = batch_size
        self._answered = answered
        self.computed = 0

    @torch.no_grad()
    def score(self, roots: Sequence[Segment], answers: Sequence[Tokens]) -> list[Likelihood]:
        """
        A likelihood for each of the answers that `roots` were cut for.

        Raises:
            MemoryError, torch.OutOfMemoryError, RuntimeError: As the model does.
        """
        self._logs = [torch.zeros(len(answer)) for answer in answers]
        self._greedy = [[False] * len(answer) for answer in answers]
        self._missing = [len(answer) for answer in answers]
        self._found: list[Likelihood] = [(0.0, False)] * len(answers)
        for root in roots:
            self._family(root)
        return self._found

    def _family(self, root: Segment) -> None:
        most = self._batch_size * width([root])  # tokens of lm-eval's widest batch
        before = [self._run([root], [])] if root.tokens else []
        for groups in self._batches(root.children, most):
            past = self._run(groups, before)
            row = {id(leaf): i for i, group in enumerate(groups) for leaf in group.children}
            for leaves in self._batches(
                [leaf for group in groups for leaf in group.children], most
            ):
                rows = self._tensor([row[id(leaf)] for leaf in leaves])
                self._run(leaves, [*before, replace(past, rows=rows)])

    def _batches(self, segments: Sequence[Segment], most: int) -> Iterator[Sequence[Segment]]:
        """The longest first, so that those of like length come together: little padding."""
        waiting = sorted(
            (segment for segment in segments if segment.tokens),
            key=lambda segment: (-len(segment.tokens), segment.tokens),
        )
        while waiting:
            count = min(most // len(waiting[0].tokens), _ROWS * self._batch_size)
            yield waiting[:count]
            waiting = waiting[count:]

    def _run(self, batch: Sequence[Segment], before: Sequence[_Past]) -> _Past:
        """One pass of the model over a batch; its answers are noted."""
        ids = pad_sequence([self._tensor(segment.tokens) for segment in batch], batch_first=True)
        lengths = self._tensor([len(segment.tokens) for segment in batch])[:, None]
        counted = torch.arange(ids.shape[1], device=ids.device)
        real = counted < lengths
        given: dict[str, Any] = {"use_cache": False}
        layers: list[Any] = []  # of _SharedLayer; transformers wants another list
        if before or any(segment.children for segment in batch):
            count = self._model.config.get_text_config().num_hidden_layers
            layers = [_SharedLayer(before, number) for number in range(count)]
            given = {"use_cache": True, cache_argument(self._model): Cache(layers=layers)}
        if before:
            # No token sees padding at its own right; that of earlier levels is at its left, where
            # it must be hidden and takes no position.
            masks = [past.of(past.real, len(batch)) for past in before]
            given["attention_mask"] = torch.cat([*masks, real], dim=1).long()
            start = self._tensor([segment.start for segment in batch])[:, None]
            given["position_ids"] = start + counted.minimum(lengths - 1)
        answers = [(row, answer) for row, segment in enumerate(batch) for answer in segment.answers]
        # Where no answer is, one place is looked at all the same, for NaN.
        places = sorted({(row, answer.place) for row, answer in answers}) or [(0, 0)]
        with head_sees(self._model, self._tensor(places)):
            logits = self._model(input_ids=ids, **given).logits[0]
        self.computed += int(lengths.sum())
        self._note(answers, places, logits)
        return _Past([(layer.keys, layer.values) for layer in layers], real)

    def _note(
        self,
        answers: Sequence[tuple[int, Answer]],
        places: Sequence[tuple[int, int]],
        logits: Tensor,
    ) -> None:
        """Answers with their rows; `logits` are those of `places`, (places, vocabulary)."""
        if not answers:
            return
        line = {place: i for i, place in enumerate(places)}
        at = self._tensor([line[row, answer.place] for row, answer in answers])
        tokens = self._tensor([answer.token for _, answer in answers])
        # In float32 whatever the model is in: half a unit is what bfloat16 can tell at 100.
        logs = log_softmax(logits, dim=-1, dtype=torch.float32)
        best = (logs.argmax(-1)[at] == tokens).tolist()
        for (_, answer), log, greedy in zip(answers, logs[at, tokens].cpu(), best, strict=True):
            request = answer.request
            self._logs[request][answer.index] = log
            self._greedy[request][answer.index] = greedy
            self._missing[request] -= 1
            if not self._missing[request]:
                found = float(self._logs[request].sum()), all(self._greedy[request])
                self._found[request] = found
                self._answered(request, found)

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


@dataclass(frozen=True)
class _Past:
    """
    Keys and values of one level's segments.

    Attributes:
        layers: (keys, values) of each layer, (segments, heads, width, head size).
        real: Which places are no padding, (segments, width).
        rows: Which segment each row of the next level's batch follows; None where there is only
            one, which all follow.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    real: Tensor
    rows: Tensor | None = None

    def of(self, tensor: Tensor, count: int) -> Tensor:
        """What each of the `count` rows of the batch has of it."""
        return tensor.expand(count, *tensor.shape[1:]) if self.rows is None else tensor[self.rows]


class _SharedLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers types it not
    """Puts earlier levels before new keys and values, but keeps only the new ones."""

    def __init__(self, before: Sequence[_Past], number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = before
        self._number = number
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        return self._whole(0, key_states), self._whole(1, value_states)

    def get_seq_length(self, *_: object) -> int:
        """Places before the batch, which transformers asks for before the layer has any."""
        return sum(past.real.shape[1] for past in self._before)

    def _whole(self, kind: int, new: Tensor) -> Tensor:
        earlier = [past.of(past.layers[self._number][kind], len(new)) for past in self._before]
        return torch.cat([*earlier, new], dim=-2) if earlier else new


@contextmanager
def head_sees(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Let the head see only these (row, place) of the hidden states, as one row."""
    rows, columns = places.T
    head: Any = model.get_output_embeddings
    hook = head().register_forward_pre_hook(lambda _, given: (given[0][rows, columns][None],))
    try:
        yield
    finally:
        hook.remove()
