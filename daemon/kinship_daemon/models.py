"""Models named on the command line, a folder or a hub id, as folders of files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon import demo
from kinship_daemon.errors import UsageError
from kinship_daemon.hub.bases import cached_repo, resolve_base
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.names import user_path
from kinship_daemon.hub.open import open_hub
from kinship_daemon.report import reporter

__all__ = [
    "DEFAULT_HUB",
    "Found",
    "cache_folder",
    "fetch_from",
    "find_base",
    "find_models",
    "hub_for",
]

DEFAULT_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Found:
    """
    A model by the name the user gave it, and where its files lie.

    Attributes:
        repo: Its id on a hub; None where that is not known.
    """

    name: str
    folder: Path
    repo: str | None = None


def hub_for(base: str | None, hub: str | None) -> str:
    """The hub that ids are looked up on: the one named, else the base's own."""
    if hub is not None and hub != "demo":
        return hub
    return str(demo.HUB) if "demo" in (base, hub) else DEFAULT_HUB


def find_base(text: str, hub: str | None) -> Found:
    """
    The base that an alias, id, folder or `demo` names.

    Raises:
        UsageError: there is no such base.
    """
    if text == "demo":
        return find_models([demo.BASE], text, hub)[0]
    base = resolve_base(text)
    if base.path is not None:
        return Found(text, base.path, cached_repo(base.path))
    return Found(text, _fetch(base.id, base.revision, hub_for(text, hub)), base.id)


def find_models(names: Sequence[str], base: str | None, hub: str | None) -> list[Found]:
    """
    Folders as they are; everything else from the hub, kept in the user's cache directory.

    Args:
        base: The base given beside them; with `demo`, ids are those of the demo's hub.

    Raises:
        UsageError: a name is given twice, or is neither a folder nor on the hub.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{twice[0]} is named twice; name each model once")
    return [_find(name, hub_for(base, hub)) for name in names]


def _find(name: str, hub: str) -> Found:
    folder = user_path(name)
    if folder.is_dir():
        return Found(name, folder, cached_repo(folder))
    if folder.is_absolute() or name.startswith("."):
        raise UsageError(f"no folder {name}")
    repo, _, revision = name.partition("@")
    return Found(name, _fetch(repo, revision or None, hub), repo)


def fetch_from(hub: str | None, repo: str, revision: str) -> Path:
    """A revision's files from a home's hub, kept in the user's cache directory."""
    return _fetch(repo, revision, hub or DEFAULT_HUB)


def _fetch(repo_id: str, revision: str | None, where: str) -> Path:
    hub = open_hub(where)
    repo = hub.repo(repo_id, revision)
    size = sum(file.size for file in wanted(repo.files))
    report = reporter(log_json=False, stream=sys.stderr)
    with report.progress(f"fetch {repo_id}", size, "bytes") as advance:
        return hub.fetch(repo, cache_folder(), advance)


def cache_folder() -> Path:
    """Where what is fetched outside a home is kept (XDG base directory specification)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "kinship-daemon"
