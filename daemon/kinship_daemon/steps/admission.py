"""From a candidate that waits to a row in the Gram ledger: admit, relate."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import KinshipError, ModelError, Transient
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.records import Repo
from kinship_daemon.hub.triage import refusal, remarks
from kinship_daemon.ranking import ranked
from kinship_daemon.room import NoRoom
from kinship_daemon.steps.making import residents
from kinship_daemon.steps.triage import architectures, nearer, novelty, twin
from kinship_daemon.steps.watching import rules
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
    the hub will not give now waits for the next poll, and the others go on.

    Raises:
        Transient: it gave none of them.
    """
    tried: set[str] = set()
    away: list[Transient] = []
    while (candidate := _next(d, tried)) is not None:
        tried.add(candidate.model)
        try:
            _admit_one(d, d.lineage.require(candidate.model))
        except (NoRoom, _SpentError) as error:
            d.report.event("warning", str(error), model=candidate.model)
            return
        except LineageError:
            raise
        except KinshipError as error:
            away += [error] if isinstance(error, Transient) else []
            d.report.event("warning", f"{candidate.model} waits: {error}", model=candidate.model)
    if away and len(away) == len(tried):
        raise away[-1]


def _next(d: Daemon, tried: set[str]) -> Candidate | None:
    """Whose turn it is."""
    weights = d.config.admission
    waiting = ranked(
        d.lineage.candidates("seen", triaged=True),
        novelty=weights.novelty,
        popularity_weight=weights.popularity,
    )
    return next((r.candidate for r in waiting if r.candidate.model not in tried), None)


def _admit_one(d: Daemon, model: Model) -> None:
    done = d.step(
        "admit",
        _admission_key(model),
        model,
        lambda: _examine(d, model),
        lambda found: _record_admission(d, model, found),
    )
    if done and d.lineage.require(model.id).status == "admitted":
        nearer(d, model.id)


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
    repo = d.hub.repo(model.repo, model.revision)
    # Once more: the rules may have changed since it was triaged.
    reason = refusal(repo, d.base.id, rules(d), architectures=architectures(d))
    if reason is not None:
        return _Found(refusal=reason, license=declared(repo.card))
    _check_day(d, model, sum(file.size for file in wanted(repo.files)))
    folder = d.fetch(model, repo)
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
            "those after it wait for the next day (UTC), which has its own"
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
    if found.vector is not None and d.sampler is not None:
        far, error = novelty(d, found.vector)
        d.lineage.put_sample(d.sampler.plan.identity, model.id, found.vector)
        d.lineage.update_candidate(model.id, novelty=far, novelty_error=error)
    if found.gated:
        d.lineage.put(f"gated:{model.id}", True)
    for remark in found.remarks:
        d.report.event("warning", f"{model.id} {remark}", model=model.id)
    d.report.event("admit", f"{model.id} ({found.license or 'no licence'})", model=model.id)


def _leaves(d: Daemon) -> dict[str, Model]:
    """Fine-tunes that are admitted, or that a living merge rests on, by weights identity."""
    merges = d.lineage.models(kind="merge", status="admitted")
    merges += d.lineage.models(kind="merge", status="proposed")
    needed = {leaf.id for merge in merges for leaf in d.lineage.ancestors(merge)}
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
        if d.lineage.get(f"folder:{leaf.id}") is None:
            continue  # it made room for others; it is looked at when it is needed again
        try:
            d.leaf_folder(leaf)
        except ModelError as error:
            d.quarantine(leaf, str(error), f"keep:{leaf.weights}")
            for merge in d.population_models("admitted", "proposed"):
                if leaf.id in {ancestor.id for ancestor in d.lineage.ancestors(merge)}:
                    reason = f"cannot be made any more: {leaf.id}: {error}"
                    d.quarantine(merge, reason, f"keep:{merge.weights}")


def _extend(d: Daemon, new: Mapping[str, Model]) -> None:
    def work() -> gram.Ledger:
        with d.holding(*(model.id for model in new.values())):
            parts = list(_measured(d, d.descendants(new)))
        kept = {row for part in parts for row in part.rows}
        return d.ledger.keep(tuple(kept)).joined(parts)

    def record(ledger: gram.Ledger) -> None:
        ledger.save(d.home.ledger)
        d.use_ledger(ledger)

    # A ledger that someone removed is computed again, so what counts is its rows, not the job.
    d.step("ledger", "ledger:" + ",".join(sorted(new)), None, work, record, redo=True)


def _measured(d: Daemon, young: Mapping[str, Descendant]) -> Iterator[gram.Ledger]:
    """
    Newcomers measured against everyone in the ledger: all on disk in one pass.

    Each that made room for others has a pass of its own: it has to be fetched again, which takes
    longer than to read the base once more.
    """
    away = {row: model for row in d.ledger.rows if (model := _away(d, row)) is not None}
    here = residents(d, [row for row in d.ledger.rows if row not in away])
    yield _pass(d, here, young)
    for row, model in away.items():
        with d.holding(model.id):
            try:
                d.leaf_folder(model)
            except ModelError as error:
                d.report.event("warning", f"left out of the ledger: {error}", model=model.id)
                continue
            yield _pass(d, {row: model}, young)


def _away(d: Daemon, row: str) -> Model | None:
    """The model of a row that made room for others; None if its files lie here."""
    models = d.lineage.by_weights(row)
    if any(d.lineage.get(f"folder:{model.id}") is not None for model in models):
        return None
    return next(iter(models), None)


def _pass(d: Daemon, known: Mapping[str, Model], young: Mapping[str, Descendant]) -> gram.Ledger:
    base = d.base_checkpoint
    with d.holding(*(model.id for model in known.values())):
        old = d.descendants(known)
        total = base.nbytes + sum(c.nbytes for c in (*old.values(), *young.values()))
        label = f"kinship of {len(old) + len(young)} models"
        with d.report.progress(label, total, "bytes") as advance:
            return gram.extend(
                d.ledger.keep(tuple(old)), base, old, young, device=d.device, progress=advance
            )
