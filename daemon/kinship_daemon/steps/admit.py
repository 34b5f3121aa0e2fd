"""A candidate fetched and checked: from here on it is part of the population."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinship_daemon.context import Context
from kinship_daemon.errors import BudgetReached, ModelError
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.records import Repo, UnknownRepo
from kinship_daemon.hub.triage import Refusal, remarks
from kinship_daemon.ranking import ranked
from kinship_daemon.steps.ancestry import (
    ancestry,
    ancestry_again,
    ancestry_objection,
)
from kinship_daemon.steps.novelty import novelties_beside, novelty
from kinship_daemon.steps.objections import (
    check_again,
    copy_objection,
    objection,
    refuse,
    rule_objection,
    same_weights,
)
from kinship_daemon.steps.step import Step, Work
from kinship_daemon.steps.watch import GONE
from kinship_daemon.weights.adapter import is_adapter, refuse_other_base
from kinship_daemon.weights.checkpoint import Checkpoint, weights_identity
from kinship_daemon.weights.descendant import Descendant, descend
from kinship_daemon.weights.fit import refuse_other_calculation
from kinship_daemon.weights.sample.ancestry import Departure
from kinship_storage.jobs import job_key
from kinship_storage.lineage import Lineage
from kinship_storage.records import Candidate, File, Model

__all__ = ["STEP"]

_KIND = "admit"


@dataclass(frozen=True)
class Examined:
    """
    What examining a candidate gave: a reason to refuse it, or everything to admit it.

    Attributes:
        moved: Id of the model whose bytes these are under another name, which is gone.
        plan: Under which `vector`, its compact sample, was taken; None if it has one already.
        ancestry: What its sample tells against those who are known by now.
        novelties: Those of others who wait, which become less by its admission.
    """

    day: str
    refusal: Refusal | None = None
    license: str | None = None
    folder: Path | None = None
    weights: str | None = None
    parameters: int | None = None
    gated: bool = False
    files: tuple[File, ...] = ()
    remarks: tuple[str, ...] = ()
    moved: str | None = None
    plan: str | None = None
    vector: bytes | None = None
    novelty: float | None = None
    novelty_error: float | None = None
    ancestry: Mapping[str, Any] | None = None
    novelties: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def _plan(context: Context) -> Iterator[Work]:
    """
    Those who wait, the distant and popular first.

    The order is made again after each: one that is admitted makes its kin less novel. Where a limit
    is reached, only smaller ones follow.
    """
    tried: set[str] = set()
    too_large = math.inf
    while (candidate := _next(context, tried, too_large)) is not None:
        tried.add(candidate.model)
        model = context.lineage.require(candidate.model)
        work = Work({"repo": model.repo, "revision": model.revision}, model.id)
        yield work
        job = context.lineage.job(job_key(_KIND, work.inputs))
        if job is not None and job.status == "waiting" and "limits." in (job.reason or ""):
            too_large = candidate.bytes or 0


def _next(context: Context, tried: set[str], too_large: float) -> Candidate | None:
    """Whose turn it is, among those with fewer bytes of weights than `too_large`."""
    weights = context.config.admission
    waiting = ranked(
        context.lineage.candidates("seen", triaged=True),
        novelty=weights.novelty,
        popularity_weight=weights.popularity,
    )
    turns = (each.candidate for each in waiting if each.candidate.model not in tried)
    return next((turn for turn in turns if (turn.bytes or 0) < too_large), None)


def _run(context: Context, work: Work) -> Examined:
    model = context.lineage.require(str(work.model))
    assert model.repo is not None
    try:
        repo = context.hub.repo(model.repo, model.revision)
        # Once more: the rules and the others may have changed since it was triaged.
        if (ruled := rule_objection(context, repo)) is not None:
            check_again(context, repo, ruled)
        told = _ancestry(context, model)
        refusal = (
            ruled
            or objection(context, model, repo)
            or _too_large(context, repo)
            or ancestry_objection(context, told)
        )
        if refusal is not None:
            return Examined(context.today, refusal, declared(repo.card), ancestry=told)
        _check_day(context, model, repo)
        folder = context.files.fetch(model, repo, newcomer=True)
    except UnknownRepo:
        return Examined(context.today, GONE, model.license)
    try:
        found = _inspected(context, model, repo, folder, told)
    except ModelError:
        context.files.discard(folder)
        raise
    if found.refusal is not None:
        context.files.discard(folder)
    return found


def _ancestry(context: Context, model: Model) -> Mapping[str, Any] | None:
    """Against those who came after its triage."""
    candidate = context.lineage.candidate(model.id)
    if candidate is None or context.sampler is None:
        return None
    vector = context.lineage.sample(context.sampler.plan.identity, model.id)
    return ancestry_again(context, model.id, vector, candidate.ancestry)


def _inspected(
    context: Context, model: Model, repo: Repo, folder: Path, told: Mapping[str, Any] | None
) -> Examined:
    """What the fetched files themselves say; `told` of its ancestry, where it was sampled."""
    if is_adapter(folder):
        refuse_other_base(folder, context.base.id)
    elif not context.config.triage.allow_other_calculation:
        refuse_other_calculation(context.base_checkpoint, Checkpoint(folder, {}))
    found = descend(context.base_checkpoint, folder)
    hashes = {name: context.files.sha256(folder / name) for name in found.files}
    copy = same_weights(context, model, hashes)
    vector, departure = _vector(context, model, found)
    if vector is not None and departure is not None:
        told = ancestry(context, model.id, vector, departure)
    refusal = copy_objection(context, copy) or ancestry_objection(context, told)
    if refusal is not None:
        return Examined(context.today, refusal, declared(repo.card), ancestry=told)
    far, error = (None, None) if vector is None else novelty(context, vector)
    return Examined(
        context.today,
        license=declared(repo.card),
        folder=folder,
        weights=weights_identity(hashes),
        parameters=context.base.parameters,
        gated=repo.gated,
        files=tuple(
            File(path=name, size=(folder / name).stat().st_size, sha256=sha256)
            for name, sha256 in sorted(hashes.items())
        ),
        remarks=(*remarks(repo), *([found.differs] if found.differs else [])),
        moved=None if copy is None else copy.id,
        plan=None
        if context.sampler is None or departure is None
        else context.sampler.plan.identity,
        vector=vector,
        novelty=far,
        novelty_error=error,
        ancestry=told,
        novelties={} if vector is None else novelties_beside(context, vector),
    )


def _vector(
    context: Context, model: Model, found: Descendant
) -> tuple[bytes | None, Departure | None]:
    """Its compact vector; with how far it is from the base if it was taken now, as an adapter's."""
    if context.sampler is None:
        return None, None
    known = context.lineage.sample(context.sampler.plan.identity, model.id)
    if known is not None:
        return known, None
    sampled = context.sampler.on_disk(found)
    return sampled.vector, sampled.departure


def _too_large(context: Context, repo: Repo) -> Refusal | None:
    """One that no day's budget would ever hold is not left to wait for the next."""
    setting = "limits.download_gb_per_day"
    limit = context.config.limits.download_gb_per_day
    size = _size(repo) / 1e9
    if not context.hub.copies or size <= limit:
        return None
    return Refusal(f"{size:.1f} GB, more than {setting} {limit:g}", "settings", setting)


def _check_day(context: Context, model: Model, repo: Repo) -> None:
    limit = context.config.limits.download_gb_per_day
    size = _size(repo)
    if context.hub.copies and context.spent("download_bytes") + size > limit * 1e9:
        raise BudgetReached(
            f"limits.download_gb_per_day {limit:g} reached; {model.id} ({size / 1e9:.1f} GB) and "
            "those not smaller stay queued for the next day (UTC)",
            others_may_go_on=True,
        )


def _size(repo: Repo) -> int:
    return sum(file.size for file in wanted(repo.files))


def _commit(lineage: Lineage, work: Work, found: Examined) -> None:
    name = str(work.model)
    lineage.update_model(name, license=found.license)
    lineage.update_candidate(name, ancestry=found.ancestry)
    if found.refusal is not None:
        refuse(lineage, name, found.refusal, found.day)
        return
    if found.moved is not None:
        reason = f"its bytes are those of {name} now"
        lineage.move_model(found.moved, "refuse", reason=reason, cause="world")
        lineage.update_candidate(found.moved, gone=True)
    lineage.update_model(
        name,
        weights=found.weights,
        parameters=found.parameters,
        folder=str(found.folder),
        gated=found.gated,
    )
    lineage.add_files(name, found.files)
    lineage.move_model(name, "admit")
    if found.plan is not None and found.vector is not None:
        lineage.put_sample(found.plan, name, found.vector)
        lineage.update_candidate(name, novelty=found.novelty, novelty_error=found.novelty_error)
    for other, (far, error) in found.novelties.items():
        if other != name:
            lineage.update_candidate(other, novelty=far, novelty_error=error)


def _tell(context: Context, work: Work, found: Examined) -> None:
    name, say = str(work.model), context.report.event
    if found.refusal is not None:
        say("refused", f"{name}: {found.refusal.reason}", model=name)
        return
    for remark in found.remarks:
        say("warning", f"{name} {remark}", model=name)
    if found.moved is not None:
        say("moved", f"{found.moved} is {name} on the hub now", model=name)
    say("admit", f"{name} ({found.license or 'no licence'})", model=name)


STEP = Step(_KIND, "hub", _plan, _run, _commit, _tell, holds_up=False, feeds=True, repeats=True)
