"""
Which token each row of an embedding stands for, and how models that differ in it are aligned.

Fine-tunes add tokens, each in its own order: the same row is often another token, so rows are
matched by token string. Rows beyond the tokenizer (padding) are nameless and matched by their
place. The union follows mergekit's rule (shared vocabulary of `tokenizer: {source: union}`).
"""

import filecmp
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kinship_daemon.errors import ModelError
from kinship_daemon.foreign.shown import shown
from kinship_daemon.model_files import TOKENIZERS
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.tokenizer import ADDED, SETTINGS, declared_tokens, tokens_of

__all__ = [
    "Union",
    "Vocabulary",
    "alignment",
    "is_vocabulary",
    "same",
    "unite",
]

# Ids beyond any real vocabulary's would ask for as many rows.
_MOST_TOKENS = 10_000_000
# Tokens that a tokenizer has and its model no row for: real ones have a few, or hundreds. What is
# added to it comes behind them, and each asks for a row.
_MOST_ROWLESS = 10_000
_TENSOR = re.compile(r"(^|\.)(embed_tokens|lm_head|wte|embed_in|embed_out)\.(weight|bias)$")


def is_vocabulary(name: str) -> bool:
    """Whether a tensor has one row for each token."""
    return _TENSOR.search(name) is not None


@dataclass(frozen=True)
class Vocabulary:
    """
    The tokens of a model.

    Attributes:
        folder: Where its tokenizer is, if it has one.
        rows: Of its embeddings.
    """

    folder: Path
    rows: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, folder: Path | None = None) -> "Vocabulary | None":
        """
        The vocabulary of a checkpoint, with the tokenizer in `folder` where that is another.

        None where its embeddings disagree on their rows, or there are none.
        """
        rows = {info.shape[0] for name, info in checkpoint.tensors.items() if is_vocabulary(name)}
        return cls(folder or checkpoint.path, *rows) if len(rows) == 1 else None

    @cached_property
    def ids(self) -> Mapping[str, int] | None:
        """
        Every token's id, those without a row too; None where there is no tokenizer.

        Raises:
            ModelError: The tokenizer cannot be read.
        """
        files = [self.folder / file for file in (*TOKENIZERS, ADDED, SETTINGS)]
        stamps = [(path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.exists()]
        return _read(self.folder, tuple(stamps))

    @cached_property
    def names(self) -> tuple[str | None, ...] | None:
        """The token of each row, None for a nameless row."""
        return None if self.ids is None else _names(self.ids.items(), self.rows)

    @property
    def end(self) -> int:
        """The id that the next token to be added will have."""
        return 1 + max((self.ids or {}).values(), default=-1)


def same(one: Vocabulary, other: Vocabulary) -> bool:
    """
    Whether two models have the same token in every row. Without a tokenizer, equal sizes say so.

    Raises:
        ModelError: They differ in size, and one has no tokenizer to align them by.
    """
    if one.rows == other.rows and _same_files(one.folder, other.folder):
        return True
    if one.names is None or other.names is None:
        if one.rows == other.rows:
            return True
        bare = one if one.names is None else other
        raise ModelError(
            f"{other.folder}: its embeddings have {other.rows} rows, those of {one.folder} "
            f"{one.rows}, and {bare.folder} has no tokenizer to align them by"
        )
    return one.names == other.names


def alignment(names: Sequence[str | None], source: Vocabulary) -> Tensor:
    """
    Where a model keeps each of the rows called `names`.

    Returns:
        (names,) int64 rows of `source`, -1 for those that it lacks.
    """
    ids, own = source.ids or {}, source.names or ()
    return torch.tensor([_row(name, place, ids, own) for place, name in enumerate(names)])


@dataclass(frozen=True, eq=False)
class Union:
    """
    The tokens of a merge whose models differ in theirs.

    Attributes:
        rows: Of the merge's embeddings.
        added: The tokens that the donor lacks, in the order of their new ids, each with the number
            of the first source that has it.
        first_id: Id of the first of them.
        places: (rows, sources) int64: the row of each source, -1 where it lacks the token.
    """

    rows: int
    added: tuple[tuple[str, int], ...]
    first_id: int
    places: Tensor

    def spread(self, weights: Sequence[float]) -> Tensor:
        """
        Per row, the weights of the sources' own rows that make sum_i w_i u_i.

        u_i is source i's row or, if it lacks the token, that of the base (the first source) or,
        if that lacks it too, the mean of those that have it. A token of nobody's gets zeros.

        Returns:
            (rows, sources) float64.
        """
        has = (self.places >= 0).double()
        own = has * torch.tensor(weights, dtype=torch.float64)
        lacking = ((1 - has) * torch.tensor(weights, dtype=torch.float64)).sum(1, keepdim=True)
        of_base = torch.zeros_like(has)
        of_base[:, 0] = 1
        owners = has / has.sum(1, keepdim=True).clamp_min(1)
        return own + lacking * torch.where(has[:, :1] > 0, of_base, owners)


def unite(donor: Vocabulary, sources: Sequence[Vocabulary]) -> Union | None:
    """
    The donor's tokens in their places, then those of the sources (base first) that it lacks.

    None where all have the donor's vocabulary.

    Raises:
        ModelError: Sizes differ, and one has no tokenizer; or the donor's next id is far beyond its
            rows.
    """
    if all(same(donor, source) for source in sources):
        return None
    ids = donor.ids or {}
    owners: dict[str, int] = {}
    for number, source in enumerate(sources):
        for token in source.names or ():
            if token is not None and token not in ids:
                owners.setdefault(token, number)
    if owners and donor.end > donor.rows + _MOST_ROWLESS:
        raise ModelError(
            f"{donor.folder}: its tokenizer has ids up to {donor.end - 1}, its embeddings "
            f"{donor.rows} rows; nobody's tokens can be added to it"
        )
    added = {token: donor.end + place for place, token in enumerate(owners)}
    rows = max(donor.rows, donor.end + len(added)) if added else donor.rows
    names = _names([*ids.items(), *added.items()], rows)
    places = torch.stack([alignment(names, source) for source in sources], 1)
    return Union(rows, tuple(owners.items()), donor.end, places)


def _row(name: str | None, place: int, ids: Mapping[str, int], own: Sequence[str | None]) -> int:
    if name is None:
        return place if place < len(own) and own[place] is None else -1
    row = ids.get(name, -1)
    return row if row < len(own) else -1


def _names(ids: Iterable[tuple[str, int]], rows: int) -> tuple[str | None, ...]:
    names: list[str | None] = [None] * rows
    for token, row in ids:
        if row < rows and names[row] is None:
            names[row] = token
    return tuple(names)


def _same_files(one: Path, other: Path) -> bool:
    """Whether two tokenizers are the same bytes, which takes no parsing to know."""
    if one == other:
        return True
    first = next((file for file in TOKENIZERS if (one / file).is_file()), None)
    if first is None or not (other / first).is_file():
        return False
    fast = first == TOKENIZERS[0]
    for file in (first, ADDED) if fast else (*TOKENIZERS, ADDED):
        ours, theirs = one / file, other / file
        if ours.is_file() != theirs.is_file():
            return False
        if ours.is_file() and not filecmp.cmp(ours, theirs, shallow=False):
            return False
    return declared_tokens(one) == declared_tokens(other)


# A base is compared with each of its descendants.
@lru_cache(maxsize=2)
def _read(folder: Path, _stamps: tuple[tuple[int, int], ...]) -> Mapping[str, int] | None:
    found = tokens_of(folder)
    if found is None:
        return None
    for token, row in found.items():
        if not 0 <= row < _MOST_TOKENS:
            odd = f"its token '{shown(token, 80)}' has the id {shown(row, 80)}"
            raise ModelError(f"{folder}: {odd}, which is no id")
    return found
