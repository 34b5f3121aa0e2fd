"""Names from outside, checked before they become paths or URLs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from kinship_daemon.errors import UsageError
from kinship_daemon.foreign.shown import shown

__all__ = [
    "check_endpoint",
    "check_repo_id",
    "check_revision",
    "check_token",
    "is_repo_id",
    "slug",
    "user_path",
]

# The Hub's own rules: 1 to 96 of these per part, not at either end '.' or '-', no '--' or '..'.
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9_])?")


def check_repo_id(text: str, *, bare: bool = False) -> str:
    """
    `text` itself, if it is an org/name that is safe as a path.

    Args:
        bare: A name alone is fine, too, as of the Hub's oldest models (`gpt2`).

    Raises:
        UsageError: It is not.
    """
    if not is_repo_id(text, bare=bare):
        raise UsageError(
            f"'{shown(text)}' is not a repo id; "
            "expected org/name of letters, digits, '-', '_' and '.'"
        )
    return text


def is_repo_id(text: str, *, bare: bool = False) -> bool:
    parts = text.split("/")
    sound = len(parts) in ({1, 2} if bare else {2}) and all(map(_PART.fullmatch, parts))
    return sound and ".." not in text and "--" not in text and not text.endswith(".git")


def check_revision(text: str) -> str:
    """
    `text` itself, if it can be a commit, branch or tag.

    Raises:
        UsageError: it cannot.
    """
    if not _REVISION.fullmatch(text) or ".." in text or "//" in text:
        raise UsageError(f"'{shown(text)}' is not a revision; expected a commit, branch or tag")
    return text


def check_endpoint(text: str) -> str:
    """
    A server's URL without its last slash.

    Raises:
        UsageError: it is none, or carries a password, which would end in every message.
    """
    try:
        parts = urlsplit(text)
        sound = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # brackets without an address in them, a port of nine digits
        sound = False
    if not sound or parts.query or parts.fragment:
        raise UsageError(
            f"'{shown(text)}' is not a hub; expected a URL such as https://huggingface.co"
        )
    if parts.username or parts.password:
        raise UsageError(f"a hub's URL carries no password ({parts.hostname}); use HF_TOKEN")
    return text.rstrip("/")


def check_token(text: str | None) -> str | None:
    """
    A token without the blanks around it; None if nothing is left.

    Raises:
        UsageError: it could not be sent. The message does not show it.
    """
    token = (text or "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise UsageError("the Hub token holds characters that no token has; copy it again")
    return token or None


def user_path(text: str) -> Path:
    """
    The file or folder that a user names, which need not be there.

    Raises:
        UsageError: it cannot be one, such as in the home of a user whom nobody knows.
    """
    try:
        path = Path(text).expanduser()
        path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{text[:80]!r} is neither a path nor a name: {reason}") from None
    return path


def slug(repo_id: str) -> str:
    """A repo id as one file name; no two ids share one, since '--' cannot occur in an id."""
    return check_repo_id(repo_id, bare=True).replace("/", "--")
