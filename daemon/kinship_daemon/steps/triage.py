"""Candidates looked into from afar: card, files, headers and a sample, cheapest first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import KinshipError, ModelError, Transient
from kinship_daemon.hub.files import is_adapter, weight_files
from kinship_daemon.hub.licence import declared, most_restrictive
from kinship_daemon.hub.records import RangesRefused, Repo, UnknownRepo
from kinship_daemon.hub.triage import refusal
from kinship_daemon.ranking import popularity
from kinship_daemon.sampling import in_folder, on_hub
from kinship_daemon.steps.watching import GONE, rules
from kinship_daemon.weights.checkpoint import read_json, weights_identity
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.remote import check_fits
from kinship_daemon.weights.sample.sketch import compare
from kinship_storage.errors import LineageError
from kinship_storage.records import Model

__all__ = ["SILENT", "nearer", "novelty", "objection", "triage", "twin"]

_BUDGET = "candidates"
# So many in a row that the hub does not give, and the others need not wait for it either.
SILENT = 5


def triage(d: Daemon) -> Transient | None:
    """
    Look into everyone noticed, the most popular first, within the day's budget.

    Each ends refused, set aside, or waits for admission with a novelty. One that the hub will not
    show now is looked into at the next poll.

    Returns:
        Why the round was broken off: the hub wants no calls for a while.

    Raises:
        Transient: it showed none of them.
    """
    waiting = sorted(
        d.lineage.candidates("seen", triaged=False), key=lambda c: (-popularity(c), c.model)
    )
    if waiting:
        _sample_admitted(d)
    left = max(0, d.config.limits.candidates_per_day - d.spent(_BUDGET))
    away: list[Transient] = []
    shown = silent = 0
    with d.report.progress("triage", len(waiting[:left]), "candidates") as advance:
        for candidate in waiting[:left]:
            try:
                _look(d, d.lineage.require(candidate.model))
                shown, silent = shown + 1, 0
            except Transient as error:
                away.append(error)
                silent += 1
                d.report.event("warning", f"{candidate.model} waits: {error}")
                if error.retry_seconds is not None or silent == SILENT:
                    break
            except LineageError:
                raise
            except KinshipError as error:
                d.report.event("warning", f"{candidate.model} waits: {error}")
            advance(1)
    if len(waiting) > left:
        d.report.event(
            "warning",
            f"limits.candidates_per_day {d.config.limits.candidates_per_day} reached; "
            f"{len(waiting) - left} wait for the next day (UTC)",
        )
    if away and not shown:
        raise away[-1]
    return away[-1] if away and away[-1].retry_seconds is not None else None


def _sample_admitted(d: Daemon) -> None:
    """Vectors of those admitted by an older version, or under another triage.sample."""
    for model in d.lineage.models("finetune", "admitted"):
        known = d.lineage.get(f"folder:{model.id}")
        if d.sampler is None or known is None or _vectors(d, [model.id]):
            continue
        with suppress(ModelError):  # the ledger's next pass sets it aside, and says why
            vector = d.sampler.on_disk(descend(d.base_checkpoint, Path(str(known))))
            d.lineage.put_sample(d.sampler.plan.identity, model.id, vector)


@dataclass(frozen=True)
class _Seen:
    """
    What looking into a candidate gave.

    Attributes:
        nbytes: Of its weights files.
        vector: Its compact sample; None where none was taken.
        read: Bytes read for it.
    """

    refusal: str | None = None
    license: str | None = None
    nbytes: int | None = None
    vector: bytes | None = None
    read: int = 0


def _look(d: Daemon, model: Model) -> None:
    fits = d.step(
        "triage",
        f"triage:{model.repo}@{model.revision}",
        model,
        lambda: _examine(d, model),
        lambda seen: _record(d, model, seen),
        redo=True,
    )
    if not fits:  # a look all the same
        with d.lineage.transaction():
            d.spend(_BUDGET, 1)
            d.lineage.update_candidate(model.id, triaged=True)


def _examine(d: Daemon, model: Model) -> _Seen:
    assert model.repo is not None
    try:
        repo = d.hub.repo(model.repo, model.revision)
        weights = weight_files(repo.files)
        licence, nbytes = declared(repo.card), sum(file.size for file in weights)
        reason = objection(d, model, repo)
        if reason is not None or is_adapter(repo.files):
            # An adapter's pieces say nothing without all of it; it is small, and checked when
            # fetched.
            return _Seen(reason, licence, nbytes)
        vector, read = _sample(d, repo)
    except UnknownRepo:
        return _Seen(GONE)
    return _Seen(None, licence, nbytes, vector, read)


def objection(d: Daemon, model: Model, repo: Repo) -> str | None:
    """Why a candidate is not to be fetched, as far as its repo's card and files tell."""
    reason = refusal(repo, d.base.id, rules(d), architectures=_architectures(d))
    if reason is None and d.config.triage.only_publishable:
        licences = {d.base.id: d.base.license, repo.id: declared(repo.card)}
        blocked = most_restrictive(licences, d.config.publish.allow_licenses).blocked
        reason = None if blocked is None else f"{blocked} (triage.only_publishable)"
    hashes = {file.path: file.sha256 for file in weight_files(repo.files)}
    if reason is None and (known := twin(d, model, hashes)):
        # The hub has told every hash: nothing needs to be fetched to know it.
        reason = f"the same weights as {known}"
    return reason


def _sample(d: Daemon, repo: Repo) -> tuple[bytes | None, int]:
    """
    A candidate's compact vector and the bytes read for it; its headers are checked in any case.

    No hash says whether a piece arrived as it was sent. A wrong bit in a block moves the estimate
    by a trifle; one in a header makes a good model look broken. So that has to be seen twice.

    Raises:
        ModelError: it does not fit the base, or is broken.
        Transient: it looks broken in another way each time.
    """
    try:
        return _sampled(d, repo)
    except ModelError as error:
        found = str(error)
    try:
        return _sampled(d, repo)
    except ModelError as error:
        if str(error) == found:
            raise
        raise Transient(f"{repo.id} never reads the same: {found}; {error}") from None


def _sampled(d: Daemon, repo: Repo) -> tuple[bytes | None, int]:
    with closing(d.hub.ranges(repo)) as ranges:
        try:
            tokens = on_hub(repo, ranges)
            if d.sampler is not None:
                return d.sampler.on_hub(tokens), ranges.bytes_read
            check_fits(in_folder(d.base_folder).source, tokens.source)
        except RangesRefused as error:
            d.report.event("warning", f"{repo.id} is not sampled: {error}", model=repo.id)
        return None, ranges.bytes_read


def _record(d: Daemon, model: Model, seen: _Seen) -> None:
    d.spend(_BUDGET, 1)
    if seen.refusal is not None:
        d.lineage.update_model(
            model.id, status="refused", reason=seen.refusal, license=seen.license
        )
        d.report.event("refused", f"{model.id}: {seen.refusal}", model=model.id)
    far, error = (None, None) if seen.vector is None else novelty(d, seen.vector)
    if seen.vector is not None and d.sampler is not None:
        d.lineage.put_sample(d.sampler.plan.identity, model.id, seen.vector)
    d.lineage.update_candidate(
        model.id,
        triaged=True,
        bytes=seen.nbytes,
        read_bytes=seen.read,
        novelty=far,
        novelty_error=error,
        gone=seen.refusal == GONE,
    )


def novelty(d: Daemon, vector: bytes) -> tuple[float, float] | tuple[None, None]:
    """
    One minus a vector's highest kinship to the admitted fine-tunes, and its standard error.

    None where there is no kinship, as of a model that does not differ from the base.
    """
    admitted = [model.id for model in d.lineage.models("finetune", "admitted")]
    known = _vectors(d, admitted)
    if not known:
        return 1.0, 0.0
    near = compare(vector, list(known.values()), d.config.kinship.metric)
    value, place = near.value.nan_to_num(-math.inf).max(0)
    if value == -math.inf:
        return None, None
    return 1.0 - float(value), float(near.error[place].nan_to_num(0.0))


def nearer(d: Daemon, admitted: str) -> None:
    """One more is admitted: those who wait are less novel than they were, where they are kin."""
    waiting = {c.model: c for c in d.lineage.candidates("seen", triaged=True)}
    own, known = _vectors(d, [admitted]), _vectors(d, list(waiting))
    if not own or not known:
        return
    near = compare(own[admitted], list(known.values()), d.config.kinship.metric)
    errors = near.error.nan_to_num(0.0).tolist()
    for name, value, error in zip(known, near.value.tolist(), errors, strict=True):
        before = waiting[name].novelty
        if not math.isnan(value) and (before is None or 1.0 - value < before):
            d.lineage.update_candidate(name, novelty=1.0 - value, novelty_error=error)


def _vectors(d: Daemon, names: list[str]) -> dict[str, bytes]:
    if d.sampler is None:
        return {}
    plan = d.sampler.plan.identity
    found = {name: d.lineage.sample(plan, name) for name in names}
    return {name: vector for name, vector in found.items() if vector is not None}


def twin(d: Daemon, model: Model, hashes: Mapping[str, str | None]) -> str | None:
    """Another model in use with the very same weight files; None also where hashes are unknown."""
    known = {path: sha256 for path, sha256 in hashes.items() if sha256 is not None}
    if not known or len(known) < len(hashes):
        return None
    for other in d.lineage.by_weights(weights_identity(known)):
        if other.id != model.id and other.status == "admitted":
            return other.id
    return None


def _architectures(d: Daemon) -> list[str]:
    return read_json(d.base_folder / "config.json").get("architectures") or []
