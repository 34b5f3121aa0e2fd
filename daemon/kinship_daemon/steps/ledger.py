"""A newcomer's row in the Gram ledger: it is measured against everyone, in one streaming read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from kinship_daemon.context import Context
from kinship_daemon.errors import ModelError, Transient
from kinship_daemon.execute.executor import Job
from kinship_daemon.execute.kinship import NEEDS, Measure
from kinship_daemon.execute.site import HereSite
from kinship_daemon.report import absolute, count
from kinship_daemon.steps.assemblies import as_source
from kinship_daemon.steps.leaves import leaves, source
from kinship_daemon.steps.step import Step, Work, say_nothing
from kinship_daemon.weights import gram
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["STEP", "joined", "measured", "measured_with_absent", "rows_on_disk"]


def _plan(context: Context) -> Iterator[Work]:
    """
    All whose files are on this disk join at once.

    Else one of those who made room for others: they have no row where someone removed the ledger.
    """
    new = {row: leaf for row, leaf in leaves(context.lineage).items() if _has_no_row(context, row)}
    on_disk = sorted(row for row, leaf in new.items() if leaf.folder is not None)
    joining = on_disk or sorted(new)[:1]
    if joining:
        yield Work({"joining": joining, "beside": sorted(context.ledger.rows)})


def _has_no_row(context: Context, row: str) -> bool:
    return row not in context.ledger.rows


def _run(context: Context, work: Work) -> gram.Ledger:
    young = {row: source(context.lineage, row) for row in work.inputs["joining"]}
    with context.files.holding(*(model.id for model in young.values())):
        try:
            folders = {row: context.files.folder(model) for row, model in young.items()}
            ledger = joined(context, list(measured(context, folders)))
        except gram.BadTensor as error:
            # It spoils only its own model: the others join without it.
            here = gram.BadTensor(
                error.identity, folders[error.identity], error.tensor, error.value
            )
            raise ModelError(str(here), model=young[error.identity].id) from error
        # On the disk before the job is done; a row that nobody asks for does no harm.
        ledger.save(context.home.ledger)
    context.rows.use(ledger)
    return ledger


def _commit(_lineage: Lineage, _work: Work, _ledger: gram.Ledger) -> None:
    """The ledger is a file of its own, whole under its name before this."""


STEP = Step("ledger", "disk", _plan, _run, _commit, say_nothing, repeats=True)


def measured(context: Context, young: Mapping[str, Path]) -> Iterator[gram.Ledger]:
    """
    Ledgers of newcomers beside those in the ledger, of which `joined` makes one.

    A row that nobody can be measured against any more is in none of them.

    Args:
        young: Where the newcomers lie, by weights identity.

    Raises:
        NoRoom: One that made room for others does not fit beside what has to stay.
    """
    known = {row: source(context.lineage, row) for row in rows_on_disk(context) if row not in young}
    yield _pass(context, known, young)
    yield from measured_with_absent(context, young)


def measured_with_absent(context: Context, young: Mapping[str, Path]) -> Iterator[gram.Ledger]:
    """
    Newcomers beside each of those who made room for others, one at a time.

    Each has a pass of its own: it has to be fetched again, which takes longer than to read the
    base once more. Whom no living merge rests on is not fetched: its row goes.

    Raises:
        LeafGone: One cannot be had any more.
    """
    away = set(context.ledger.rows) - set(rows_on_disk(context))
    for row, model in leaves(context.lineage).items():
        if row in away:
            with context.files.holding(model.id):
                context.files.folder(model)
                yield _pass(context, {row: model}, young)


def joined(context: Context, parts: Sequence[gram.Ledger]) -> gram.Ledger:
    """One ledger of what `measured` gave."""
    kept = {row for part in parts for row in part.rows}
    ledger = context.ledger
    return ledger.keep([row for row in ledger.rows if row in kept]).joined(parts)


def rows_on_disk(context: Context) -> list[str]:
    """Rows of the ledger whose files are on this disk."""
    return [
        row
        for row in context.ledger.rows
        if any(context.files.is_whole(model) for model in context.lineage.by_weights(row))
    ]


def _pass(context: Context, known: Mapping[str, Model], young: Mapping[str, Path]) -> gram.Ledger:
    """The ledger of `known` with the rows of newcomers, who are measured against them."""
    base = str(context.base.weights)
    with context.files.holding(*(model.id for model in known.values())):
        before = context.ledger.keep(tuple(known))
        folders = {row: context.files.folder(model) for row, model in known.items()}
        folders = {**folders, **young, base: context.base_folder}
        call = Measure.of(before, tuple(young), context.device)
        label = f"kinship of {count(len(known) + len(young), 'model')}"
        with context.progress(label, None, "bytes") as advance:
            watch = absolute(advance)
            columns = _by_machines(context, call, folders, watch)
            if columns is None:
                columns = call(HereSite(folders, watch))
            return before.grown(call.new, columns)


def _by_machines(
    context: Context, call: Measure, folders: Mapping[str, Path], watch: Callable[[int, int], None]
) -> Tensor | None:
    """What an executor's other machines give; None where there are none, or they cannot do it."""
    if not context.evaluators.has_machines or context.device != "cpu":
        return None
    models = {row: source(context.lineage, row) for row in (*call.known, *call.new)}
    if not all(context.lineage.files(model.id) for model in models.values()):
        return None  # what is not written down yet cannot be told apart elsewhere
    models[call.base] = context.base
    sources = {row: as_source(context, model, folders[row]) for row, model in models.items()}
    try:
        found: Tensor = context.evaluators.do(
            Job("kinship pass", call, NEEDS, sources), folders, watch
        )
    except Transient as error:
        # All that it takes is here, too, and nobody is to wait for a cluster over it.
        context.report.event("executor", f"kinship is measured by the daemon itself: {error}")
        return None
    return found
