"""Samples of models on a hub or in a folder, of which only byte ranges are fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from kinship_daemon.errors import KinshipError, ModelError, unreadable
from kinship_daemon.hub.records import Repo
from kinship_daemon.ranges import FolderRanges, Ranges
from kinship_daemon.weights.descendant import Descendant
from kinship_daemon.weights.remote import Remote, check_fits, open_remote
from kinship_daemon.weights.sample.ancestry import Departure, departure
from kinship_daemon.weights.sample.outlines import Outlines
from kinship_daemon.weights.sample.plan import Plan, plan
from kinship_daemon.weights.sample.sketch import sketch
from kinship_daemon.weights.sample.take import BaseSample, Sample, base_sample, take, take_local
from kinship_daemon.weights.sample.tokens import Tokens, UnknownTokens, aligned_rows

__all__ = ["Sampled", "Sampler", "Taken", "in_folder", "on_hub", "sampled"]

# Of a tokenizer, as a share of the sample's bytes: what is read stays well below 0.5 % of a model.
_TOKENIZER_SHARE = 0.5
# Larger files are no tokenizer's.
_HASHED_BYTES = 100_000_000


@dataclass(frozen=True, eq=False)
class Taken:
    """
    A sample, and what it does not speak of.

    Attributes:
        without_vocabulary: Why embeddings and head are left out; None where they are not.
    """

    sample: Sample
    without_vocabulary: str | None = None


def on_hub(repo: Repo, ranges: Ranges, name: str | None = None) -> Tokens:
    """
    A repo's headers and what is known of its tokenizer.

    Args:
        name: For messages; the repo's id by default.

    Raises:
        ModelError: No usable weights.
        Transient: They cannot be had now.
    """
    sizes = {file.path: file.size for file in repo.files}
    digests = {
        file.path: frozenset(
            f"{kind}:{digest}"
            for kind, digest in (("sha256", file.sha256), ("blob", file.blob))
            if digest is not None
        )
        for file in repo.files
    }
    return Tokens(open_remote(name or repo.id, ranges, sizes), sizes, digests)


def in_folder(folder: Path, name: str | None = None) -> Tokens:
    """
    The same of a folder.

    Raises:
        ModelError: No usable weights.
    """
    try:
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise unreadable(folder, error) from error
    source = open_remote(name or str(folder), FolderRanges(folder), sizes)
    return Tokens(source, sizes, _Digests(folder, sizes))


def sampled(
    planned: Plan,
    own: BaseSample,
    base: Tokens,
    model: Tokens,
    progress: Callable[[int], None] | None = None,
) -> Taken:
    """
    A model's sample, its vocabulary aligned with the base's where that can be told cheaply.

    Raises:
        ModelError: It is no descendant of the base, or broken.
        Transient: It cannot be had now.
    """
    source: Remote = check_fits(base.source, model.source)
    if not planned.vocabulary:
        return Taken(take(planned, own, source, progress=progress))
    try:
        rows = aligned_rows(base, model, int(_TOKENIZER_SHARE * planned.nbytes))
    except UnknownTokens as error:
        rest = planned.without_vocabulary()
        return Taken(take(rest, own, source, progress=progress), str(error))
    return Taken(take(planned, own, source, rows, progress))


@dataclass(frozen=True)
class Sampled:
    """What is kept of a sample: its compact vector, and how far it is from the base."""

    vector: bytes
    departure: Departure


@dataclass(frozen=True, eq=False)
class Sampler:
    """
    What a home compares samples by: the plan, and the base's own part of it.

    Attributes:
        outlines: Of the vectors that were compared so far.
    """

    plan: Plan
    base: Tokens
    base_sample: BaseSample
    outlines: Outlines = field(default_factory=Outlines)

    @classmethod
    def of(cls, folder: Path, fraction: float, kept: Path) -> Self:
        """
        The sampler of the base in a folder.

        Args:
            fraction: Part of the weights that is read.
            kept: File that keeps the base's part; written where it is not there or another's.

        Raises:
            KinshipError: The base cannot be sampled, which is the fault of none of the others.
        """
        try:
            base = in_folder(folder)
            made = plan(base.source.tensors, fraction=fraction)
            return cls(made, base, _base_kept(made, base, kept))
        except ModelError as error:
            raise KinshipError(
                f"the base cannot be sampled ({error}); set triage.sample: 0"
            ) from error

    def on_hub(self, model: Tokens) -> Sampled:
        """
        What is kept of a model of which only byte ranges are read.

        Raises:
            ModelError: It is no descendant of the base, or broken.
            Transient: It cannot be had now.
        """
        return self._kept(sampled(self.plan, self.base_sample, self.base, model).sample)

    def on_disk(self, model: Descendant) -> Sampled:
        """The same of a model or adapter in a folder."""
        return self._kept(take_local(self.plan, self.base_sample, model))

    def _kept(self, sample: Sample) -> Sampled:
        return Sampled(sketch(sample), departure(sample, self.base_sample))


def _base_kept(planned: Plan, base: Tokens, path: Path) -> BaseSample:
    try:
        return BaseSample.load(path, planned)
    except KinshipError:
        own = base_sample(planned, base.source)
        own.save(path)
        return own


class _Digests(Mapping[str, frozenset[str]]):
    """Hashes of a folder's files, both of a kind that a hub may tell; computed when asked for."""

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self._folder = folder
        self._sizes = sizes
        self._known: dict[str, frozenset[str]] = {}  # the base's are wanted for each descendant

    def __getitem__(self, file: str) -> frozenset[str]:
        if file not in self._known:
            self._known[file] = self._hashed(file)
        return self._known[file]

    def _hashed(self, file: str) -> frozenset[str]:
        if self._sizes[file] > _HASHED_BYTES:
            return frozenset()
        try:
            content = (self._folder / file).read_bytes()
        except OSError as error:
            raise unreadable(self._folder / file, error) from error
        sha256 = hashlib.sha256(content).hexdigest()
        # Git's object id, which the Hub tells of small files.
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return frozenset({f"sha256:{sha256}", f"blob:{blob.hexdigest()}"})

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)
