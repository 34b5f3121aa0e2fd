"""What a server's answers mean: refusals in one line each, and whether a file is what it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from kinship_daemon.errors import KinshipError, Transient, Unavailable
from kinship_daemon.foreign.json_text import parse_json
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.shown import shown
from kinship_daemon.hub.quota import asked_wait, origin
from kinship_daemon.hub.records import Refused, RepoFile, UnknownRepo

__all__ = ["Request", "check_unchanged", "message_of"]

_AGAIN = {408, 425, 429}
# A repo of 60,000 files is described in less.
_LIMITS = Limits(nbytes=64_000_000, depth=64, items=900_000)
_REFUSAL = Limits(nbytes=1_000_000, depth=16, items=10_000)
_DISABLED = "Access to this resource is disabled."


@dataclass(frozen=True)
class Request:
    """
    What is asked of whom, for the words of an error.

    Attributes:
        url: For messages, so without its query.
        repo_id: Empty if it is about none.
        writes: Whether it is to change something there.
        token: Sent along; never shown.
    """

    endpoint: str
    url: str
    repo_id: str = ""
    revision: str | None = None
    writes: bool = False
    token: str | None = field(default=None, repr=False)

    def refusal(
        self, status: int, headers: Mapping[str, str], said: str = "", url: str | None = None
    ) -> KinshipError:
        """
        An answer that is none, as one of our errors.

        Args:
            said: The message in its body.
            url: Where it came from in the end, if a redirect led elsewhere.
        """
        said = headers.get("x-error-message") or said
        if url is not None and origin(url) != origin(self.endpoint):
            return self._by_storage(status, headers)
        return (
            self._by_code(headers.get("x-error-code", ""), said)
            or self._by_status(status, headers, said)
            or self._refused(f"{self.url} answered {status} {self.line(said)}".rstrip())
        )

    def parsed(self, data: bytes) -> Any:
        """
        An answer's JSON.

        Raises:
            Transient: It is none, such as the page of a proxy, or nobody could read it.
        """
        try:
            return parse_json(data, _LIMITS)
        except Malformed as error:
            if error.__cause__ is not None:
                raise self.no_json() from None
            # A number of ten thousand digits, a thousand brackets.
            kind = Unavailable if self.repo_id else Transient
            raise kind(f"{self.url} answers with JSON that cannot be read") from None

    def no_json(self) -> Transient:
        return Transient(f"{self.url} does not answer with JSON; is {self.endpoint} a Hub?")

    def unreachable(self, error: Exception) -> Transient:
        words = self.line(error) or type(error).__name__
        return Transient(
            f"{self.url} cannot be reached ({words}); "
            "check the network and --hub, or try again later"
        )

    def line(self, words: object) -> str:
        """Someone else's words as one short line, without our token or anyone's signature."""
        text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", " ".join(str(words).split()))
        return shown(text.replace(self.token, "***") if self.token else text)

    def _by_code(self, code: str, said: str) -> KinshipError | None:
        if code == "GatedRepo":
            return Unavailable(
                f"{self.repo_id} is gated: accept its terms at {self.endpoint}/{self.repo_id}, "
                "then use a token of that account"
            )
        if code == "RepoNotFound":
            return self._unknown()
        if code == "RevisionNotFound":
            return UnknownRepo(f"{self.endpoint}/{self.repo_id} has no revision {self.revision}")
        if code == "EntryNotFound":
            return Unavailable(f"{self.url} is listed, but not there")
        if said == _DISABLED:
            return Unavailable(f"{self.endpoint} has disabled {self.repo_id}")
        return None

    def _by_status(self, status: int, headers: Mapping[str, str], said: str) -> KinshipError | None:
        words = f"{self.url} answered {status} {self.line(said)}".rstrip()
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _AGAIN:
            return Transient(f"{words}; try again later", asked_wait(headers))
        if status == HTTPStatus.PRECONDITION_FAILED:
            return Transient(f"{self.url}: someone else committed in between; try again later")
        reads_repo = bool(self.repo_id) and not self.writes
        if reads_repo and status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            # The Hub says by a code what is missing; a proxy, or a hub at fault, does not.
            return Transient(f"{words} and not what is missing; is {self.endpoint} a Hub?")
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            # To read one repo is asked again: it may be a firewall, or an outage of accounts.
            words += "; use a token that may do this (HF_TOKEN, or `hf auth login`)"
            return Unavailable(words) if reads_repo else self._refused(words)
        # Without the Hub's own code nobody knows who answered, a firewall perhaps: asked again.
        return Unavailable(f"{words}; try again later") if reads_repo else None

    def _refused(self, words: str) -> KinshipError:
        return KinshipError(words) if self.repo_id or self.writes else Refused(words)

    def _by_storage(self, status: int, headers: Mapping[str, str]) -> KinshipError:
        # Mostly a signed address whose time is over: asked for again, it is a new one.
        return Transient(
            f"{self.url}: its storage server answered {status}; try again later",
            asked_wait(headers),
        )

    def _unknown(self) -> UnknownRepo:
        hint = "" if self.token else "; if it is private, set HF_TOKEN"
        return UnknownRepo(f"{self.endpoint} has no model {self.repo_id}{hint}")


def check_unchanged(request: Request, file: RepoFile, url: str, headers: Mapping[str, str]) -> None:
    """
    That an answer of the hub itself speaks of the file that was listed, by its hash and size.

    A storage server's tag is not looked at: what it means is the storage's own business (that of
    Xet is 64 hex digits, too, and no sha256).

    Raises:
        Unavailable: It is another file now; the next look at the hub shows it.
    """
    if origin(url) != origin(request.endpoint):
        return
    tag = headers.get("x-linked-etag") or headers.get("etag") or ""
    tag = tag.removeprefix("W/").strip('"').lower()
    size = headers.get("x-linked-size", "")
    resized = re.fullmatch(r"\d{1,19}", size) and int(size) != file.size
    if resized or (re.fullmatch(r"[0-9a-f]+", tag) and not _is_tag_of(tag, file)):
        raise Unavailable(f"{request.repo_id} {file.path}: changed on the hub since it was listed")


def _is_tag_of(tag: str, file: RepoFile) -> bool:
    """Whether a hash may be this file's: the same one, or one of a kind that we do not know."""
    if len(tag) == 64:
        return tag == file.sha256 or (file.sha256 is None and file.blob is None)
    return len(tag) != 40 or file.blob in {None, tag}


def message_of(body: bytes) -> str:
    """The error in a JSON answer, if there is one."""
    try:
        said = parse_json(body, _REFUSAL)
    except Malformed:
        return ""
    error = said.get("error") if isinstance(said, dict) else None
    return error if isinstance(error, str) else ""
