"""Why a candidate is not to be fetched, as far as its repo's card and files tell."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from kinship_daemon.context import Context
from kinship_daemon.errors import ModelError, Transient
from kinship_daemon.forgetting import is_forgotten
from kinship_daemon.hub.files import weight_files
from kinship_daemon.hub.licence import declared, most_restrictive
from kinship_daemon.hub.records import Repo, UnknownRepo
from kinship_daemon.hub.triage import Refusal, refusal
from kinship_daemon.steps.watch import GONE, rules
from kinship_daemon.weights.checkpoint import weights_identity
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model
from kinship_storage.rows import stamp

__all__ = [
    "check_again",
    "copy_objection",
    "objection",
    "refuse",
    "rule_objection",
    "same_as",
    "same_weights",
    "told_identity",
]


def objection(context: Context, model: Model, repo: Repo) -> Refusal | None:
    """What a rule, a licence, or the hub's own hashes have against fetching a candidate."""
    # The hub has told every hash: nothing needs to be fetched to know it.
    hashes = {file.path: file.sha256 for file in weight_files(repo.files)}
    return rule_objection(context, repo) or copy_objection(
        context, same_weights(context, model, hashes)
    )


def rule_objection(context: Context, repo: Repo) -> Refusal | None:
    """What a rule or a licence has against it. Reads nothing of the lineage: for any thread."""
    found = refusal(repo, context.base.id, rules(context), architectures=context.base_architectures)
    if found is None and context.config.triage.only_publishable:
        licences = {context.base.id: context.base.license, repo.id: declared(repo.card)}
        blocked = most_restrictive(licences, context.config.publish.allow_licenses).blocked
        if blocked is not None:
            setting = "triage.only_publishable"
            found = Refusal(f"{blocked} ({setting})", "settings", setting)
    return found


def check_again(context: Context, repo: Repo, found: Refusal) -> None:
    """
    That the hub tells once more what a rule has against a repo: no hash guards its description.

    Raises:
        Transient: It tells something else now.
    """
    if not context.hub.copies:
        return  # what is on this disk does not arrive
    again = rule_objection(context, context.hub.repo(repo.id, repo.revision))
    if again != found:
        raise Transient(f"the hub describes {repo.id} differently each time: {found.reason}")


def refuse(lineage: Lineage, name: str, refusal: Refusal, day: str) -> None:
    """
    Write down that a candidate is refused, and whether it is gone.

    A refusal that is nobody's fault is looked into again on the day after; when one that is gone
    is back, the listing shows.
    """
    again = None
    if refusal.cause == "world" and refusal != GONE:
        again = stamp(datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1))
    lineage.move_model(
        name,
        "refuse",
        reason=refusal.reason,
        cause=refusal.cause,
        setting=refusal.setting,
        retry_at=again,
    )
    lineage.update_candidate(name, gone=refusal == GONE)


def told_identity(repo: Repo) -> str | None:
    """Of its weights, from the hashes that the hub tells; None where one is unknown."""
    return _identity({file.path: file.sha256 for file in weight_files(repo.files)})


def _identity(hashes: Mapping[str, str | None]) -> str | None:
    known = {path: sha256 for path, sha256 in hashes.items() if sha256 is not None}
    return weights_identity(known) if known and len(known) == len(hashes) else None


def copy_objection(context: Context, copy: Model | None) -> Refusal | None:
    """
    That another model, in use or forgotten, has the very same weights.

    None if the hub has that one no more: its bytes have another name now, and it is to go.
    """
    if copy is None or (copy.status == "admitted" and _is_lost(context, copy)):
        return None
    return Refusal(same_as(copy.id))


def same_as(model: str) -> str:
    """Why a copy is refused; it is looked at again when that model's bytes are lost."""
    return f"the same weights as {model}"


def same_weights(context: Context, model: Model, hashes: Mapping[str, str | None]) -> Model | None:
    """Another with the same weight files, in use or forgotten; None where hashes are unknown."""
    identity = _identity(hashes)
    for other in () if identity is None else context.lineage.by_weights(identity):
        if other.id != model.id and (other.status == "admitted" or is_forgotten(other)):
            return other
    return None


def _is_lost(context: Context, model: Model) -> bool:
    """Whether a model is neither whole on this disk nor on the hub."""
    if model.repo is None or context.files.is_whole(model):
        return False
    try:
        context.hub.repo(model.repo, model.revision)
    except UnknownRepo:
        return True
    except (ModelError, Transient):
        return False  # nobody knows today
    return False
