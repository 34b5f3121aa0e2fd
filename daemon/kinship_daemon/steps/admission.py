"""From a line in a hub's listing to a row in the Gram ledger: notice, admit, relate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import KinshipError, ModelError
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.triage import Rules, refusal, remarks
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint, compare, read_json, weights_identity
from kinship_storage.records import File, Model

__all__ = ["admit", "notice", "relate", "without_row"]


def notice(d: Daemon) -> list[Model]:
    """Ask the hub who descends from the base, and write down whoever is new."""
    ours = {publication.repo for publication in d.lineage.publications()}
    new = []
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
        new.append(model)
    return new


def admit(d: Daemon) -> None:
    """Triage, fetch and check everyone noticed; each ends admitted, refused or quarantined."""
    for model in d.lineage.models(status="seen"):
        d.step(
            "admit",
            _admission_key(model),
            model,
            lambda model=model: _examine(d, model),  # type: ignore[misc]
            lambda found, model=model: _record_admission(d, model, found),  # type: ignore[misc]
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
    size = sum(file.size for file in wanted(repo.files))
    _check_disk(d, model, size)
    with d.fetching(model.id, size) as advance:
        folder = d.hub.fetch(repo, d.home.cache, advance)
    checkpoint = Checkpoint.open(folder)
    compare(d.base_checkpoint, checkpoint)
    hashes = {name: d.sha256(folder / name) for name in checkpoint.files}
    weights = weights_identity(hashes)
    twins = [twin.id for twin in d.lineage.by_weights(weights) if twin.id != model.id]
    return _Found(
        refusal=f"the same weights as {twins[0]}" if twins else None,
        folder=folder,
        weights=weights,
        parameters=checkpoint.parameters,
        gated=repo.gated,
        remarks=remarks(repo),
        license=declared(repo.card),
        files=tuple(
            File(path=name, size=(folder / name).stat().st_size, sha256=sha256)
            for name, sha256 in sorted(hashes.items())
        ),
    )


def _check_disk(d: Daemon, model: Model, size: int) -> None:
    budget = d.config.limits.disk_gb * 1e9
    if d.home.used_bytes() + size > budget:
        raise KinshipError(
            f"no room for {model.id} ({size / 1e9:.1f} GB) within limits.disk_gb "
            f"{d.config.limits.disk_gb:g}; raise it, or clear {d.home.cache}"
        )


def _record_admission(d: Daemon, model: Model, found: _Found) -> None:
    if found.refusal is not None:
        d.lineage.update_model(
            model.id, status="refused", reason=found.refusal, license=found.license
        )
        d.report.event("refused", f"{model.id}: {found.refusal}", model=model.id)
        return
    generations = d.lineage.generations()
    d.lineage.update_model(
        model.id,
        status="admitted",
        joined=generations[-1].number + 1 if generations else 1,
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
    """Admitted fine-tunes by weights identity, ordered by name."""
    leaves = d.lineage.models(kind="finetune", status="admitted")
    return {leaf.weights: leaf for leaf in leaves if leaf.weights is not None}


def without_row(d: Daemon) -> dict[str, Model]:
    return {weights: leaf for weights, leaf in _leaves(d).items() if weights not in d.ledger.rows}


def _drop_changed(d: Daemon) -> None:
    """Quarantine fine-tunes whose bytes are no longer those that the ledger speaks of."""
    for leaf in _leaves(d).values():
        try:
            d.leaf_folder(leaf)
        except ModelError as error:
            d.quarantine(leaf, str(error), _admission_key(leaf))


def _extend(d: Daemon, new: Mapping[str, Model]) -> None:
    def work() -> gram.Ledger:
        # A quarantined leaf keeps its row for as long as its bytes are there: merges rest on it.
        known = {row: leaf for row in d.ledger.rows if (leaf := _on_disk(d, row)) is not None}
        base = d.base_checkpoint
        old, young = d.checkpoints(known), d.checkpoints(new)
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


def _on_disk(d: Daemon, weights: str) -> Model | None:
    for leaf in d.lineage.by_weights(weights):
        try:
            d.leaf_folder(leaf)
        except ModelError:
            continue
        return leaf
    return None
