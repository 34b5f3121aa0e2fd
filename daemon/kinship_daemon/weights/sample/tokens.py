"""Where a model keeps the base's tokens, told from as few bytes of its tokenizer as will do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from kinship_daemon.errors import KinshipError, ModelError
from kinship_daemon.model_files import TOKENIZERS, has_tokenizer
from kinship_daemon.weights.checkpoint import parse_json
from kinship_daemon.weights.remote import Remote
from kinship_daemon.weights.vocabulary import Vocabulary, alignment, is_vocabulary

__all__ = ["Tokens", "UnknownTokens", "aligned_rows"]

_ADDED = "added_tokens.json"
_SETTINGS = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
# Longer settings are read only where so much may be: a stranger's file may have any length.
_MOST_SETTINGS_BYTES = 100_000
# Each of these alone tells all tokens, but for added ones.
_READABLE = ("tokenizer.json", "vocab.json", "vocab.txt")


class UnknownTokens(KinshipError):
    """Where the tokens of a model are cannot be told, or only from too many bytes."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """
    A model's tokenizer files, none of which has been read.

    Attributes:
        source: The model.
        sizes: Bytes of each of its files.
        digests: Of each file, hashes by which it may be known, such as `sha256:...`; two files
            that have one in common are the same. A file that has none is like no other.
    """

    source: Remote
    sizes: Mapping[str, int]
    digests: Mapping[str, frozenset[str]] = field(repr=False)

    @property
    def rows(self) -> int | None:
        """Of the embeddings; None where there are none, or they disagree."""
        tensors = self.source.tensors.items()
        rows = {info.shape[0] for name, info in tensors if is_vocabulary(name)}
        return rows.pop() if len(rows) == 1 else None

    @property
    def files(self) -> list[str]:
        """What has to be read to know all tokens; nothing where there is no tokenizer."""
        found = next((file for file in _READABLE if file in self.sizes), None)
        if found is not None:
            wanted = [found, _ADDED, _SETTINGS]
        elif has_tokenizer(self.sizes):
            wanted = [*TOKENIZERS, _ADDED, _SETTINGS, _SPECIAL, "config.json"]
        else:
            wanted = []
        return [file for file in wanted if file in self.sizes]

    @property
    def nbytes(self) -> int:
        return sum(self.sizes[file] for file in self.files)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """
        All tokens; reads the files.

        Raises:
            ModelError, Transient: They cannot be read.
        """
        with TemporaryDirectory() as folder:
            for file in self.files:
                (Path(folder) / file).write_bytes(self.content(file))
            found = Vocabulary(Path(folder), self.rows or 0)
            # Remembered: the folder does not last.
            try:
                _ = found.ids, found.names
            except ModelError as error:
                # Its path is another one each time: the same fault has the same words.
                words = str(error).replace(folder, self.source.name)
                raise ModelError(words, cause=error.cause) from None
        return found

    def content(self, file: str) -> bytes:
        return self.source.ranges.read(file, [(0, self.sizes[file])])[0]

    def same(self, other: Tokens, file: str) -> bool:
        """Whether both lack a file, or have the same."""
        if file not in self.sizes or file not in other.sizes:
            return file not in self.sizes and file not in other.sizes
        return bool(self.digests[file] & other.digests[file])


def aligned_rows(base: Tokens, own: Tokens, most_bytes: int) -> Tensor | None:
    """
    Where a model keeps each of the base's tokens.

    Args:
        most_bytes: That may be read of the model's tokenizer for it.

    Returns:
        (rows,) int64, -1 for tokens that it lacks, as `take` wants it; None where they are in the
        base's rows, and where there are as many rows and no tokenizers that say otherwise.

    Raises:
        UnknownTokens: It cannot be told, or its tokenizer is larger.
        ModelError, Transient: A tokenizer cannot be read.
    """
    if base.rows is None or own.rows is None:
        raise UnknownTokens(f"{own.source.name}: its embeddings differ in their rows")
    alike = base.rows == own.rows
    both = bool(base.files and own.files)
    if alike and not both:
        return None
    if both and _same_tokens(base, own, most_bytes):
        return None if alike else _same_places(base.rows, own.rows)
    if not both:
        bare = own if base.files else base
        raise UnknownTokens(
            f"{own.source.name}: its embeddings have {own.rows} rows, the base's {base.rows}, and "
            f"{bare.source.name} has no tokenizer to align them by"
        )
    if own.nbytes > most_bytes:
        raise UnknownTokens(
            f"{own.source.name}: its tokenizer is not the base's, "
            f"and its {own.nbytes / 1e6:.1f} MB are too much to read beside the sample"
        )
    names = base.vocabulary.names or ()
    if alike and names == own.vocabulary.names:
        return None
    return alignment(names, own.vocabulary)


def _same_tokens(base: Tokens, own: Tokens, most_bytes: int) -> bool:
    """Whether the files are the same, or differ in settings that have to do with no token."""
    if not all(base.same(own, file) for file in (*TOKENIZERS, _ADDED)):
        return False
    if base.same(own, _SETTINGS):
        return True
    if own.sizes.get(_SETTINGS, 0) > max(most_bytes, _MOST_SETTINGS_BYTES):
        return False
    return _declared(base) == _declared(own)


def _same_places(rows: int, own: int) -> Tensor:
    """Where the tokens are the same, only the padding can differ."""
    places = torch.arange(rows)
    return places.masked_fill_(places >= own, -1)


def _declared(tokens: Tokens) -> object:
    """Tokens that the settings tell of; a chat template, which differs more often, is none."""
    if _SETTINGS not in tokens.sizes:
        return {}
    settings = parse_json(tokens.source.path / _SETTINGS, tokens.content(_SETTINGS))
    return settings.get("added_tokens_decoder") or {}
