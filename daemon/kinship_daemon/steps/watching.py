"""Who descends from the base: one page of the hub's listing where nothing is new."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import ModelError
from kinship_daemon.hub.records import Listing, UnknownRepo
from kinship_daemon.hub.triage import Rules, listed_refusal
from kinship_daemon.steps.publication import targets
from kinship_storage.records import Candidate, Model
from kinship_storage.rows import stamp

__all__ = ["notice", "rules"]

_CURSOR = "watch"
_BATCH = 500  # lines per transaction: one sync to disk for each
_FEW = 20  # newcomers that are named one by one


def rules(d: Daemon) -> Rules:
    chosen = d.config.triage.model_dump(exclude={"sample"})
    return Rules(**chosen)


def notice(d: Daemon) -> None:
    """
    Ask the hub who descends from the base, and write down whoever is new.

    A look goes back to the newest change seen less an overlap; now and then everyone is listed,
    which also shows who is gone. The cursor moves when all is written down: after a kill the same
    lines come again, and are known.
    """
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
    newest = max(
        ((line.modified.astimezone(UTC).isoformat(), line.id) for line in listings),
        default=("1970-01-01T00:00:00+00:00", ""),
    )
    before = (cursor.get("modified", ""), cursor.get("id", ""))
    modified, name = max(newest, before)
    listed = d.now().isoformat() if since is None else cursor["listed"]
    return {"modified": modified, "id": name, "listed": listed}


def _write_down(d: Daemon, line: Listing, say: bool) -> bool:
    """A new candidate. Returns whether it is refused at a glance."""
    reason = listed_refusal(line, d.base.id, rules(d))
    earlier = d.lineage.model(line.id)
    name = line.id if earlier is None else f"{line.id}@{line.revision[:8]}"
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
    if earlier is not None:
        _supersede(d, line.id, name)
    if say:
        kind, words = ("refused", reason) if reason else ("notice", f"descends from {d.base.id}")
        d.report.event(kind, f"{name}{':' if reason else ''} {words}", model=name)
    return reason is not None


def _supersede(d: Daemon, repo: str, name: str) -> None:
    """An older revision that still waits would be fetched for nothing."""
    for model in d.lineage.of_repo(repo):
        if model.status == "seen" and model.id != name:
            reason = f"changed on the hub before it was admitted; see {name}"
            d.lineage.update_model(model.id, status="refused", reason=reason)


def _miss(d: Daemon, listed: Collection[str]) -> None:
    """Mark who is on the hub no more; what was made of them stays."""
    for status in ("seen", "admitted"):
        for candidate in d.lineage.candidates(status):
            model = d.lineage.require(candidate.model)
            if candidate.gone or model.repo is None or model.repo in listed or _is_there(d, model):
                continue
            d.lineage.update_candidate(model.id, gone=True)
            if status == "seen":
                d.lineage.update_model(model.id, status="refused", reason="gone from the hub")
            fate = "refused" if status == "seen" else "its lineage stays, its files are kept"
            d.report.event("gone", f"{model.id} is on the hub no more; {fate}", model=model.id)


def _is_there(d: Daemon, model: Model) -> bool:
    assert model.repo is not None
    try:
        d.hub.repo(model.repo, model.revision)
    except UnknownRepo:
        return False
    except ModelError:
        pass  # gated or disabled by now, but there
    return True
