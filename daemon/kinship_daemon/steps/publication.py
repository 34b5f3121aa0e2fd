"""Publishing: a merge that passed the gate becomes a repo: weights, tokenizer, card, recipes."""

from __future__ import annotations

import shutil
from pathlib import Path

from kinship_daemon.daemon import Daemon
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import KinshipError, ModelError, Transient
from kinship_daemon.hub import records
from kinship_daemon.hub.card import CardFacts, model_card
from kinship_daemon.hub.licence import most_restrictive
from kinship_daemon.steps.assemblies import assembly
from kinship_daemon.steps.card_facts import card_facts
from kinship_daemon.weights.materialise import write
from kinship_storage.errors import LineageError
from kinship_storage.records import Model, Publication

__all__ = ["publish_passed", "repo_id", "targets"]


def publish_passed(d: Daemon) -> Transient | None:
    """
    Publish every merge that passed the gate and is not published yet, if it may be.

    Returns:
        Why one of them is not published now, though it may be: the hub does not answer.
    """
    away = None
    for verdict in d.lineage.gates():
        model = d.lineage.require(verdict.model)
        if not verdict.passed or model.status != "admitted" or d.lineage.publication(model.id):
            continue
        blocked = _blocked(d, model)
        if verdict.settings.get("evaluation") != d.settings.fingerprint("validation"):
            # The card would tell today's scores, of which there may be none.
            blocked = "it passed the gate under other evaluation settings; run it with those"
        if blocked is None and d.dry_run:
            blocked = f"a dry run; it would be published as {repo_id(d, model)}"
        if blocked is not None:
            _say_once(d, model, blocked)
            continue
        try:
            _publish(d, model)
        except LineageError:
            raise
        except Transient as error:
            d.report.event("warning", f"{model.id} is published later: {error}", model=model.id)
            away = error
        except KinshipError as error:
            # A repo that is not ours, say. The evolution goes on; the next turn tries again.
            _say_once(d, model, str(error))
    return away


def repo_id(d: Daemon, model: Model) -> str:
    """Where a merge is published."""
    assert model.weights is not None
    base = (d.base.repo or d.base.id).rpartition("/")[2]
    facts = {
        "base": d.config.base if d.config.base == "demo" else base,
        "model": model.id,
        "hash": model.weights.rpartition(":")[2][:8],
    }
    return f"{d.config.publish.namespace}/{d.config.publish.name.format(**facts)}"


def targets(d: Daemon) -> set[str]:
    """
    Repos that are ours: published, or about to be.

    A process that was killed may have published what its lineage does not know of yet.
    """
    ours = {publication.repo for publication in d.lineage.publications()}
    if d.config.publish.namespace is not None:
        passed = [verdict.model for verdict in d.lineage.gates() if verdict.passed]
        ours |= {repo_id(d, d.lineage.require(name)) for name in passed}
    return ours


def _blocked(d: Daemon, model: Model) -> str | None:
    """Why a merge may not be published; None if it may."""
    publish = d.config.publish
    if publish.namespace is None:
        return "publish.namespace is not set"
    family = [d.base, *d.lineage.ancestors(model)]
    licences = {each.id: each.license for each in family if each.recipe is None}
    terms = most_restrictive(licences, publish.allow_licenses)
    if terms.blocked is not None:
        return terms.blocked
    gated = [each.id for each in family if d.lineage.get(f"gated:{each.id}")]
    if gated and not publish.allow_gated:
        return f"{gated[0]} is gated; publish.allow_gated allows it"
    return None


def _say_once(d: Daemon, model: Model, reason: str) -> None:
    key = f"not_published:{model.id}"
    if d.lineage.get(key) != reason:
        d.lineage.put(key, reason)
        d.report.event("unpublished", f"{model.id}: {reason}", model=model.id)


def _publish(d: Daemon, model: Model) -> None:
    target = repo_id(d, model)
    stage = d.home.staging / target

    def work() -> tuple[records.Publication, dict[str, str]]:
        # A stage that is there was left whole by a killed process, and the hub may have its files
        # already: the same bytes again are no second publication.
        if not stage.exists():
            _prepare(d, model, card_facts(d, model, target), stage)
        files = {path.name: hash_file(path) for path in sorted(stage.iterdir())}
        message = f"{model.id}: a merge of {' and '.join(model.parents)}"
        try:
            return d.hub.publish(target, stage, message, not d.config.publish.public), files
        except (ModelError, records.UnknownRepo) as error:
            raise KinshipError(f"cannot publish to {target}: {error}") from None

    def record(done: tuple[records.Publication, dict[str, str]]) -> None:
        publication, files = done
        d.lineage.add_publication(
            Publication(
                model=model.id,
                repo=publication.repo,
                revision=publication.revision,
                url=publication.url,
                files=files,
            )
        )

    d.step("publish", f"publish:{model.id}:{target}", model, work, record)
    shutil.rmtree(d.home.staging, ignore_errors=True)
    if (made := d.lineage.publication(model.id)) is not None:
        d.report.event("publish", f"{model.id} as {made.repo}", model=model.id, url=made.url)


def _prepare(d: Daemon, model: Model, facts: CardFacts, stage: Path) -> None:
    """The repo's files in the staging folder, which appears when it is whole."""
    texts = {
        "README.md": model_card(facts),
        facts.made_file: facts.made,
        facts.collapsed_file: facts.collapsed,
    }
    with d.report.progress(f"write {model.id}", d.base_checkpoint.nbytes, "bytes") as advance:
        write(assembly(d, model), stage, progress=advance, extra=texts)
