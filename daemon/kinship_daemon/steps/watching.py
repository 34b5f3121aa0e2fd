"""Who descends from the base: one page of the hub's listing where nothing is new."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import ModelError, Transient
from kinship_daemon.hub.records import Listing, UnknownRepo
from kinship_daemon.hub.triage import Rules, listed_refusal
from kinship_daemon.steps.publication import targets
from kinship_storage.records import Candidate, Model
from kinship_storage.rows import stamp

__all__ = ["GONE", "notice", "rules"]

GONE = "gone from the hub"  # why one that waited is refused; it waits again when it is back

_CURSOR = "watch"
_RULES = "triage"
_BATCH = 500  # lines per transaction: one sync to disk for each
_FEW = 20  # newcomers that are named one by one


def rules(d: Daemon) -> Rules:
    chosen = d.config.triage.model_dump(exclude={"only_publishable", "sample"})
    return Rules(**chosen)


def notice(d: Daemon) -> None:
    """
    Ask the hub who descends from the base, and write down whoever is new.

    A look goes back to the newest change seen less an overlap; now and then everyone is listed,
    which also shows who is gone. The cursor moves when all is written down: after a kill the same
    lines come again, and are known.
    """
    _reopen(d)
    cursor = d.lineage.get(_CURSOR) or {}
    since = _since(d, cursor)
    listings = list(d.hub.descendants(d.base.id, since))
    known = d.lineage.known_revisions()
    ours = targets(d)
    new = [
        line for line in listings if line.id not in ours and (line.id, line.revision) not in known
    ]
    refused = 0
    for first in range(0, len(new), _BATCH):
        with d.lineage.transaction():
            lines = new[first : first + _BATCH]
            refused += sum(_write_down(d, line, len(new) <= _FEW) for line in lines)
    if len(new) > _FEW:
        d.report.event(
            "notice",
            f"{len(new)} descend from {d.base.id}, {refused} of them refused at a glance",
        )
    _find_again(d, {(line.id, line.revision) for line in listings})
    if since is None:
        _miss(d, {line.id for line in listings})
    d.lineage.put(_CURSOR, _moved(d, cursor, listings, since))


def _since(d: Daemon, cursor: dict[str, str]) -> datetime | None:
    """From when on to list; None for everyone."""
    if not cursor:
        return None
    listed = datetime.fromisoformat(cursor["listed"])
    if d.now() - listed >= timedelta(hours=d.config.watch.relist_hours):
        return None
    overlap = timedelta(minutes=d.config.watch.overlap_minutes)
    return datetime.fromisoformat(cursor["modified"]) - overlap


def _moved(
    d: Daemon, cursor: dict[str, str], listings: Sequence[Listing], since: datetime | None
) -> dict[str, str]:
    """The cursor after a look: (modified, id) of the newest line, and the last whole listing."""
    # A change that claims to be of tomorrow must not hide those of today.
    times = ((min(line.modified.astimezone(UTC), d.now()), line.id) for line in listings)
    newest = max(
        ((modified.isoformat(), name) for modified, name in times),
        default=("1970-01-01T00:00:00+00:00", ""),
    )
    before = (cursor.get("modified", ""), cursor.get("id", ""))
    modified, name = max(newest, before)
    listed = d.now().isoformat() if since is None else cursor["listed"]
    return {"modified": modified, "id": name, "listed": listed}


def _write_down(d: Daemon, line: Listing, say: bool) -> bool:
    """A new candidate. Returns whether it is refused at a glance."""
    reason = listed_refusal(line, d.base.id, rules(d))
    name = _name(d, line)
    d.lineage.add_model(
        Model(
            id=name,
            kind="finetune",
            status="refused" if reason else "seen",
            reason=reason,
            repo=line.id,
            revision=line.revision,
        )
    )
    d.lineage.add_candidate(
        Candidate(
            model=name,
            modified=stamp(line.modified),
            downloads=line.downloads,
            likes=line.likes,
            triaged=reason is not None,
        )
    )
    if name != line.id:
        _supersede(d, line.id, name)
    if say:
        kind, words = ("refused", reason) if reason else ("notice", f"descends from {d.base.id}")
        d.report.event(kind, f"{name}{':' if reason else ''} {words}", model=name)
    return reason is not None


def _name(d: Daemon, line: Listing) -> str:
    """The repo's id; of a later revision, as much of it behind as tells it from the others."""
    names = (line.id, f"{line.id}@{line.revision[:8]}", f"{line.id}@{line.revision}")
    return next(name for name in names if d.lineage.model(name) is None)


def _supersede(d: Daemon, repo: str, name: str) -> None:
    """An older revision that still waits would be fetched for nothing."""
    for model in d.lineage.of_repo(repo):
        if model.status == "seen" and model.id != name:
            reason = f"changed on the hub before it was admitted; see {name}"
            d.lineage.update_model(model.id, status="refused", reason=reason)


def _reopen(d: Daemon) -> None:
    """Where triage has other rules than before, those whom one of them kept out wait again."""
    rules_now = d.config.triage.model_dump(mode="json", exclude={"sample"})
    before = d.lineage.get(_RULES) or {}
    changed = [f"triage.{key}" for key, value in rules_now.items() if before.get(key) != value]
    if not changed:
        return
    with d.lineage.transaction():
        kept_out = [
            name
            for name, reason in d.lineage.reasons("refused")
            if any(key in (reason or "") for key in changed) and _is_newest(d, name)
        ]
        for name in kept_out:
            _wait_again(d, name)
        d.lineage.put(_RULES, rules_now)
    if kept_out:
        d.report.event("notice", f"{len(kept_out)} refused under other triage rules wait again")


def _is_newest(d: Daemon, name: str) -> bool:
    """Whether no later revision of its repo was noticed."""
    candidate, repo = d.lineage.candidate(name), d.lineage.require(name).repo
    if candidate is None or repo is None:
        return False
    others = (d.lineage.candidate(model.id) for model in d.lineage.of_repo(repo))
    return all(other is None or other.modified <= candidate.modified for other in others)


def _wait_again(d: Daemon, name: str) -> None:
    d.lineage.update_model(name, status="seen", reason=None)
    d.lineage.update_candidate(name, triaged=False)


def _find_again(d: Daemon, listed: Collection[tuple[str, str]]) -> None:
    """Whoever was gone and is listed again, at the same revision, is there."""
    for candidate in d.lineage.candidates():
        if not candidate.gone:
            continue
        model = d.lineage.require(candidate.model)
        if (model.repo, model.revision) not in listed:
            continue
        with d.lineage.transaction():
            d.lineage.update_candidate(model.id, gone=False)
            if model.reason == GONE:
                _wait_again(d, model.id)
        d.report.event("back", f"{model.id} is on the hub again", model=model.id)


def _miss(d: Daemon, listed: Collection[str]) -> None:
    """Mark who is on the hub no more; what was made of them stays."""
    for status in ("seen", "admitted"):
        for candidate in d.lineage.candidates(status):
            model = d.lineage.require(candidate.model)
            if candidate.gone or model.repo is None or model.repo in listed or _is_there(d, model):
                continue
            with d.lineage.transaction():
                d.lineage.update_candidate(model.id, gone=True)
                if status == "seen":
                    d.lineage.update_model(model.id, status="refused", reason=GONE)
            fate = "refused" if status == "seen" else "its lineage stays, its files are kept"
            d.report.event("gone", f"{model.id} is on the hub no more; {fate}", model=model.id)


def _is_there(d: Daemon, model: Model) -> bool:
    assert model.repo is not None
    try:
        d.hub.repo(model.repo, model.revision)
    except UnknownRepo:
        return False
    except (ModelError, Transient):
        pass  # gated or disabled by now, but there; or nobody knows today
    return True
