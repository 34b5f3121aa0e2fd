"""Selection scores of founders and merges: nothing is asked twice, in a race not all at once."""

from __future__ import annotations

from collections.abc import Iterator

from kinship_daemon.context import Context
from kinship_daemon.errors import BudgetReached
from kinship_daemon.evaluate.scoring import Look
from kinship_daemon.steps.assemblies import assembly
from kinship_daemon.steps.evaluation import Evaluated, evaluate, record, together, work_for
from kinship_daemon.steps.rungs import is_stopped, may_answer, partials, racing
from kinship_daemon.steps.scores import gain, known_means, mean_score, scores
from kinship_daemon.steps.step import Step, Work
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Partial

__all__ = ["STEP", "to_ask", "to_ask_today", "unscored"]

_MERGES = "merges"


def unscored(context: Context) -> list[Model]:
    """
    Everyone in use that the policy cannot be shown yet: without scores, or only proposed.

    Hours of evaluation are dear: whom the quick screen found good comes first. But whoever made
    room for others comes last: to fetch them, those without scores would be in the way. Merges
    follow, in the order of their names.
    """
    known = known_means(context, "selection")
    admitted = [m for m in context.population_models("admitted") if m.weights not in known]
    return [*sorted(admitted, key=_turn), *context.lineage.models("merge", "proposed")]


def _turn(model: Model) -> tuple[bool, float]:
    return model.recipe is None and model.folder is None, -(model.screen or 0.0)


def to_ask(context: Context) -> list[tuple[Model, Look | None]]:
    """Who has documents to answer now, and up to where; None for all of them."""
    known, before = known_means(context, "selection"), partials(context)
    # The same bytes under another name have these scores too.
    first: dict[str, Model] = {}
    for model in unscored(context):
        first.setdefault(model.weights or "", model)
    found: list[tuple[Model, Look | None]] = []
    for weights, model in first.items():
        look, partial = None, before.get(weights)
        if partial is not None or weights not in known:
            look = may_answer(context, weights, before)
        if look is not None and partial is not None and model.status == "admitted":
            if is_stopped(context, partial):
                continue
            if look.is_answered(scores(context, model, "selection")):
                continue  # it waits until all others are as far
        found.append((model, look))
    return found


def to_ask_today(context: Context) -> list[tuple[Model, Look | None]]:
    """The same without the merges that today's budget has no room for."""
    asked = to_ask(context)
    left = max(0, context.config.limits.merges_per_day - round(context.spent(_MERGES)))
    proposed = [model.id for model, _ in asked if model.status == "proposed"]
    return [(model, look) for model, look in asked if model.id not in proposed[left:]]


def _plan(context: Context) -> Iterator[Work]:
    """Merges of another day come up, to be waited for, when the others are through."""
    asked = to_ask_today(context)
    if not asked and not racing(context):
        asked = to_ask(context)
    works = [work_for(context.settings, model, "selection", look) for model, look in asked]
    yield from together(context, "score", context.settings, works)


def _run(context: Context, work: Work) -> Evaluated:
    model = context.lineage.require(str(work.model))
    known = scores(context, model, "selection")
    if known and work.inputs["weights"] not in partials(context):
        assembly(context, model)  # it may have been set aside because it cannot be made
        return Evaluated(known, context.today, 0.0)
    limit = context.config.limits.merges_per_day
    if model.status == "proposed" and context.spent(_MERGES) >= limit:
        raise BudgetReached(
            f"limits.merges_per_day {limit} reached; the next day (UTC) has its own"
        )
    return evaluate(context, context.settings, work)


def _commit(lineage: Lineage, work: Work, found: Evaluated) -> None:
    name = str(work.model)
    record(lineage, found)
    weights, settings = work.inputs["weights"], work.inputs["settings"]
    if (look := work.inputs.get("look")) is None:
        lineage.drop_partial(weights, settings)
    elif weights not in lineage.partials(settings):
        lineage.put_partial(Partial(weights, settings, look))
    if lineage.require(name).status == "proposed":
        lineage.move_model(name, "admit")
        lineage.spend(_MERGES, found.day, 1)


def _tell(context: Context, work: Work, found: Evaluated) -> None:
    model = context.lineage.require(str(work.model))
    if "look" in work.inputs:
        return  # its score is not known yet
    if model.kind != "merge":
        value = mean_score(found.scores)
        context.report.event("score", f"{model.id} {value:.4f}", model=model.id, score=value)
        return
    value, more = gain(context, model)
    message = f"{model.id} = {' + '.join(model.parents)}: {value:.4f} ({more:+.4f})"
    context.report.event("merge", message, model=model.id, score=value, gain=more)


STEP = Step("score", "device", _plan, _run, _commit, _tell, feeds=True, repeats=True)
