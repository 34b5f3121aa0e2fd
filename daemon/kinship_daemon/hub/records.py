"""What a hub tells and takes, the same for every kind of hub."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.ranges import Ranges

__all__ = [
    "Hub",
    "Listing",
    "RangesRefused",
    "Refused",
    "Repo",
    "RepoFile",
    "UnknownRepo",
]


class UnknownRepo(UsageError):
    """The hub has no such repo, or not at that revision (any more)."""


class Refused(KinshipError):
    """A server refuses us altogether: it does not take our token, or has a bad hour."""


class RangesRefused(KinshipError):
    """The server gives files only whole; ranges of them cannot be had."""


@dataclass(frozen=True)
class Listing:
    """
    One line of a listing.

    Attributes:
        revision: Names the exact content.
        modified: Last change, UTC.
        tags: As the hub gives them, its own `base_model:...` too.
        downloads: As the hub counts them, of late.
    """

    id: str
    revision: str
    modified: datetime
    tags: tuple[str, ...] = ()
    gated: bool = False
    private: bool = False
    disabled: bool = False
    downloads: int = 0
    likes: int = 0


@dataclass(frozen=True)
class RepoFile:
    """
    One file of a repo.

    Attributes:
        path: Relative, with `/`.
        size: Bytes.
        sha256: Of the content; None where the hub does not tell it.
        blob: Git's object id (sha1) of the content; None where the hub does not tell it, or
            where sha256 is known.
    """

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True)
class Repo:
    """
    A model repo at one revision.

    Attributes:
        card: Front matter of README.md; {} if there is none.
        files: Sorted by path.
        config: What is known of config.json before anything is fetched; may be less than all of it.
        problem: What is wrong with the repo itself (front matter or a file that cannot be read).
    """

    id: str
    revision: str
    modified: datetime
    card: Mapping[str, Any]
    files: tuple[RepoFile, ...]
    gated: bool = False
    private: bool = False
    disabled: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Hub(Protocol):
    """
    Where models come from and go to.

    Attributes:
        copies: Whether `fetch` makes a copy, or shows where the files are.
        is_anonymous: Whether it may hide repos from us because it does not know us.
        at_once: How many repos may be looked at at the same time, in threads.
    """

    copies: bool
    is_anonymous: bool
    at_once: int

    @property
    def name(self) -> str:
        """URL or folder, for messages."""

    def about(self) -> str:
        """
        One line for `doctor`: that the hub answers, and as whom it knows us.

        Raises:
            Transient: it does not answer.
        """

    def descendants(self, base: str, since: datetime | None = None) -> Iterator[Listing]:
        """
        Every repo that declares `base` as (one of) its base models, sorted by (modified, id).

        Args:
            since: Only those that changed then or later, and no more is read than that takes.

        Raises:
            Transient: the hub does not answer.
        """

    def passed_over(self, base: str, listed: Collection[str]) -> Iterator[tuple[str, str]]:
        """
        Repos that are no descendants of `base`, and why, in name order; of a server, none.

        Args:
            listed: Ids of descendants, which are not looked at again.

        Raises:
            Transient: The machine lacks what it takes to read them.
        """

    def repo(self, repo_id: str, revision: str | None = None) -> Repo:
        """
        One repo, pinned to a revision; the newest one by default.

        Raises:
            UnknownRepo: no such repo or revision.
            Unavailable: It cannot be had now (gated, disabled, an answer that nobody can read).
            Transient: the hub does not answer.
        """

    def ranges(self, repo: Repo) -> Ranges:
        """
        Pieces of a repo's files at its revision, without fetching the files.

        Raises:
            UnknownRepo, ModelError, Transient: as `repo`; also from each read.
        """

    def fetch(self, repo: Repo, into: Path, progress: Callable[[int], None] | None = None) -> Path:
        """
        A local folder with the repo's config, tokenizer and safetensors files, never a pickle.

        Args:
            into: Where copies are kept, one folder per repo and revision.
            progress: Gets the bytes that have arrived since its last call.

        Raises:
            ModelError: a file is missing, or its content is not what the hub declares.
            UnknownRepo, Transient: as `repo`.
        """

    def publish(self, repo_id: str, folder: Path, message: str, private: bool) -> tuple[str, str]:
        """
        Put a folder's files on the hub in one step; doing it again changes nothing.

        Returns:
            The revision and the URL they are found at.

        Raises:
            KinshipError: the repo exists with other content, or may not be written.
            Transient: the hub does not answer.
        """

    def may_write(self, namespace: str) -> str:
        """
        One line that says as whom we may publish under a namespace.

        Raises:
            UsageError: we may not, and what would work.
            Transient: the hub does not answer.
        """
