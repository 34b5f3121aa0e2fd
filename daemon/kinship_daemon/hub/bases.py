"""What `--base` may be: an alias, a repo, or a local folder."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from kinship_daemon.errors import UsageError
from kinship_daemon.hub.names import check_repo_id, check_revision, slug, user_path

__all__ = ["ALIASES", "Base", "cached_repo", "resolve_base"]

# The bases people merge most, by the repo that their fine-tunes declare.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "mistral-7b": "mistralai/Mistral-7B-v0.1",
        "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
        "qwen2.5-7b": "Qwen/Qwen2.5-7B",
        "qwen3-8b": "Qwen/Qwen3-8B-Base",
        "gemma-2-9b": "google/gemma-2-9b",
    }
)

# How much a name must be like an alias to be taken for a slip of the pen.
_ALIKE = 0.6
# How huggingface_hub's cache lays a repo out.
_CACHED = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})")


@dataclass(frozen=True)
class Base:
    """
    A base model as the user named it.

    Attributes:
        name: Safe as a file name; other bases have other names. Homes are named by it.
        id: What descendants declare as their base_model.
        revision: Commit, branch or tag; None for the newest.
        path: The folder, if the user named one; nothing is fetched then.
    """

    name: str
    id: str
    revision: str | None = None
    path: Path | None = None


def resolve_base(text: str) -> Base:
    """
    The base that a user means by an alias, `org/name`, `org/name@revision` or a folder.

    A folder stands for the repo that its last two path components name, as in
    `~/models/mistralai/Mistral-7B-v0.1`, or for the repo that it is a cached snapshot of. An
    existing folder goes before a repo of the same name.

    Raises:
        UsageError: none of these; names the nearest alias.
    """
    repo_id, at, revision = text.partition("@")
    path = user_path(text)
    if repo_id not in ALIASES and (
        text.startswith((".", "/", "~")) or (path / "config.json").is_file()
    ):
        return _folder(path)
    known = [*ALIASES, "demo"]
    # A name alone may be a model of the Hub's first days, such as gpt2, or an alias misspelt.
    alike = difflib.get_close_matches(repo_id.lower(), known, n=1, cutoff=_ALIKE)
    if repo_id in ALIASES or "/" in repo_id or not alike:
        return _repo(ALIASES.get(repo_id, repo_id), check_revision(revision) if at else None)
    raise UsageError(
        f"no base {text!r}; nearest: {alike[0]}; known: {', '.join(known)}; "
        "or give org/name[@revision] or a folder"
    )


def cached_repo(folder: Path) -> str | None:
    """The repo that a folder is a cached snapshot of; None if it is none."""
    cached = _CACHED.search(folder.resolve().as_posix())
    return f"{cached[1]}/{cached[2]}" if cached else None


def _repo(repo_id: str, revision: str | None) -> Base:
    aliases = {full: alias for alias, full in ALIASES.items()}
    name = aliases.get(check_repo_id(repo_id, bare=True)) or slug(repo_id)
    if revision is not None:
        # A branch may be called a/b, which no file can be.
        name += "@" + revision.replace("/", "--")
    return Base(name, repo_id, revision)


def _folder(path: Path) -> Base:
    if not (path / "config.json").is_file():
        raise UsageError(f"no model in {path}: it has no config.json")
    full = path.resolve()
    mark = hashlib.sha256(str(full).encode()).hexdigest()[:8]
    if cached := _CACHED.search(full.as_posix()):
        return Base(f"{cached[2]}-{mark}", f"{cached[1]}/{cached[2]}", cached[3], full)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", full.name).strip(".-") or "base"
    return Base(f"{name}-{mark}", f"{full.parent.name}/{full.name}", None, full)
