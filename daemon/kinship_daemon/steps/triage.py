"""Candidates looked into from afar: card, files, headers and a sample, cheapest first."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import KinshipError, ModelError, Transient
from kinship_daemon.hub.files import is_adapter, weight_files
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.records import RangesRefused, Repo, UnknownRepo
from kinship_daemon.hub.triage import refusal
from kinship_daemon.ranking import popularity
from kinship_daemon.sampling import in_folder, on_hub
from kinship_daemon.steps.watching import rules
from kinship_daemon.weights.checkpoint import read_json, weights_identity
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.remote import check_fits
from kinship_daemon.weights.sample.sketch import compare
from kinship_storage.errors import LineageError
from kinship_storage.records import Model

__all__ = ["architectures", "nearer", "novelty", "triage", "twin"]

_BUDGET = "candidates"


def triage(d: Daemon) -> None:
    """
    Look into everyone noticed, the most popular first, within the day's budget.

    Each ends refused, set aside, or waits for admission with a novelty. One that the hub will not
    show now is looked into at the next poll.

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
    with d.report.progress("triage", len(waiting[:left]), "candidates") as advance:
        for candidate in waiting[:left]:
            try:
                _look(d, d.lineage.require(candidate.model))
            except Transient as error:
                away.append(error)
                d.report.event("warning", f"{candidate.model} waits: {error}")
                if error.retry_seconds is not None:
                    break  # the hub wants no calls for a while
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
    if away and len(away) == min(len(waiting), left):
        raise away[-1]


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
    d.step(
        "triage",
        f"triage:{model.repo}@{model.revision}",
        model,
        lambda: _examine(d, model),
        lambda seen: _record(d, model, seen),
        redo=True,
    )


def _examine(d: Daemon, model: Model) -> _Seen:
    assert model.repo is not None
    try:
        repo = d.hub.repo(model.repo, model.revision)
    except UnknownRepo:
        return _Seen("gone from the hub")
    weights = weight_files(repo.files)
    licence, nbytes = declared(repo.card), sum(file.size for file in weights)
    reason = refusal(repo, d.base.id, rules(d), architectures=architectures(d))
    if reason is None and (known := twin(d, model, {f.path: f.sha256 for f in weights})):
        # The hub has told every hash: nothing needs to be fetched to know it.
        reason = f"the same weights as {known}"
    if reason is not None or is_adapter(repo.files):
        # An adapter's pieces say nothing without all of it; it is small, and checked when fetched.
        return _Seen(reason, licence, nbytes)
    vector, read = _sample(d, repo)
    return _Seen(None, licence, nbytes, vector, read)


def _sample(d: Daemon, repo: Repo) -> tuple[bytes | None, int]:
    """
    A candidate's compact vector and the bytes read for it; its headers are checked in any case.

    Raises:
        ModelError: it does not fit the base, or is broken.
    """
    with closing(d.hub.parts(repo)) as parts:
        try:
            tokens = on_hub(repo, parts)
            if d.sampler is not None:
                return d.sampler.on_hub(tokens), parts.bytes_read
            check_fits(in_folder(d.base_folder).source, tokens.source)
        except RangesRefused as error:
            d.report.event("warning", f"{repo.id} is not sampled: {error}", model=repo.id)
        return None, parts.bytes_read


def _record(d: Daemon, model: Model, seen: _Seen) -> None:
    d.spend(_BUDGET, 1)
    if seen.refusal is not None:
        d.lineage.update_model(
            model.id, status="refused", reason=seen.refusal, license=seen.license
        )
        d.report.event("refused", f"{model.id}: {seen.refusal}", model=model.id)
    far = None if seen.vector is None else novelty(d, seen.vector)
    if seen.vector is not None and d.sampler is not None:
        d.lineage.put_sample(d.sampler.plan.identity, model.id, seen.vector)
    d.lineage.update_candidate(
        model.id,
        triaged=True,
        bytes=seen.nbytes,
        read_bytes=seen.read,
        novelty=None if far is None else far[0],
        novelty_error=None if far is None else far[1],
    )


def novelty(d: Daemon, vector: bytes) -> tuple[float, float]:
    """One minus a vector's highest kinship to the admitted fine-tunes, and its standard error."""
    admitted = [model.id for model in d.lineage.models("finetune", "admitted")]
    known = _vectors(d, admitted)
    if not known:
        return 1.0, 0.0
    near = compare(vector, list(known.values()), d.config.kinship.metric)
    value, place = near.value.nan_to_num(0.0).max(0)
    return 1.0 - float(value), float(near.error[place].nan_to_num(0.0))


def nearer(d: Daemon, admitted: str) -> None:
    """One more is admitted: those who wait are less novel than they were, where they are kin."""
    waiting = {c.model: c for c in d.lineage.candidates("seen", triaged=True)}
    own, known = _vectors(d, [admitted]), _vectors(d, list(waiting))
    if not own or not known:
        return
    near = compare(own[admitted], list(known.values()), d.config.kinship.metric)
    for name, value, error in zip(
        known, near.value.nan_to_num(0.0).tolist(), near.error.nan_to_num(0.0).tolist(), strict=True
    ):
        before = waiting[name].novelty
        if before is None or 1.0 - value < before:
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


def architectures(d: Daemon) -> list[str]:
    return read_json(d.base_folder / "config.json").get("architectures") or []
