"""The demo's characters as tokens, and examples as tensors to learn from and to be judged by."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from kinship_daemon.demo.skills import TERMINATOR, Example

__all__ = ["EOS_ID", "IGNORED", "PAD_ID", "VOCABULARY", "encode", "write_tokenizer"]

_CHARACTERS = TERMINATOR + "=+- 0123456789abcdefghijklmnopqrstuvwxyz"
_PADDING, _UNKNOWN = "<pad>", "<unk>"
VOCABULARY = {_PADDING: 0, _UNKNOWN: 1} | {c: i for i, c in enumerate(_CHARACTERS, start=2)}
PAD_ID = VOCABULARY[_PADDING]
EOS_ID = VOCABULARY[TERMINATOR]  # so that `generate` stops where an answer does
_TOKENIZER = {
    "clean_up_tokenization_spaces": False,
    "eos_token": TERMINATOR,
    "model_max_length": 128,
    "pad_token": _PADDING,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": _UNKNOWN,
}
IGNORED = -100  # what torch's cross entropy leaves out


def encode(examples: Iterable[Example]) -> tuple[Tensor, Tensor]:
    """
    A batch, padded on the right, with no token added before the first character.

    Returns:
        tokens: int64, (examples, longest).
        targets: the same shape; the answers' tokens where they stand, IGNORED elsewhere. A model's
            logits at position i are to be compared with the targets at i + 1.
    """
    rows = [(len(e.prompt), [VOCABULARY[c] for c in e.prompt + e.answer]) for e in examples]
    shape = len(rows), max(len(row) for _, row in rows)
    tokens = torch.full(shape, PAD_ID, dtype=torch.int64)
    targets = torch.full(shape, IGNORED, dtype=torch.int64)
    for i, (start, row) in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        targets[i, start : len(row)] = tokens[i, start : len(row)]
    return tokens, targets


def write_tokenizer(folder: Path) -> None:
    """A fast tokenizer: one token a character, nothing added before or after."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([_PADDING, _UNKNOWN])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER, indent=2) + "\n")
