"""The base of a home: fetched where it is not here, written down once and held to ever after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.file_cache import FileHashes
from kinship_daemon.home import Home
from kinship_daemon.hub.bases import Base
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.front_matter import front_matter
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.records import Hub, Repo
from kinship_daemon.report import Reporter
from kinship_daemon.weights.checkpoint import Checkpoint, weights_identity
from kinship_storage.lineage import Lineage
from kinship_storage.records import File, Model

__all__ = ["base_here", "base_repo", "known_base"]


def known_base(lineage: Lineage) -> Model | None:
    """As written down at the first start; None before."""
    return next(iter(lineage.models(kind="base")), None)


def base_repo(base: Base, hub: Hub, home: Home, lineage: Lineage) -> Repo | None:
    """The repo to fetch the base from; None if its files are here, or are the user's own folder."""
    known = known_base(lineage)
    if known is not None and known.id != base.id:
        raise UsageError(
            f"home {home.path} is that of base {known.id}, not {base.id}; "
            "name its base with --base or --config, or use another --home"
        )
    if base.path is not None:
        return None
    if known is not None and known.folder is not None:
        files = [Path(known.folder) / file.path for file in lineage.files(known.id)]
        if all(file.is_file() for file in files):
            return None
    return hub.repo(base.id, known.revision if known else base.revision)


def base_here(
    base: Base,
    repo: Repo | None,
    hub: Hub,
    home: Home,
    lineage: Lineage,
    report: Reporter,
    sha256: FileHashes,
) -> tuple[Model, Path]:
    """The base's row and its folder, fetched where `repo` is given."""
    folder = base.path or _fetched(base, repo, hub, home, lineage, report)
    return _row(base, repo, folder, home, lineage, sha256), folder


def _fetched(
    base: Base, repo: Repo | None, hub: Hub, home: Home, lineage: Lineage, report: Reporter
) -> Path:
    if repo is None:
        return Path(str(lineage.require(base.id).folder))
    size = sum(file.size for file in wanted(repo.files))
    with report.progress(f"fetch {base.id}", size, "bytes") as advance:
        return hub.fetch(repo, home.cache, advance)


def _row(
    base: Base, repo: Repo | None, folder: Path, home: Home, lineage: Lineage, sha256: FileHashes
) -> Model:
    """The base's row: written down the first time, held to ever after."""
    known = known_base(lineage)
    checkpoint = Checkpoint.open(folder)
    hashes = {name: sha256(folder / name) for name in checkpoint.files}
    weights = weights_identity(hashes)
    if known is not None and known.weights != weights:
        raise KinshipError(
            f"the base in {folder} has changed since {home.path} was made; "
            "put the old one back, or use another --home"
        )
    if known is None:
        known = Model(
            id=base.id,
            kind="base",
            status="admitted",
            repo=base.id,
            revision=repo.revision if repo else weights,
            weights=weights,
            parameters=checkpoint.parameters,
            license=declared(repo.card if repo else _card(folder)),
        )
    files = [
        File(path=name, size=(folder / name).stat().st_size, sha256=value)
        for name, value in sorted(hashes.items())
    ]
    with lineage.transaction():
        lineage.add_model(known, files)
        gated = known.gated if repo is None else repo.gated
        return lineage.update_model(base.id, folder=str(folder), gated=gated)


def _card(folder: Path) -> Mapping[str, Any]:
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return front_matter(text)[0]
