"""A look at the hub: who descends from the base; one page of its listing where nothing is new."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kinship_daemon.config import Config
from kinship_daemon.context import Context
from kinship_daemon.errors import ModelError, Transient
from kinship_daemon.exclusion import excluded, kept_patterns, newly_excluded
from kinship_daemon.hub.records import Listing, UnknownRepo
from kinship_daemon.hub.triage import Refusal, Rules, listed_refusal
from kinship_daemon.retry import reopen
from kinship_daemon.steps.publish import targets
from kinship_daemon.steps.step import Step, Work
from kinship_storage.lineage import Lineage
from kinship_storage.records import Candidate, Model
from kinship_storage.rows import stamp

__all__ = ["GONE", "STEP", "rules", "rules_of"]

# Why one that waited is refused when the hub has it no more; it waits again when it is back.
GONE = Refusal("gone from the hub", "world")

_CURSOR = "watch"
_FEW = 20  # repos that are named one by one


def rules(context: Context) -> Rules:
    return rules_of(context.config)


def rules_of(config: Config) -> Rules:
    others = {"ancestry", "allow_other_calculation", "exclude", "only_publishable", "sample"}
    chosen = config.triage.model_dump(exclude=others)
    return Rules(**chosen)


@dataclass(frozen=True)
class Seen:
    """
    What a look found.

    Attributes:
        new: Models with what the hub says of them, and why they are refused at a glance.
        superseded: Older revisions that still wait, and the newer one's id.
        back: Who was gone and is there again.
        gone: Who is there no more.
        excluded: Who waited or was in the population, and a pattern excludes by now.
        cursor: Where the next look begins.
        unrelated: Repos that are no descendants of the base, and why, where the hub can tell.
    """

    new: tuple[tuple[Model, Candidate, Refusal | None], ...]
    superseded: Mapping[str, str]
    back: tuple[Model, ...]
    gone: tuple[Model, ...]
    excluded: tuple[tuple[Model, Refusal], ...]
    cursor: Mapping[str, str]
    unrelated: tuple[tuple[str, str], ...]


def _plan(context: Context) -> Iterator[Work]:
    yield Work({"after": context.lineage.get(_CURSOR) or {}})


def _run(context: Context, _work: Work) -> Seen:
    """
    Ask the hub who descends from the base.

    A look goes back to the newest change seen less an overlap; now and then everyone is listed,
    which also shows who is gone.
    """
    cursor = context.lineage.get(_CURSOR) or {}
    since = _since(context, cursor)
    listings = list(context.hub.descendants(context.base.id, since))
    new = tuple(_new(context, listings))
    listed = {(line.id, line.revision) for line in listings}
    return Seen(
        new=new,
        superseded=_superseded(context, [model for model, _, _ in new]),
        back=tuple(_back(context, listed)),
        gone=tuple(_gone(context, {line.id for line in listings})) if since is None else (),
        excluded=tuple(newly_excluded(context.lineage, context.config.triage.exclude)),
        cursor=_moved(context, cursor, listings, since),
        unrelated=tuple(_unrelated(context, listings)) if since is None else (),
    )


def _commit(lineage: Lineage, _work: Work, seen: Seen) -> None:
    for model, candidate, _ in seen.new:
        lineage.add_model(model)
        lineage.add_candidate(candidate)
    for name, newer in seen.superseded.items():
        reason = f"changed on the hub before it was admitted; see {newer}"
        lineage.move_model(name, "refuse", cause="model", reason=reason)
    for model in seen.back:
        lineage.update_candidate(model.id, gone=False)
        now = lineage.require(model.id)  # `retry` may have opened it during the look
        if now.status == "refused" and now.cause == GONE.cause:
            reopen(lineage, now)
    for model in seen.gone:
        lineage.update_candidate(model.id, gone=True)
        if model.status == "seen":
            lineage.move_model(model.id, "refuse", cause=GONE.cause, reason=GONE.reason)
    for model, why in seen.excluded:
        if lineage.require(model.id).status in {"seen", "admitted"}:  # not gone meanwhile
            lineage.move_model(
                model.id, "refuse", reason=why.reason, cause=why.cause, setting=why.setting
            )
    lineage.put(_CURSOR, dict(seen.cursor))


def _tell(context: Context, _work: Work, seen: Seen) -> None:
    say = context.report.event
    refused = sum(refusal is not None for _, _, refusal in seen.new)
    if len(seen.new) > _FEW:
        base = context.base.id
        say("notice", f"{len(seen.new)} descend from {base}, {refused} of them refused at a glance")
    else:
        for model, _, refusal in seen.new:
            if refusal is None:
                say("notice", f"{model.id} descends from {context.base.id}", model=model.id)
            else:
                say("refused", f"{model.id}: {refusal.reason}", model=model.id)
    for model, refusal in seen.excluded:
        say("refused", f"{model.id}: {refusal.reason}", model=model.id)
    for name, why in seen.unrelated[:_FEW]:
        say("unrelated", f"{name} is passed over: {why}; the base is {context.base.id}")
    if len(seen.unrelated) > _FEW:
        more = len(seen.unrelated) - _FEW
        say("unrelated", f"{more} more are passed over: they do not declare {context.base.id}")
    for model in seen.back:
        say("back", f"{model.id} is on the hub again", model=model.id)
    for model in seen.gone:
        fate = "refused" if model.status == "seen" else "it stays in the lineage"
        say("gone", f"{model.id} was removed from the hub; {fate}", model=model.id)


STEP = Step("watch", "hub", _plan, _run, _commit, _tell, repeats=True)


def _since(context: Context, cursor: Mapping[str, str]) -> datetime | None:
    """From when on to list; None for everyone."""
    if not cursor:
        return None
    listed = datetime.fromisoformat(cursor["listed"])
    # A clock that was set back must not put off the next whole listing for ever.
    if abs(context.now() - listed) >= timedelta(hours=context.config.watch.relist_hours):
        return None
    overlap = timedelta(minutes=context.config.watch.overlap_minutes)
    return datetime.fromisoformat(cursor["modified"]) - overlap


def _moved(
    context: Context,
    cursor: Mapping[str, str],
    listings: Sequence[Listing],
    since: datetime | None,
) -> dict[str, str]:
    """The cursor after a look: (modified, id) of the newest line, and the last whole listing."""
    # A change that claims to be of tomorrow must not hide those of today.
    times = ((min(line.modified.astimezone(UTC), context.now()), line.id) for line in listings)
    newest = max(
        ((modified.isoformat(), name) for modified, name in times),
        default=("1970-01-01T00:00:00+00:00", ""),
    )
    before = (cursor.get("modified", ""), cursor.get("id", ""))
    modified, name = max(newest, before)
    listed = context.now().isoformat() if since is None else cursor["listed"]
    return {"modified": modified, "id": name, "listed": listed}


def _new(
    context: Context, listings: Sequence[Listing]
) -> Iterator[tuple[Model, Candidate, Refusal | None]]:
    known, ours = set(context.lineage.known_revisions()), targets(context)
    taken: set[str] = set()
    patterns = kept_patterns(context.lineage)
    for line in listings:
        if line.id in ours or (line.id, line.revision) in known:
            continue
        known.add((line.id, line.revision))
        refusal = excluded(line.id, context.config.triage.exclude, patterns) or listed_refusal(
            line, context.base.id, rules(context)
        )
        name = _name(context, line, taken)
        taken.add(name)
        model = Model(
            id=name,
            kind="finetune",
            status="refused" if refusal else "seen",
            reason=refusal.reason if refusal else None,
            cause=refusal.cause if refusal else None,
            setting=refusal.setting if refusal else None,
            repo=line.id,
            revision=line.revision,
        )
        candidate = Candidate(
            model=name,
            modified=stamp(line.modified),
            downloads=line.downloads,
            likes=line.likes,
            triaged=refusal is not None,
        )
        yield model, candidate, refusal


def _unrelated(context: Context, listings: Iterable[Listing]) -> Iterator[tuple[str, str]]:
    left_out = {*targets(context), *(line.id for line in listings)}
    return context.hub.passed_over(context.base.id, left_out)


def _name(context: Context, line: Listing, taken: Collection[str]) -> str:
    """The repo's id; of a later revision, as much of it behind as tells it from the others."""
    names = (line.id, f"{line.id}@{line.revision[:8]}", f"{line.id}@{line.revision}")
    return next(n for n in names if n not in taken and context.lineage.model(n) is None)


def _superseded(context: Context, new: Sequence[Model]) -> dict[str, str]:
    """
    Older revisions that still wait, which would be fetched for nothing.

    A listing has no hash: a wrong bit in a commit must not cost the good one.
    """
    found: dict[str, str] = {}
    for model in new:
        if model.repo is None or model.id == model.repo:
            continue
        older = [each.id for each in context.lineage.of_repo(model.repo) if each.status == "seen"]
        if older and _is_sure(context, model):
            found |= dict.fromkeys(older, model.id)
    return found


def _is_sure(context: Context, model: Model) -> bool:
    """Whether the hub says of a revision itself that it is there."""
    assert model.repo is not None
    try:
        context.hub.repo(model.repo, model.revision)
    except (ModelError, Transient, UnknownRepo):
        return False
    return True


def _back(context: Context, listed: Collection[tuple[str, str]]) -> Iterator[Model]:
    """Whoever was gone and is listed again, at the same revision."""
    for candidate in context.lineage.candidates(gone=True):
        model = context.lineage.require(candidate.model)
        if (model.repo, model.revision) in listed:
            yield model


def _gone(context: Context, listed: Collection[str]) -> Iterator[Model]:
    """Who is on the hub no more; what was made of them stays."""
    for status in ("seen", "admitted"):
        for candidate in context.lineage.candidates(status):
            model = context.lineage.require(candidate.model)
            if candidate.gone or model.repo is None or model.repo in listed:
                continue
            if not _is_there(context, model):
                yield model


def _is_there(context: Context, model: Model) -> bool:
    assert model.repo is not None
    try:
        context.hub.repo(model.repo, model.revision)
    except UnknownRepo:
        return False
    except (ModelError, Transient):
        pass  # gated or disabled by now, but there; or nobody knows today
    return True
