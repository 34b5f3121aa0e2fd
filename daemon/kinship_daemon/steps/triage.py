"""A candidate looked into from afar: card, files, headers and a sample, cheapest first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from kinship_daemon.context import Context
from kinship_daemon.errors import ModelError, Transient
from kinship_daemon.hub.files import is_adapter, weight_files
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.records import RangesRefused, Repo, UnknownRepo
from kinship_daemon.hub.triage import Refusal
from kinship_daemon.ranking import popularity
from kinship_daemon.sampling import in_folder, on_hub
from kinship_daemon.steps.novelty import novelty
from kinship_daemon.steps.objections import objection
from kinship_daemon.steps.step import Step, Work
from kinship_daemon.steps.watch import GONE
from kinship_daemon.weights.remote import check_fits
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
    read: int = 0


def _plan(context: Context) -> Iterator[Work]:
    """Everyone noticed, the most popular first, within the day's budget."""
    waiting = sorted(
        context.lineage.candidates("seen", triaged=False),
        key=lambda candidate: (-popularity(candidate), candidate.model),
    )
    limit = context.config.limits.candidates_per_day
    left = max(0, limit - round(context.spent(BUDGET)))
    turns = waiting[:left]
    with context.progress("triage", len(turns), "candidates") as advance:
        for candidate in turns:
            model = context.lineage.require(candidate.model)
            yield Work({"repo": model.repo, "revision": model.revision}, model.id)
            advance(1)
    if turns and len(waiting) > left:
        rest = f"{len(waiting) - left} stay queued for the next day (UTC)"
        message = f"limits.candidates_per_day {limit} reached; {rest}"
        context.report.event("warning", message)


def _run(context: Context, work: Work) -> Seen:
    model = context.lineage.require(str(work.model))
    assert model.repo is not None
    try:
        repo = context.hub.repo(model.repo, model.revision)
        nbytes = sum(file.size for file in weight_files(repo.files))
        licence, refusal = declared(repo.card), objection(context, model, repo)
        if refusal is not None or is_adapter(repo.files):
            # An adapter's blocks say nothing without all of it; it is small, and checked when
            # fetched.
            return Seen(context.today, refusal, license=licence, nbytes=nbytes)
        vector, read = _sample(context, repo)
    except UnknownRepo:
        return Seen(context.today, GONE)
    except ModelError as error:
        return Seen(context.today, fault=error)
    far, uncertain = (None, None) if vector is None else novelty(context, vector)
    plan = None if context.sampler is None else context.sampler.plan.identity
    return Seen(context.today, None, None, licence, nbytes, plan, vector, far, uncertain, read)


def _commit(lineage: Lineage, work: Work, seen: Seen) -> None:
    name = str(work.model)
    lineage.spend(BUDGET, seen.day, 1)
    if seen.refusal is not None:
        lineage.update_model(name, license=seen.license)
        refusal = seen.refusal
        lineage.move_model(
            name, "refuse", reason=refusal.reason, cause=refusal.cause, setting=refusal.setting
        )
    if seen.fault is not None:
        fault = seen.fault
        lineage.move_model(
            name, "quarantine", reason=str(fault), cause=fault.cause, setting=fault.setting
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
        gone=seen.refusal == GONE,
    )


def _tell(context: Context, work: Work, seen: Seen) -> None:
    if seen.refusal is not None:
        context.report.event("refused", f"{work.model}: {seen.refusal.reason}", model=work.model)
    if seen.fault is not None:
        facts = {"model": work.model, "cause": seen.fault.cause}
        context.report.event("quarantine", f"{work.model}: {seen.fault}", **facts)


STEP = Step("triage", "hub", _plan, _run, _commit, _tell, holds_up=False, repeats=True)


def _sample(context: Context, repo: Repo) -> tuple[bytes | None, int]:
    """
    A candidate's compact vector and the bytes read for it; its headers are checked in any case.

    No hash says whether a range arrived as it was sent. A wrong bit in a block moves the estimate
    by a trifle; one in a header makes a good model look broken. So that has to be seen twice.

    Raises:
        ModelError: It does not fit the base, or is broken.
        Transient: It looks broken in another way each time.
    """
    try:
        return _sampled(context, repo)
    except ModelError as error:
        found = str(error)
    try:
        return _sampled(context, repo)
    except ModelError as error:
        if str(error) == found:
            raise
        raise Transient(f"{repo.id} never reads the same: {found}; {error}") from None


def _sampled(context: Context, repo: Repo) -> tuple[bytes | None, int]:
    with closing(context.hub.ranges(repo)) as ranges:
        try:
            tokens = on_hub(repo, ranges)
            if context.sampler is not None:
                return context.sampler.on_hub(tokens), ranges.bytes_read
            check_fits(in_folder(context.base_folder).source, tokens.source)
        except RangesRefused as error:
            context.report.event("warning", f"{repo.id} is not sampled: {error}", model=repo.id)
        return None, ranges.bytes_read
