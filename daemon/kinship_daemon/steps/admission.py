"""From a candidate that waits to a row in the Gram ledger: admit, relate."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.daemon import Daemon
from kinship_daemon.disk_space import NoRoom
from kinship_daemon.errors import KinshipError, ModelError, Transient
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.records import Repo, UnknownRepo
from kinship_daemon.hub.triage import remarks
from kinship_daemon.ranking import ranked
from kinship_daemon.steps.ledger_update import joined, leaves, measured, quarantine_leaf
from kinship_daemon.steps.triage import SILENT, nearer, novelty, objection, twin
from kinship_daemon.steps.watching import GONE
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import weights_identity
from kinship_daemon.weights.descendant import Descendant, descend
from kinship_storage.errors import LineageError
from kinship_storage.records import Candidate, File, Model

__all__ = ["admit", "relate", "without_row"]


def admit(d: Daemon) -> None:
    """
    Fetch and check those who wait, in order; each ends admitted, refused or quarantined.

    The order is made again after each: one that is admitted makes its kin less novel. One that
    the hub will not give now waits for the next poll, and the others go on; where a limit is
    reached, only smaller ones.

    Raises:
        Transient: it gave none of them.
    """
    tried: set[str] = set()
    away: list[Transient] = []
    silent = 0
    too_large = math.inf
    while (candidate := _next(d, tried, too_large)) is not None:
        tried.add(candidate.model)
        try:
            _admit_one(d, d.lineage.require(candidate.model))
            silent = 0
        except (NoRoom, _SpentError) as error:
            d.report.event("warning", str(error), model=candidate.model)
            too_large = candidate.bytes or 0
        except LineageError:
            raise
        except Transient as error:
            away.append(error)
            silent += 1
            d.report.event("warning", f"{candidate.model} waits: {error}", model=candidate.model)
            if error.retry_seconds is not None or silent == SILENT:
                break
        except KinshipError as error:
            d.report.event("warning", f"{candidate.model} waits: {error}", model=candidate.model)
    if away and len(away) == len(tried):
        raise away[-1]


def _next(d: Daemon, tried: set[str], too_large: float) -> Candidate | None:
    """Whose turn it is, among those with fewer bytes of weights than `too_large`."""
    weights = d.config.admission
    waiting = ranked(
        d.lineage.candidates("seen", triaged=True),
        novelty=weights.novelty,
        popularity_weight=weights.popularity,
    )
    turns = (each.candidate for each in waiting if each.candidate.model not in tried)
    return next((turn for turn in turns if (turn.bytes or 0) < too_large), None)


def _admit_one(d: Daemon, model: Model) -> None:
    d.step(
        "admit",
        _admission_key(model),
        model,
        lambda: _examine(d, model),
        lambda found: _record_admission(d, model, found),
        redo=True,  # it waits again, whatever came of it before
    )


def relate(d: Daemon) -> None:
    """Give every admitted fine-tune its row in the ledger: one streaming read of everyone."""
    _drop_changed(d)
    while new := _joining(d):
        try:
            _extend(d, new)
        except gram.BadTensor as error:
            # It spoils only its own model: set that aside and go on with the others.
            culprit = new[error.identity]
            d.quarantine(culprit, str(error), _admission_key(culprit))


@dataclass(frozen=True)
class _Found:
    """
    What examining a candidate gave: a reason to refuse it, or everything to admit it.

    Attributes:
        vector: Its compact sample, if it was taken only now.
    """

    refusal: str | None = None
    folder: Path | None = None
    vector: bytes | None = None
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
    try:
        repo = d.hub.repo(model.repo, model.revision)
        # Once more: the rules and the others may have changed since it was triaged.
        reason = objection(d, model, repo)
        if reason is not None:
            return _Found(refusal=reason, license=declared(repo.card))
        _check_day(d, model, sum(file.size for file in wanted(repo.files)))
        folder = d.fetch(model, repo, newcomer=True)
    except UnknownRepo:
        return _Found(refusal=GONE, license=model.license)
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
    if known := twin(d, model, hashes):
        _discard(d, folder)
        return _Found(refusal=f"the same weights as {known}", license=declared(repo.card))
    return _Found(
        folder=folder,
        vector=_vector(d, model, found),
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


def _vector(d: Daemon, model: Model, found: Descendant) -> bytes | None:
    """The compact vector of one that could not be sampled from afar, such as an adapter."""
    if d.sampler is None or d.lineage.sample(d.sampler.plan.identity, model.id) is not None:
        return None
    return d.sampler.on_disk(found)


def _discard(d: Daemon, folder: Path) -> None:
    """Free what was fetched for nothing; a folder hub's own files are not ours to remove."""
    if folder.resolve().is_relative_to(d.home.cache.resolve()):
        shutil.rmtree(folder, ignore_errors=True)


class _SpentError(KinshipError):
    """A daily budget is used up; who waits, waits on."""


def _check_day(d: Daemon, model: Model, size: int) -> None:
    limit = d.config.limits.download_gb_per_day
    if d.hub.copies and d.spent("download_bytes") + size > limit * 1e9:
        raise _SpentError(
            f"limits.download_gb_per_day {limit:g} reached; {model.id} ({size / 1e9:.1f} GB) and "
            "those not smaller wait for the next day (UTC), which has its own"
        )


def _record_admission(d: Daemon, model: Model, found: _Found) -> None:
    if found.refusal is not None:
        d.lineage.update_model(
            model.id, status="refused", reason=found.refusal, license=found.license
        )
        d.lineage.update_candidate(model.id, gone=found.refusal == GONE)
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
    if found.vector is not None and d.sampler is not None:
        far, error = novelty(d, found.vector)
        d.lineage.put_sample(d.sampler.plan.identity, model.id, found.vector)
        d.lineage.update_candidate(model.id, novelty=far, novelty_error=error)
    nearer(d, model.id)
    if found.gated:
        d.lineage.put(f"gated:{model.id}", True)
    for remark in found.remarks:
        d.report.event("warning", f"{model.id} {remark}", model=model.id)
    d.report.event("admit", f"{model.id} ({found.license or 'no licence'})", model=model.id)


def without_row(d: Daemon) -> dict[str, Model]:
    """Fine-tunes that the ledger does not know, by weights identity."""
    return {row: leaf for row, leaf in leaves(d).items() if row not in d.ledger.rows}


def _joining(d: Daemon) -> dict[str, Model]:
    """
    Who joins the ledger next, by weights identity: all whose files are here.

    Else one of those who made room for others: they have no row where someone removed the ledger.
    """
    new = without_row(d)
    present = {row: leaf for row, leaf in new.items() if d.lineage.get(f"folder:{leaf.id}")}
    if present:
        return present
    for row, leaf in new.items():
        try:
            d.leaf_folder(leaf)
        except ModelError as error:
            quarantine_leaf(d, leaf, error)
        else:
            return {row: leaf}
    return {}


def _drop_changed(d: Daemon) -> None:
    for leaf in leaves(d).values():
        if d.lineage.get(f"folder:{leaf.id}") is None:
            continue  # it made room for others; it is looked at when it is needed again
        try:
            d.leaf_folder(leaf)
        except ModelError as error:
            quarantine_leaf(d, leaf, error)


def _extend(d: Daemon, new: Mapping[str, Model]) -> None:
    def work() -> gram.Ledger:
        with d.holding(*(model.id for model in new.values())):
            return joined(d, list(measured(d, d.descendants(new))))

    def record(ledger: gram.Ledger) -> None:
        ledger.save(d.home.ledger)
        d.use_ledger(ledger)

    # A ledger that someone removed is computed again, so what counts is its rows, not the job.
    d.step("ledger", "ledger:" + ",".join(sorted(new)), None, work, record, redo=True)
