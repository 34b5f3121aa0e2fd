"""Publishing: a merge that passed the gate becomes a repo: weights, tokenizer, card, recipes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kinship_daemon.context import Context
from kinship_daemon.errors import KinshipError, Transient, Unavailable, planning
from kinship_daemon.home import Home
from kinship_daemon.hub.card import CardFacts, model_card
from kinship_daemon.hub.files import local_files
from kinship_daemon.hub.licence import most_restrictive
from kinship_daemon.hub.records import UnknownRepo
from kinship_daemon.steps.assemblies import assembly, sources_of
from kinship_daemon.steps.card_facts import card_facts, factors_table
from kinship_daemon.steps.step import Step, Work
from kinship_daemon.weights.materialise import write
from kinship_storage.errors import LineageError
from kinship_storage.jobs import job_key
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Publication

__all__ = ["STEP", "kept_back", "repo_id", "targets", "tidy"]

_KIND = "publish"


def _plan(context: Context) -> Iterator[Work]:
    """Every merge that passed the gate under today's settings and is not published yet."""
    for verdict in context.lineage.gates(context.settings.fingerprint("validation")):
        model = context.lineage.require(verdict.model)
        published = context.lineage.publication(model.id) is not None
        if not verdict.passed or model.status != "admitted" or published:
            continue
        with planning(model.id):
            reason = _blocked(context, model)
            repo = repo_id(context, model)
        if reason is None:
            work = Work({"weights": model.weights, "repo": repo}, model.id)
            yield work
            job = context.lineage.job(job_key(_KIND, work.inputs))
            reason = job.reason if job is not None and job.status == "waiting" else None
        if reason != context.lineage.require(model.id).not_published:
            context.lineage.update_model(model.id, not_published=reason)
            if reason is not None:
                context.report.event("unpublished", f"{model.id}: {reason}", model=model.id)


def _blocked(context: Context, model: Model) -> str | None:
    """Why a merge may not be published; None if it may."""
    if context.config.publish.namespace is None:
        return "publish.namespace is not set"
    reason = kept_back(context, model)
    if reason is not None:
        return reason
    if context.dry_run:
        return f"a dry run; it would be published as {repo_id(context, model)}"
    return None


def kept_back(context: Context, model: Model) -> str | None:
    """What its ancestors' licences or terms say against publishing a merge; None if nothing."""
    publish = context.config.publish
    family = [context.base, *context.lineage.ancestors(model)]
    licences = {each.id: each.license for each in family if each.recipe is None}
    terms = most_restrictive(licences, publish.allow_licenses)
    if terms.blocked is not None:
        return terms.blocked
    gated = [each.id for each in family if each.gated]
    if gated and not publish.allow_gated:
        return f"{gated[0]} is gated; publish.allow_gated allows it"
    return None


def repo_id(context: Context, model: Model) -> str:
    """Where a merge is published."""
    assert model.weights is not None
    base = (context.base.repo or context.base.id).rpartition("/")[2]
    facts = {
        "base": context.config.base if context.config.base == "demo" else base,
        "model": model.id,
        "hash": model.weights.rpartition(":")[2][:8],
    }
    return f"{context.config.publish.namespace}/{context.config.publish.name.format(**facts)}"


def targets(context: Context) -> set[str]:
    """
    Repos that are ours: published, or about to be.

    A process that was killed may have published what its lineage does not know of yet.
    """
    ours = {publication.repo for publication in context.lineage.publications()}
    if context.config.publish.namespace is not None:
        passed = {verdict.model for verdict in context.lineage.gates() if verdict.passed}
        ours |= {repo_id(context, context.lineage.require(name)) for name in passed}
    return ours


def _run(context: Context, work: Work) -> Publication:
    model = context.lineage.require(str(work.model))
    target = work.inputs["repo"]
    stage = context.home.staging / target
    # A stage that is there was left whole by a killed process, and the hub may have its files
    # already: the same bytes again are no second publication.
    if not stage.exists():
        _prepare(context, model, card_facts(context, model, target), stage)
    files = {
        name: context.files.sha256(path)
        for name, path in local_files(stage, stage.resolve()).items()
    }
    message = f"{model.id}: a merge of {' and '.join(model.parents)}"
    private = not context.config.publish.public
    try:
        revision, url = context.hub.publish(target, stage, message, private)
    except (Transient, LineageError):
        raise
    except (KinshipError, UnknownRepo) as error:
        # A repo that is not ours, say. The evolution goes on, and it is tried again later.
        raise Unavailable(f"cannot publish to {target}: {error}") from None
    return Publication(model.id, repo=target, revision=revision, url=url, files=files)


def _commit(lineage: Lineage, _work: Work, publication: Publication) -> None:
    lineage.add_publication(publication)
    lineage.update_model(publication.model, not_published=None)


def tidy(home: Home, lineage: Lineage) -> None:
    """Remove what was staged of publications that are through; a kill may have left it."""
    for publication in lineage.publications():
        stage = home.staging / publication.repo
        shutil.rmtree(stage, ignore_errors=True)
        with suppress(OSError):  # unless another merge is on its way
            stage.parent.rmdir()
            home.staging.rmdir()


def _tell(context: Context, _work: Work, made: Publication) -> None:
    tidy(context.home, context.lineage)
    context.report.event("publish", f"{made.model} as {made.repo}", model=made.model, url=made.url)


STEP = Step(_KIND, "hub", _plan, _run, _commit, _tell)


def _prepare(context: Context, model: Model, facts: CardFacts, stage: Path) -> None:
    """The repo's files in the staging folder, which appears when it is whole."""
    texts = {
        "README.md": model_card(facts),
        facts.made_file: facts.made,
        facts.collapsed_file: facts.collapsed,
    }
    table = factors_table(context, model)
    if table is not None:
        texts[facts.factors_file] = table
    made, total = assembly(context, model), context.base_checkpoint.nbytes
    with (
        context.files.holding(*(each.id for each in sources_of(context, model))),
        context.progress(f"write {model.id}", total, "bytes") as advance,
    ):
        context.files.make_room(total, model.id)
        write(made, stage, progress=advance, extra=texts)
