"""A candidate looked into from afar: card, files, headers and a sample, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from kinship_daemon.context import Context
from kinship_daemon.errors import ModelError, Transient, about
from kinship_daemon.hub.files import is_adapter, weight_files
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.look_ahead import LookAhead
from kinship_daemon.hub.records import RangesRefused, Repo, UnknownRepo
from kinship_daemon.hub.triage import Refusal
from kinship_daemon.ranking import popularity
from kinship_daemon.sampling import Sampled, in_folder, on_hub
from kinship_daemon.steps.ancestry import ancestry, ancestry_objection, ancestry_remark
from kinship_daemon.steps.novelty import novelty
from kinship_daemon.steps.objections import (
    check_again,
    objection,
    refuse,
    rule_objection,
    told_identity,
)
from kinship_daemon.steps.step import Step, Work
from kinship_daemon.steps.watch import GONE
from kinship_daemon.weights.fit import refuse_other_calculation
from kinship_daemon.weights.remote import check_fits
from kinship_storage.jobs import job_key
from kinship_storage.lineage import Lineage

__all__ = ["STEP"]

BUDGET = "candidates"


@dataclass(frozen=True)
class Seen:
    """
    What a look into a candidate gave.

    Attributes:
        day: Of the budget that it counts for.
        fault: What is wrong with its bytes.
        nbytes: Size of its weights, in bytes.
        ancestry: What the sample tells of it (`kinship_daemon.ancestry`).
        plan: Under which `vector`, its compact sample, was taken; None where none was.
        read: Bytes read for it.
    """

    day: str
    refusal: Refusal | None = None
    fault: ModelError | None = None
    license: str | None = None
    nbytes: int | None = None
    plan: str | None = None
    vector: bytes | None = None
    novelty: float | None = None
    novelty_error: float | None = None
    ancestry: Mapping[str, Any] | None = None
    read: int = 0


@dataclass(frozen=True)
class _Sample:
    """
    What was read of a candidate's weights.

    Attributes:
        sampled: None where no sample was taken.
        read: Bytes read for it.
        problem: Why it could not be sampled.
    """

    sampled: Sampled | None
    read: int
    problem: str | None = None


@dataclass(frozen=True)
class _Look:
    """What the hub says of a candidate; its sample, unless there was a reason to read none."""

    repo: Repo
    sample: _Sample | None = None


def _plan(context: Context) -> Iterator[Work]:
    """Everyone noticed, the most popular first, within the day's budget."""
    waiting = sorted(
        context.lineage.candidates("seen", triaged=False),
        key=lambda candidate: (-popularity(candidate), candidate.model),
    )
    limit = context.config.limits.candidates_per_day
    left = max(0, limit - round(context.spent(BUDGET)))
    turns = [_work(context, candidate.model) for candidate in waiting[:left]]
    if not turns:
        return
    ready = [work for work in turns if _may_start(context, work)]
    numbers = {work.model: number for number, work in enumerate(ready)}
    admitted = {model.weights for model in context.lineage.models(status="admitted")}
    with (
        closing(
            LookAhead([_look(context, w, admitted) for w in ready], context.hub.at_once)
        ) as looks,
        context.progress("triage", len(turns), "candidates") as advance,
    ):
        for work in turns:
            number = numbers.get(work.model)
            ahead = None if number is None else partial(looks.result, number)
            yield replace(work, ahead=ahead)
            advance(1)
    if len(waiting) > left:
        rest = f"{len(waiting) - left} stay queued for the next day (UTC)"
        message = f"limits.candidates_per_day {limit} reached; {rest}"
        context.report.event("warning", message)


def _work(context: Context, name: str) -> Work:
    model = context.lineage.require(name)
    return Work({"repo": model.repo, "revision": model.revision}, model.id)


def _may_start(context: Context, work: Work) -> bool:
    """Whether nothing speaks against a look now; who waits for the world is left in peace."""
    job = context.lineage.job(job_key(STEP.kind, work.inputs))
    if job is None or job.due is None:
        return job is None or job.status != "failed"
    return datetime.fromisoformat(job.due) <= context.now()


def _run(context: Context, work: Work) -> Seen:
    model = context.lineage.require(str(work.model))
    _ = context.sampler  # made here, once: the looks are in threads
    try:
        look = (work.ahead or _look(context, work, ()))()
        repo, sample = look.repo, look.sample
        nbytes = sum(file.size for file in weight_files(repo.files))
        licence, refusal = declared(repo.card), objection(context, model, repo)
        if refusal is not None or is_adapter(repo.files):
            # An adapter's blocks say nothing without all of it; it is small, and checked when
            # fetched.
            return Seen(context.today, refusal, license=licence, nbytes=nbytes)
        sample = sample or _sample(context, repo)
    except UnknownRepo:
        return Seen(context.today, GONE)
    except ModelError as error:
        return Seen(context.today, fault=error)
    if sample.problem is not None:
        context.report.event("warning", sample.problem, model=model.id)
    seen = Seen(context.today, license=licence, nbytes=nbytes, read=sample.read)
    if context.sampler is None or sample.sampled is None:
        return seen
    vector = sample.sampled.vector
    far, uncertain = novelty(context, vector)
    found = ancestry(context, model.id, vector, sample.sampled.departure)
    return replace(
        seen,
        refusal=ancestry_objection(context, found),
        plan=context.sampler.plan.identity,
        vector=vector,
        novelty=far,
        novelty_error=uncertain,
        ancestry=found,
    )


def _commit(lineage: Lineage, work: Work, seen: Seen) -> None:
    name = str(work.model)
    lineage.spend(BUDGET, seen.day, 1)
    if seen.refusal is not None:
        lineage.update_model(name, license=seen.license)
        refuse(lineage, name, seen.refusal, seen.day)
    if seen.fault is not None:
        fault = seen.fault
        reason = about(name, str(fault))
        lineage.move_model(
            name, "quarantine", reason=reason, cause=fault.cause, setting=fault.setting
        )
    if seen.vector is not None and seen.plan is not None:
        lineage.put_sample(seen.plan, name, seen.vector)
    lineage.update_candidate(
        name,
        triaged=True,
        bytes=seen.nbytes,
        read_bytes=seen.read,
        novelty=seen.novelty,
        novelty_error=seen.novelty_error,
        ancestry=seen.ancestry,
    )


def _tell(context: Context, work: Work, seen: Seen) -> None:
    if seen.refusal is not None:
        context.report.event("refused", f"{work.model}: {seen.refusal.reason}", model=work.model)
    if seen.fault is not None:
        facts = {"model": work.model, "cause": seen.fault.cause}
        words = about(str(work.model), str(seen.fault))
        context.report.event("quarantine", f"{work.model}: {words}", **facts)
    remark = ancestry_remark(seen.ancestry)
    if remark is not None and seen.refusal is None:
        context.report.event("warning", f"{work.model}: {remark}", model=work.model)


STEP = Step("triage", "hub", _plan, _run, _commit, _tell, holds_up=False, repeats=True)


def _look(context: Context, work: Work, admitted: Collection[str | None]) -> Callable[[], _Look]:
    """
    A look at one candidate, for any thread: it asks the hub alone, and nothing of the lineage.

    Args:
        admitted: Weights of which a copy need not be sampled.
    """
    repo_id, revision = work.inputs["repo"], work.inputs["revision"]

    def look() -> _Look:
        repo = context.hub.repo(repo_id, revision)
        refusal = rule_objection(context, repo)
        if refusal is not None:
            check_again(context, repo, refusal)
        if refusal or is_adapter(repo.files) or told_identity(repo) in admitted:
            return _Look(repo)
        return _Look(repo, _sample(context, repo))

    return look


def _sample(context: Context, repo: Repo) -> _Sample:
    """
    A candidate's compact vector; its headers are checked in any case.

    No hash says whether a range arrived as it was sent. A wrong bit in a block moves the estimate
    by a trifle; one in a header makes a good model look broken. So that has to be seen twice.

    Raises:
        ModelError: It does not fit the base, or is broken.
        Transient: It looks broken in another way each time.
    """
    try:
        return _sampled(context, repo)
    except ModelError as error:
        if not context.hub.copies:
            raise  # what is on this disk does not arrive
        found = str(error)
    try:
        return _sampled(context, repo)
    except ModelError as error:
        if str(error) == found:
            raise
        raise Transient(f"{repo.id} never reads the same: {found}; {error}") from None


def _sampled(context: Context, repo: Repo) -> _Sample:
    with closing(context.hub.ranges(repo)) as ranges:
        try:
            tokens = on_hub(repo, ranges)
            if not context.config.triage.allow_other_calculation:
                refuse_other_calculation(context.base_checkpoint, tokens.source)
            if context.sampler is not None:
                return _Sample(context.sampler.on_hub(tokens), ranges.bytes_read)
            check_fits(in_folder(context.base_folder).source, tokens.source)
        except RangesRefused as error:
            problem = f"{repo.id} is not sampled: {error}"
            return _Sample(None, ranges.bytes_read, problem)
        return _Sample(None, ranges.bytes_read)
