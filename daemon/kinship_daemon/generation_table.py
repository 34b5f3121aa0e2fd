"""A generation just made, as a table."""

from __future__ import annotations

from kinship_daemon.context import Context
from kinship_daemon.steps.rungs import partials
from kinship_daemon.steps.scores import gain
from kinship_storage.records import Model, Partial

__all__ = ["show_generation"]

_COLUMNS = ["model", "parents", "role", "kinship", "score", "gain", "validation", "published"]


def show_generation(context: Context, generation: int) -> None:
    """Its merges, how they did, and what became of them; nothing if there are none."""
    children = [m for m in context.lineage.models("merge") if m.generation == generation]
    rows = [_row(context, child) for child in children if child.status == "admitted"]
    if rows:
        context.report.table(f"generation {generation}", _COLUMNS, rows)


def _row(context: Context, child: Model) -> list[str]:
    kin = context.lineage.kinship(context.config.kinship.metric, *child.parents[:2])
    value, more = gain(context, child)
    gate = context.lineage.gate(child.id, context.settings.fingerprint("validation"))
    return [
        child.id,
        " + ".join(child.parents),
        child.role or "",
        "-" if kin is None else f"{kin:.3f}",
        _score(value, partials(context).get(child.weights or "")),
        f"{more:+.4f}",
        "-" if gate is None else f"{gate.gain:+.4f} [{gate.low:+.4f}, {gate.high:+.4f}]",
        "yes" if context.lineage.publication(child.id) else "",
    ]


def _score(value: float, partial: Partial | None) -> str:
    if partial is None or partial.share is None:
        return f"{value:.4f}"
    return f"{value:.4f} (stopped after {100 * partial.share:.0f} %)"
