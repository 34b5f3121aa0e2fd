"""
A model seen through its base: every tensor under the base's name, in the base's shape.

A full fine-tune gives its weights, an adapter a low-rank delta or nothing at all; whoever reads
(ledger, merging) asks for one tensor after the other and never for the whole model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from kinship_daemon.errors import ModelError
from kinship_daemon.model_files import ADAPTER_CONFIG
from kinship_daemon.weights.adapter import Adapter, Content, LowRank, is_adapter
from kinship_daemon.weights.checkpoint import Checkpoint, alike_tied, compare, refuse_other_head
from kinship_daemon.weights.fit import alike_named
from kinship_daemon.weights.model_config import other_settings
from kinship_daemon.weights.tokenizer import has_tokenizer
from kinship_daemon.weights.vocabulary import (
    Vocabulary,
    alignment,
    is_vocabulary,
    same,
)

__all__ = ["Content", "Descendant", "LowRank", "descend"]


@dataclass(frozen=True, eq=False)
class Descendant:
    """
    One fine-tune or adapter of a base.

    Attributes:
        path: Its folder.
        nbytes: Of the weights it keeps on disk.
        parameters: That it keeps on disk.
        contents: By tensor name of the base, what reads that tensor. A missing name is the base's.
        files: All that determines its weights, sorted.
        vocabulary: Its own tokens; None where they are the base's.
        differs: What its config.json says otherwise than its base's, and whose value is taken.
        aligned: What to do with a vocabulary tensor of its own to have it in the base's rows.
    """

    path: Path
    nbytes: int
    parameters: int
    contents: Mapping[str, Callable[[], Content]] = field(repr=False)
    files: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    differs: str | None = None
    aligned: Callable[[str, Tensor], Tensor] | None = field(default=None, repr=False)

    def content(self, name: str) -> Content:
        """
        One tensor of the base's, in its shape.

        The row of a token that the model lacks is the base's; of tokens that the base lacks
        nothing is seen here.

        Raises:
            ModelError: The file cannot be read.
        """
        own = self.own(name)
        if self.aligned is None or not isinstance(own, Tensor) or not is_vocabulary(name):
            return own
        return self.aligned(name, own)

    def own(self, name: str) -> Content:
        """The same, but a vocabulary tensor has the model's own rows."""
        read = self.contents.get(name)
        return None if read is None else read()


def descend(base: Checkpoint, path: Path) -> Descendant:
    """
    Open a model or an adapter as a descendant of `base`; reads headers only.

    Where both have tokenizers, vocabularies may differ.

    Raises:
        ModelError: It cannot be one; the first three differences are named.
    """
    if is_adapter(path):
        return _adapter(base, Adapter.open(base, path))
    whole = Checkpoint.open(path)
    named = alike_named(base, whole)
    own = alike_tied(base, named)
    if own is not named:
        refuse_other_head(whole)
    vocabulary = Vocabulary.of(own)
    growing = [name for name in base.tensors if is_vocabulary(name)] if vocabulary else []
    compare(base, own, resizable=growing)
    contents = {name: _reader(own, name) for name in own.tensors}
    differs = other_settings(base.config() or {}, own.config() or {}, _rows(base, own))
    plain = Descendant(path, own.nbytes, own.parameters, contents, own.files, differs=differs)
    return _in_base_rows(base, plain, vocabulary)


def _adapter(base: Checkpoint, adapter: Adapter) -> Descendant:
    own = adapter.checkpoint
    contents = {name: _adapted(adapter, name) for name in adapter.names}
    files = tuple(sorted((ADAPTER_CONFIG, *own.files)))
    plain = Descendant(own.path, own.nbytes, own.parameters, contents, files)
    seen = _in_base_rows(base, plain, _vocabulary(base, adapter))
    if seen.aligned is None:
        return seen
    # A low-rank delta is one of the base's rows, and these tokens are in others.
    moved = {name: _adapted(adapter, name, dense=is_vocabulary(name)) for name in adapter.names}
    return replace(seen, contents=moved)


def _rows(base: Checkpoint, own: Checkpoint) -> tuple[int, int] | None:
    theirs, found = Vocabulary.of(base), Vocabulary.of(own)
    return None if theirs is None or found is None else (theirs.rows, found.rows)


def _vocabulary(base: Checkpoint, adapter: Adapter) -> Vocabulary | None:
    """An adapter that does not bring all its embeddings has the base's tokens, row by row."""
    path = adapter.checkpoint.path
    named = [name for name in base.tensors if is_vocabulary(name)]
    own = [adapter.whole(name) for name in named]
    rows = {(info or base.tensors[name]).shape[0] for name, info in zip(named, own, strict=True)}
    if len(rows) > 1:
        raise ModelError(f"{path}: its embeddings have {' and '.join(map(str, sorted(rows)))} rows")
    if not all(own) or not rows:
        return None
    return Vocabulary(path if has_tokenizer(path) else base.path, *rows)


def _in_base_rows(base: Checkpoint, plain: Descendant, own: Vocabulary | None) -> Descendant:
    """The descendant with its vocabulary tensors brought into the base's rows, if need be."""
    theirs = Vocabulary.of(base)
    if own is None or theirs is None or same(theirs, own):
        return plain
    places = alignment(theirs.names or (), own)

    def aligned(name: str, tensor: Tensor) -> Tensor:
        return _gather(tensor, places, base.tensor(name))

    return replace(plain, vocabulary=own, aligned=aligned)


def _gather(own: Tensor, places: Tensor, base: Tensor) -> Tensor:
    """The rows of `own` at `places`, and the base's where these are -1."""
    if torch.equal(places, torch.arange(len(base))):
        return own[: len(base)]  # tokens were appended: no copy
    lacking = places < 0
    dtype = torch.promote_types(own.dtype, base.dtype) if bool(lacking.any()) else own.dtype
    rows = own.index_select(0, places.clamp_min(0)).to(dtype)
    rows[lacking] = base[lacking].to(dtype)
    return rows


def _reader(checkpoint: Checkpoint, name: str) -> Callable[[], Content]:
    return lambda: checkpoint.tensor(name)


def _adapted(adapter: Adapter, name: str, *, dense: bool = False) -> Callable[[], Content]:
    return lambda: adapter.content(name, dense=dense)
