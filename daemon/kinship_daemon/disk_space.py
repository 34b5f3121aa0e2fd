"""Room in the home: fetched fine-tunes make way for new ones, the least recently needed first."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kinship_daemon.errors import BudgetReached
from kinship_daemon.hub.files import place

if TYPE_CHECKING:
    from kinship_daemon.daemon import Daemon

__all__ = ["NoRoom", "bytes_on_disk", "make_room", "mark_needed"]

# What else becomes larger meanwhile, such as the ledger, as a share of a model.
_GROWTH = 1.1


class NoRoom(BudgetReached):
    """limits.disk_gb is reached, and nothing that is kept can be done without."""


def make_room(d: Daemon, size: int, what: str, *, newcomer: bool = False) -> None:
    """
    Remove fetched fine-tunes until `size` bytes of `what` fit into limits.disk_gb.

    What a living recipe rests on stays, and so does what is at work now (`d.held`), what was never
    evaluated, and what the hub has no more. The others are fetched again when they are needed.

    Args:
        what: A model's id; what has arrived of it already is part of `size`.
        newcomer: It will be measured against everyone, one at a time of those who made room:
            leave room for the largest.

    Raises:
        NoRoom: that would not be enough; nothing is removed then.
    """
    over = d.home.used_bytes() + size - bytes_on_disk(d, what) - d.config.limits.disk_gb * 1e9
    if over <= 0 and not newcomer:
        return
    fetched = _folders(d)
    if newcomer and (over > 0 or None in fetched.values()):
        over += _GROWTH * max((_size(d, *each) for each in fetched.items()), default=0)
    if over <= 0:
        return
    leaving, freed = [], 0
    for folder in _in_order(d):
        if freed >= over:
            break
        leaving.append(folder)
        freed += _nbytes(folder)
    if freed < over:
        raise NoRoom(
            f"no room for {what} ({size / 1e9:.1f} GB) within limits.disk_gb "
            f"{d.config.limits.disk_gb:g}; raise the limit"
        )
    owners = {folder: model for model, folder in fetched.items()}
    for folder in leaving:
        _remove(d, folder, owners.get(folder))


def bytes_on_disk(d: Daemon, name: str) -> int:
    """Bytes of a fine-tune that are in the cache, whole or still arriving."""
    return sum(_nbytes(folder) for folder in _places(d, name))


def _remove(d: Daemon, folder: Path, owner: str | None) -> None:
    if owner is not None:
        # First: what a kill leaves of the folder is then nobody's.
        with d.lineage.transaction():
            d.lineage.put(f"size:{owner}", _nbytes(folder))
            d.lineage.put(f"folder:{owner}", None)
        d.report.event("evict", f"{owner} makes room; fetched again if needed", model=owner)
    shutil.rmtree(folder)


def mark_needed(d: Daemon, folder: Path) -> None:
    """Remember that a folder of the cache was needed just now."""
    if folder.is_relative_to(d.home.cache):
        moment = time.time_ns()  # the kernel's own stamp is coarser than two needs may lie apart
        os.utime(folder, ns=(moment, moment))


def _in_order(d: Daemon) -> Iterator[Path]:
    """Folders of the cache that may go: leftovers of nobody, then the least recently needed."""
    owned = _folders(d)
    kept = {owned[name] for name in _needed(d) if name in owned} | {d.base_folder}
    kept |= {folder for name in d.held for folder in _places(d, name)}
    admitted = {owned[model.id] for model in d.lineage.models("finetune", "admitted")}
    found = [folder for folder in d.home.cache.glob("*/*") if folder.is_dir()]
    going = [folder for folder in found if folder not in kept]
    yield from sorted(going, key=lambda f: (f in admitted, f.stat().st_mtime_ns, f.name))


def _folders(d: Daemon) -> dict[str, Path | None]:
    """Where fine-tunes lie, by id; None where they made room for others."""
    found: dict[str, Path | None] = {}
    for model in d.lineage.models("finetune", ("admitted", "quarantined")):
        known = d.lineage.get(f"folder:{model.id}")
        if known is not None or model.status == "admitted":
            found[model.id] = None if known is None else Path(str(known))
    return found


def _size(d: Daemon, name: str, folder: Path | None) -> int:
    """Bytes that a fine-tune takes, or took before it made room."""
    return int(d.lineage.get(f"size:{name}") or 0) if folder is None else _nbytes(folder)


def _places(d: Daemon, name: str) -> tuple[Path, ...]:
    """Where a fine-tune lies, or is arriving."""
    model = d.lineage.require(name)
    if model.repo is None or model.revision is None:
        return ()
    return place(d.home.cache, model.repo, model.revision)


def _needed(d: Daemon) -> set[str]:
    """Leaves of living recipes, and fine-tunes that could not be had again or wait for scores."""
    alive = [model.id for model in d.lineage.models("merge", "proposed")]
    last = d.lineage.last_generation()
    alive += () if last is None else last.decision.get("top") or ()
    alive += _to_publish(d)
    needed = set(alive)
    for name in alive:
        needed |= {each.id for each in d.lineage.ancestors(d.lineage.require(name))}
    needed |= {c.model for c in d.lineage.candidates("admitted") if c.gone}
    fingerprint = d.settings.fingerprint("selection")
    for model in d.lineage.models("finetune", "admitted"):
        if not d.lineage.scores(model.weights or "", split="selection", settings=fingerprint):
            needed.add(model.id)
    return needed


def _to_publish(d: Daemon) -> list[str]:
    """Merges that passed the gate and are on their way; one that may not go there is not."""
    passed = [gate.model for gate in d.lineage.gates() if gate.passed]
    return [
        name
        for name in passed
        if d.lineage.publication(name) is None and d.lineage.get(f"not_published:{name}") is None
    ]


def _nbytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
