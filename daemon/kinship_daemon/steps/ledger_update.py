"""Newcomers measured against everyone in the Gram ledger, though not all fit the disk at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kinship_daemon.daemon import Daemon
from kinship_daemon.errors import ModelError
from kinship_daemon.steps.assemblies import residents
from kinship_daemon.weights import gram
from kinship_daemon.weights.descendant import Descendant
from kinship_storage.records import Model

__all__ = ["apart", "here", "joined", "leaves", "measured", "quarantine_leaf"]


def measured(d: Daemon, young: Mapping[str, Descendant]) -> Iterator[gram.Ledger]:
    """
    Ledgers of newcomers and parts of those in the ledger, of which `joined` makes one.

    A row that nobody can be measured against any more is in none of them.

    Raises:
        NoRoom: one that made room for others does not fit beside what has to stay.
    """
    yield _pass(d, residents(d, [row for row in here(d) if row not in young]), young)
    yield from apart(d, young)


def apart(d: Daemon, young: Mapping[str, Descendant]) -> Iterator[gram.Ledger]:
    """
    Newcomers and each of those who made room for others, one at a time.

    Each has a pass of its own: it has to be fetched again, which takes longer than to read the
    base once more. Whom no living merge rests on is not fetched: its row goes.
    """
    away = set(d.ledger.rows) - set(here(d))
    for row, model in leaves(d).items():
        if row not in away:
            continue
        with d.holding(model.id):
            try:
                d.leaf_folder(model)
            except ModelError as error:
                quarantine_leaf(d, model, error)
                continue
            yield _pass(d, {row: model}, young)


def joined(d: Daemon, parts: Sequence[gram.Ledger]) -> gram.Ledger:
    """One ledger of what `measured` gave."""
    kept = {row for part in parts for row in part.rows}
    return d.ledger.keep([row for row in d.ledger.rows if row in kept]).joined(parts)


def here(d: Daemon) -> list[str]:
    """Rows of the ledger whose files did not make room for others."""
    return [
        row
        for row in d.ledger.rows
        if any(d.lineage.get(f"folder:{model.id}") for model in d.lineage.by_weights(row))
    ]


def leaves(d: Daemon) -> dict[str, Model]:
    """Fine-tunes that are admitted, or that a living merge rests on, by weights identity."""
    merges = d.lineage.models("merge", ("admitted", "proposed"))
    needed = {leaf.id for merge in merges for leaf in d.lineage.ancestors(merge)}
    return {
        leaf.weights: leaf
        for leaf in d.lineage.models("finetune")
        if leaf.weights is not None and (leaf.status == "admitted" or leaf.id in needed)
    }


def quarantine_leaf(d: Daemon, leaf: Model, error: ModelError) -> None:
    """Quarantine a fine-tune whose bytes are gone or changed, and all merges that rest on it."""
    d.quarantine(leaf, str(error), f"keep:{leaf.weights}")
    for merge in d.population_models("admitted", "proposed"):
        if leaf.id in {ancestor.id for ancestor in d.lineage.ancestors(merge)}:
            reason = f"cannot be made any more: {leaf.id}: {error}"
            d.quarantine(merge, reason, f"keep:{merge.weights}")


def _pass(d: Daemon, known: Mapping[str, Model], young: Mapping[str, Descendant]) -> gram.Ledger:
    base = d.base_checkpoint
    with d.holding(*(model.id for model in known.values())):
        old = d.descendants(known)
        total = base.nbytes + sum(c.nbytes for c in (*old.values(), *young.values()))
        label = f"kinship of {len(old) + len(young)} models"
        with d.report.progress(label, total, "bytes") as advance:
            return gram.extend(
                d.ledger.keep(tuple(old)), base, old, young, device=d.device, progress=advance
            )
