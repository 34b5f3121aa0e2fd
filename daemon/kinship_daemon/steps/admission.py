"""From a line in a hub's listing to a row in the Gram ledger: notice, admit, relate."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import KinshipError, ModelError, Transient
from kinship_daemon.hub.files import wanted, weight_files
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.records import Repo
from kinship_daemon.hub.triage import Rules, refusal, remarks
from kinship_daemon.steps.making import ancestors, residents
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import read_json, weights_identity
from kinship_daemon.weights.descendant import descend
from kinship_storage.errors import LineageError
from kinship_storage.records import File, Model

__all__ = ["admit", "notice", "relate", "without_row"]


def notice(d: Daemon) -> None:
    """Ask the hub who descends from the base, and write down whoever is new."""
    ours = {publication.repo for publication in d.lineage.publications()}
    for listing in d.hub.descendants(d.base.id):
        if listing.id in ours or d.lineage.find(listing.id, listing.revision) is not None:
            continue
        taken = d.lineage.model(listing.id) is not None
        name = f"{listing.id}@{listing.revision[:8]}" if taken else listing.id
        model = Model(
            id=name,
            kind="finetune",
            status="seen",
            generation=0,
            repo=listing.id,
            revision=listing.revision,
        )
        with d.lineage.transaction():
            d.lineage.add_model(model)
            d.lineage.enqueue(_admission_key(model), "admit", name)
        d.report.event("notice", f"{name} descends from {d.base.id}", model=name)


def admit(d: Daemon) -> None:
    """
    Triage, fetch and check everyone noticed; each ends admitted, refused or quarantined.

    One that the hub will not give now waits for the next poll, and the others go on.

    Raises:
        Transient: it gave none of them.
    """
    waiting, away = d.lineage.models(status="seen"), []
    for model in waiting:
        try:
            _admit_one(d, model)
        except _NoRoom as error:
            d.report.event("warning", str(error), model=model.id)
            return
        except LineageError:
            raise
        except KinshipError as error:
            away.append(error)
            d.report.event("warning", f"{model.id} waits: {error}", model=model.id)
    if away and len(away) == len(waiting) and all(isinstance(e, Transient) for e in away):
        raise away[-1]


def _admit_one(d: Daemon, model: Model) -> None:
    d.step(
        "admit",
        _admission_key(model),
        model,
        lambda: _examine(d, model),
        lambda found: _record_admission(d, model, found),
    )


def relate(d: Daemon) -> None:
    """Give every admitted fine-tune its row in the ledger: one streaming read of everyone."""
    _drop_changed(d)
    while new := without_row(d):
        try:
            _extend(d, new)
        except gram.BadTensor as error:
            # It spoils only its own model: set that aside and go on with the others.
            culprit = new[error.identity]
            d.quarantine(culprit, str(error), _admission_key(culprit))


@dataclass(frozen=True)
class _Found:
    """What examining a candidate gave: a reason to refuse it, or everything to admit it."""

    refusal: str | None = None
    folder: Path | None = None
    weights: str | None = None
    parameters: int | None = None
    license: str | None = None
    gated: bool = False
    remarks: tuple[str, ...] = ()
    files: tuple[File, ...] = ()


def _admission_key(model: Model) -> str:
    return f"admit:{model.repo}@{model.revision}"


def _examine(d: Daemon, model: Model) -> _Found:
    assert model.repo is not None
    repo = d.hub.repo(model.repo, model.revision)
    rules = Rules(**d.config.triage.model_dump())
    architectures = read_json(d.base_folder / "config.json").get("architectures") or []
    reason = refusal(repo, d.base.id, rules, architectures=architectures)
    if reason is not None:
        return _Found(refusal=reason, license=declared(repo.card))
    if twin := _twin(d, model, {f.path: f.sha256 for f in weight_files(repo.files)}):
        # The hub has told every hash: nothing needs to be fetched to know it.
        return _Found(refusal=f"the same weights as {twin}", license=declared(repo.card))
    size = sum(file.size for file in wanted(repo.files))
    _check_disk(d, model, size)
    with d.fetching(model.id, size) as advance:
        folder = d.hub.fetch(repo, d.home.cache, advance)
    try:
        return _inspect(d, model, repo, folder)
    except ModelError:
        _discard(d, folder)
        raise


def _inspect(d: Daemon, model: Model, repo: Repo, folder: Path) -> _Found:
    """What the fetched files themselves say."""
    found = descend(d.base_checkpoint, folder)
    hashes = {name: d.sha256(folder / name) for name in found.files}
    weights = weights_identity(hashes)
    if twin := _twin(d, model, hashes):
        _discard(d, folder)
        return _Found(refusal=f"the same weights as {twin}", license=declared(repo.card))
    return _Found(
        folder=folder,
        weights=weights,
        parameters=d.base.parameters,
        gated=repo.gated,
        remarks=remarks(repo),
        license=declared(repo.card),
        files=tuple(
            File(path=name, size=(folder / name).stat().st_size, sha256=sha256)
            for name, sha256 in sorted(hashes.items())
        ),
    )


def _twin(d: Daemon, model: Model, hashes: Mapping[str, str | None]) -> str | None:
    """Another model in use with the very same weight files; None also where hashes are unknown."""
    known = {path: sha256 for path, sha256 in hashes.items() if sha256 is not None}
    if not known or len(known) < len(hashes):
        return None
    for twin in d.lineage.by_weights(weights_identity(known)):
        if twin.id != model.id and twin.status == "admitted":
            return twin.id
    return None


def _discard(d: Daemon, folder: Path) -> None:
    """Free what was fetched for nothing; a folder hub's own files are not ours to remove."""
    if folder.resolve().is_relative_to(d.home.cache.resolve()):
        shutil.rmtree(folder, ignore_errors=True)


class _NoRoom(KinshipError):
    """limits.disk_gb is reached; who was noticed waits."""


def _check_disk(d: Daemon, model: Model, size: int) -> None:
    budget = d.config.limits.disk_gb * 1e9
    if d.home.used_bytes() + size > budget:
        raise _NoRoom(
            f"no room for {model.id} ({size / 1e9:.1f} GB) within limits.disk_gb "
            f"{d.config.limits.disk_gb:g}; it and those after it wait; raise the limit"
        )


def _record_admission(d: Daemon, model: Model, found: _Found) -> None:
    if found.refusal is not None:
        d.lineage.update_model(
            model.id, status="refused", reason=found.refusal, license=found.license
        )
        d.report.event("refused", f"{model.id}: {found.refusal}", model=model.id)
        return
    d.lineage.update_model(
        model.id,
        status="admitted",
        weights=found.weights,
        parameters=found.parameters,
        license=found.license,
    )
    d.lineage.add_files(model.id, found.files)
    d.lineage.put(f"folder:{model.id}", str(found.folder))
    if found.gated:
        d.lineage.put(f"gated:{model.id}", True)
    for remark in found.remarks:
        d.report.event("warning", f"{model.id} {remark}", model=model.id)
    d.report.event("admit", f"{model.id} ({found.license or 'no licence'})", model=model.id)


def _leaves(d: Daemon) -> dict[str, Model]:
    """Fine-tunes that are admitted, or that a living merge rests on, by weights identity."""
    merges = d.lineage.models(kind="merge", status="admitted")
    merges += d.lineage.models(kind="merge", status="proposed")
    needed = {leaf.id for merge in merges for leaf in ancestors(d, merge)}
    return {
        leaf.weights: leaf
        for leaf in d.lineage.models(kind="finetune")
        if leaf.weights is not None and (leaf.status == "admitted" or leaf.id in needed)
    }


def without_row(d: Daemon) -> dict[str, Model]:
    """Fine-tunes that the ledger does not know, by weights identity."""
    leaves = _leaves(d)
    return {weights: leaf for weights, leaf in leaves.items() if weights not in d.ledger.rows}


def _drop_changed(d: Daemon) -> None:
    """Quarantine fine-tunes whose bytes are gone or changed, and all merges that rest on them."""
    for leaf in _leaves(d).values():
        try:
            d.leaf_folder(leaf)
        except ModelError as error:
            d.quarantine(leaf, str(error), f"keep:{leaf.weights}")
            for merge in d.population_models("admitted", "proposed"):
                if leaf.id in {ancestor.id for ancestor in ancestors(d, merge)}:
                    reason = f"cannot be made any more: {leaf.id}: {error}"
                    d.quarantine(merge, reason, f"keep:{merge.weights}")


def _extend(d: Daemon, new: Mapping[str, Model]) -> None:
    def work() -> gram.Ledger:
        known = residents(d)
        base = d.base_checkpoint
        old, young = d.descendants(known), d.descendants(new)
        total = base.nbytes + sum(c.nbytes for c in (*old.values(), *young.values()))
        label = f"kinship of {len(old) + len(young)} models"
        with d.report.progress(label, total, "bytes") as advance:
            return gram.extend(
                d.ledger.keep(tuple(known)), base, old, young, device=d.device, progress=advance
            )

    def record(ledger: gram.Ledger) -> None:
        ledger.save(d.home.ledger)
        d.use_ledger(ledger)

    # A ledger that someone removed is computed again, so what counts is its rows, not the job.
    d.step("ledger", "ledger:" + ",".join(sorted(new)), None, work, record, redo=True)
