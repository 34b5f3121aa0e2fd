"""
Functional kinship: how alike models are in what they make of the same texts, not in their weights.

As data kernels do (arXiv 2305.05126), models are compared through probes that nobody has labelled,
each model read once. What is compared is how a model departs from the base, as in a delta.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinship_daemon.errors import ModelError
from kinship_daemon.foreign.shown import shown
from kinship_daemon.weights.activations import Reader, ends, reader
from kinship_daemon.weights.assembly import Makeable

__all__ = ["Functional", "functional_kinship"]

# The base's likeliest next tokens after each probe; of the rest nothing depends on much.
_ANSWERS = 32


@dataclass(frozen=True, eq=False)
class Functional:
    """
    Pearson's r of how models depart from the base on the probes; (models, models) each, float64.

    NaN in the row of a model that does not depart.

    Attributes:
        hidden: Of the last hidden state at the end of each probe.
        answers: Of the log-probabilities there of the tokens that the base finds likeliest.
    """

    hidden: Tensor
    answers: Tensor


def functional_kinship(
    base: Makeable,
    models: Iterable[Makeable],
    probes: Sequence[str],
    device: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Functional:
    """
    How alike models are on the probes; one model is in memory at a time.

    Args:
        probes: Texts without labels; about 100 tell enough.
        progress: Told after each text of each model, the base first.

    Raises:
        ModelError: A model cannot be built, or has none of the tokens that the base finds likely.
    """
    read = reader(base, probes, device)
    own = _Ends(*ends(read.model, read.tokens, progress))
    # Rows beyond the tokenizer's tokens are padding.
    words = len(read.tokenizer)
    likeliest = own.logits[:, :words].topk(min(_ANSWERS, words), dim=1).indices.tolist()
    tokens = [read.tokenizer.convert_ids_to_tokens(row) for row in likeliest]
    before = own.of(likeliest)
    del read
    changes = []
    for assembly in models:
        read = reader(assembly, probes, device)
        found = _Ends(*ends(read.model, read.tokens, progress)).of(_numbers(read, tokens))
        if not all(bool(part.isfinite().all()) for part in found):
            raise ModelError(f"{assembly.donor}: it makes NaN or infinity of a probe")
        changes.append([after - base for after, base in zip(found, before, strict=True)])
    hidden, answers = (torch.corrcoef(torch.stack(each)) for each in zip(*changes, strict=True))
    return Functional(hidden, answers)


@dataclass(frozen=True, eq=False)
class _Ends:
    states: Tensor
    logits: Tensor

    def of(self, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Flat float64: the states, and the log-probabilities of these tokens among themselves."""
        chosen = self.logits.double().gather(1, torch.tensor(tokens))
        return self.states.double().flatten(), chosen.log_softmax(1).flatten()


def _numbers(read: Reader, tokens: Sequence[Sequence[str]]) -> list[list[int]]:
    """
    A model's numbers of tokens that are told by their text: others may have others.

    Raises:
        ModelError: It lacks one.
    """
    known = read.tokenizer.get_vocab()
    lacking = next((token for each in tokens for token in each if token not in known), None)
    if lacking is not None:
        where = read.model.config.name_or_path
        raise ModelError(f"{where}: its tokenizer lacks {shown(lacking)!r}, which the base has")
    return [[known[token] for token in each] for each in tokens]
