"""A folder onto a hub in one commit: verified, repeatable, never over what is not ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kinship_daemon.errors import KinshipError, Transient
from kinship_daemon.hub.calls import Calls
from kinship_daemon.hub.files import intact, local_files
from kinship_daemon.hub.records import Repo, RepoFile, UnknownRepo

__all__ = ["Publisher", "Server"]


class Server(Protocol):
    """What publishing needs of a hub. Every call may raise Transient, and Stopped."""

    @property
    def name(self) -> str:
        """Its URL."""

    def look(self, repo_id: str, revision: str | None = None) -> tuple[Repo, str]:
        """A repo, and what it is called today; raises UnknownRepo."""

    def create(self, repo_id: str, private: bool) -> None:
        """An empty repo; one that is there already stays as it is."""

    def send(self, head: Repo, files: Mapping[str, Path], message: str) -> str:
        """One commit on top of `head`, not tried twice. Returns it."""


@dataclass(frozen=True)
class Publisher:
    """
    Publishes to one server.

    Attributes:
        sha256: Of a file, hex.
    """

    server: Server
    calls: Calls
    sha256: Callable[[Path], str]

    def publish(self, repo_id: str, folder: Path, message: str, private: bool) -> tuple[str, str]:
        """As `Hub.publish`. A repo that a killed run only created is taken up."""
        url = f"{self.server.name}/{repo_id}"
        head = self._head(repo_id) or self._created(repo_id, private)
        if not self._holds(head, folder):
            if any(_visible(file.path) for file in head.files):
                raise KinshipError(
                    f"{url} exists with other content; it is not ours to "
                    "replace: set another publish.namespace or publish.name, or remove it"
                )
            if private and not head.private:
                raise KinshipError(
                    f"{url} exists and is public, but publish.public is false; "
                    "make it private, or set publish.public: true"
                )
            head = self._commit(head, folder, message)
        return head.revision, url

    def _head(self, repo_id: str) -> Repo | None:
        try:
            head, today = self.server.look(repo_id)
        except UnknownRepo:
            return None
        url = f"{self.server.name}/{repo_id}"
        if today.casefold() != repo_id.casefold():
            raise KinshipError(
                f"{url} was renamed to {today}; set publish.namespace or publish.name to match"
            )
        if head.disabled:
            raise KinshipError(f"{url} is disabled by the hub; set another publish.name")
        return head

    def _created(self, repo_id: str, private: bool) -> Repo:
        self.server.create(repo_id, private)
        head = self._head(repo_id)
        if head is None:
            raise Transient(f"{self.server.name}/{repo_id} was created and is not there yet")
        return head

    def _holds(self, repo: Repo, folder: Path) -> bool:
        """Whether a repo has exactly a folder's files, by hashes and nothing less."""
        theirs = {file.path: file for file in repo.files if _visible(file.path)}
        return theirs.keys() == _content(folder).keys() and all(
            self._same(folder / file.path, file) for file in theirs.values()
        )

    def _same(self, path: Path, file: RepoFile) -> bool:
        known = file.sha256 is not None or file.blob is not None
        return known and intact(path, file, self.sha256)

    def _commit(self, head: Repo, folder: Path, message: str) -> Repo:
        """All files in one commit on top of `head`; read back and compared."""
        failures = 0
        while True:
            try:
                revision = self.server.send(head, _content(folder), message)
                break
            except Transient as error:
                # The commit may have landed although its answer did not reach us. If it lands
                # only now, the next try is refused, for its parent is no longer the head.
                now = self.server.look(head.id)[0]
                if self._holds(now, folder):
                    return now
                failures += 1
                pause = self.calls.backoff(failures)
                if pause is None or now.revision != head.revision:
                    raise
                self.calls.pause(error, pause)
        landed = self.server.look(head.id, revision)[0]
        if not self._holds(landed, folder):
            raise KinshipError(
                f"{self.server.name}/{head.id} at {revision} does not hold what was sent; "
                "remove that repo, then publish again"
            )
        return landed


def _visible(path: str) -> bool:
    """Files such as .gitattributes are the Hub's own doing."""
    return not any(part.startswith(".") for part in path.split("/"))


def _content(folder: Path) -> dict[str, Path]:
    """A folder's files by their path in it."""
    return local_files(folder, folder.resolve())
