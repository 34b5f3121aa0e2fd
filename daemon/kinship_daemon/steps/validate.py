"""Validation scores of a promising merge and its parents: what the gate will compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kinship_daemon.context import Context
from kinship_daemon.steps.evaluation import Evaluated, evaluate, record, work_for
from kinship_daemon.steps.scores import known_means, parents_of
from kinship_daemon.steps.step import Step, Work, say_nothing
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["STEP", "families"]


def families(context: Context) -> Iterator[tuple[Model, list[Model]]]:
    """
    Merges that deserve to be judged and were not yet under today's settings, with their parents.

    Validation costs as much as selection did, so it is spent on merges that beat all their parents
    there; the others cannot be expected to pass. Ordered by generation, then name.
    """
    known = known_means(context, "selection")
    judged = {gate.model for gate in context.lineage.gates(_fingerprint(context))}
    for child in context.lineage.models(kind="merge", status="admitted"):
        if child.id in judged or child.weights not in known:
            continue
        parents = parents_of(context, child)
        theirs = [known.get(parent.weights or "") for parent in parents]
        if is_promising(known[child.weights], theirs):
            yield child, parents


def is_promising(score: float, parents: Sequence[float | None]) -> bool:
    """Whether a child beat all its parents; None is one set aside since, under other settings."""
    return all(parent is not None and score > parent for parent in parents)


def _fingerprint(context: Context) -> str:
    return context.settings.fingerprint("validation")


def _plan(context: Context) -> Iterator[Work]:
    known = known_means(context, "validation")
    planned: set[str | None] = set()
    for child, parents in families(context):
        missing = {m.weights or "" for m in (child, *parents)} - known.keys()
        sources = [context.lineage.by_weights(weights)[0] for weights in sorted(missing)]
        if any(model.status != "admitted" for model in sources):
            continue  # one of them cannot be evaluated: there is no fair comparison
        for model in sources:
            if model.weights not in planned:
                planned.add(model.weights)
                yield work_for(context.settings, model, "validation")


def _run(context: Context, work: Work) -> Evaluated:
    return evaluate(context, context.settings, work)


def _commit(lineage: Lineage, _work: Work, found: Evaluated) -> None:
    record(lineage, found)


STEP = Step("validate", "device", _plan, _run, _commit, say_nothing)
