"""Hash again what the lineage claims: leaves, recipes, ledger rows, publications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinship_daemon.durable import hash_file
from kinship_daemon.errors import KinshipError
from kinship_daemon.home import Home
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import UnknownRepo
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.recipe import Recipe
from kinship_storage.lineage import Lineage

__all__ = ["Findings", "problems"]


@dataclass(frozen=True)
class Findings:
    """
    What was looked at, a line per claim that does not hold, and what could not be checked.

    Attributes:
        damaged: The lineage itself is, and so nothing else was looked at.
    """

    files: int
    recipes: int
    publications: int
    problems: tuple[str, ...]
    unchecked: tuple[str, ...] = ()
    damaged: bool = False


def problems(home: Home, lineage: Lineage) -> Findings:
    """Look at everything again, reading the files themselves and trusting no cached hash."""
    if damaged := lineage.damage():
        # What it claims of the files cannot be told from what the damage makes of it.
        return Findings(0, 0, 0, tuple(damaged), ("files, ledger and publications",), damaged=True)
    files, file_problems = _files(lineage)
    publications, publication_problems, unchecked = _publications(lineage)
    return Findings(
        files=files,
        recipes=len(lineage.models(kind="merge")),
        publications=publications,
        problems=(
            *lineage.verify(_identity),
            *file_problems,
            *_ledger(home, lineage),
            *publication_problems,
        ),
        unchecked=tuple(unchecked),
    )


def _identity(recipe: Mapping[str, Any], parents: Sequence[str]) -> str:
    return Recipe.from_json(recipe).identity(parents)


def _files(lineage: Lineage) -> tuple[int, list[str]]:
    hashed, found = 0, []
    for model in lineage.models(status="admitted"):
        folder = model.folder
        if folder is None and model.repo is not None:
            continue  # it made room for others, and is hashed when it is fetched again
        for file in lineage.files(model.id):
            path = Path(str(folder)) / file.path
            if folder is None or not path.is_file():
                remedy = "makes it again" if model.recipe else "fetches it again if it can"
                found.append(f"{model.id}: {path} is gone; the next run {remedy}")
                continue
            hashed += 1
            if hash_file(path) != file.sha256:
                found.append(f"{model.id}: {path} is not what was admitted (sha256 {file.sha256})")
    return hashed, found


def _ledger(home: Home, lineage: Lineage) -> list[str]:
    if not home.ledger.is_file():
        return []
    try:
        rows = Ledger.load(home.ledger).rows
    except KinshipError as error:
        return [str(error)]
    return [
        f"{home.ledger} has a row for {row}, which no model of the lineage has"
        for row in rows
        if not lineage.by_weights(row)
    ]


def _publications(lineage: Lineage) -> tuple[int, list[str], list[str]]:
    """How many were read, what is not as it was published, and what could not be looked at."""
    published = lineage.publications()
    if not published:
        return 0, [], []
    read, found, unchecked = 0, [], []
    hub = open_hub(str(lineage.get("hub")))
    for publication in published:
        what = f"{publication.model}: {publication.repo}"
        if not publication.url.startswith(hub.name):
            unchecked.append(f"{what} is on another hub, {publication.url}")
            continue
        try:
            repo = hub.repo(publication.repo)
        except UnknownRepo as error:
            # Who may not see a private repo is told the same as who asks for none.
            if hub.is_anonymous:
                unchecked.append(f"{what} is private or gone; set HF_TOKEN to look")
            else:
                found.append(f"{publication.model}: {error}")
            continue
        except KinshipError as error:
            unchecked.append(f"{what}: {error}")
            continue
        read += 1
        there = {file.path: file.sha256 for file in repo.files}
        for path, sha256 in sorted(publication.files.items()):
            if path not in there or there[path] not in {None, sha256}:
                found.append(f"{what}: {path} is not what was published (sha256 {sha256})")
    return read, found, unchecked
