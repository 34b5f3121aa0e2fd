"""Validation scores of a promising merge and its comparators: what the gate will compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kinship_daemon.context import Context
from kinship_daemon.errors import planning
from kinship_daemon.evaluate.gate import Verdict
from kinship_daemon.steps.evaluation import Evaluated, evaluate, record, together, work_for
from kinship_daemon.steps.judgement import judgement, rules_of, to_answer
from kinship_daemon.steps.publish import kept_back
from kinship_daemon.steps.rungs import partials
from kinship_daemon.steps.score import unscored
from kinship_daemon.steps.scores import known_means, parents_of
from kinship_daemon.steps.step import Step, Work, say_nothing
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["STEP", "families"]


def families(context: Context) -> Iterator[tuple[Model, list[Model]]]:
    """
    Merges to be judged that were not yet under today's settings, and whom each is compared with.

    Validation costs as much as selection did, so it is spent on merges that did better there than
    all that they are compared with; the others cannot be expected to pass. What is published needs
    no verdict any more.

    Ordered by generation, then name: the level of a verdict depends on all verdicts before, so
    nobody's turn comes while there is an earlier merge that is not scored yet.
    """
    known = known_means(context, "selection")
    first_open = min((_place(m) for m in unscored(context) if m.kind == "merge"), default=None)
    stopped = partials(context)
    judged = {gate.model for gate in context.lineage.gates(_fingerprint(context))}
    judged |= {publication.model for publication in context.lineage.publications()}
    for child in context.lineage.models(kind="merge", status="admitted"):
        if first_open is not None and _place(child) >= first_open:
            return
        if child.id in judged or child.weights is None or child.weights in stopped:
            continue
        with planning(child.id):
            others = _beaten(context, child, known)
        if others:
            yield child, others


def _beaten(context: Context, child: Model, known: Mapping[str, float]) -> list[Model]:
    """
    Its parents, and the best merge before, where it did better than all of these; else nobody.

    The best of them on selection comes first: it is the hardest to beat.

    Args:
        known: Mean selection scores by weights.
    """
    others = parents_of(context, child)
    best = _best_before(context, child, known)
    if best is not None and best.id not in child.parents:
        others.append(best)
    theirs = [known.get(each.weights or "") for each in others]
    if not is_promising(known[child.weights or ""], theirs):
        return []
    return sorted(others, key=lambda each: known[each.weights or ""], reverse=True)


def is_promising(score: float, others: Sequence[float | None]) -> bool:
    """Whether a child beat all the others; None is one set aside since, under other settings."""
    return all(other is not None and score > other for other in others)


def _best_before(context: Context, child: Model, known: Mapping[str, float]) -> Model | None:
    """
    The best merge published before, which a merge must beat, too; None where publish.require says.

    Before is earlier by generation, then name. What passed the gate counts as published unless its
    ancestors' terms keep it back, so that it matters to nobody when a hub is slow. The best is that
    of the selection documents: those of the gate then cannot have chosen it for its luck.

    Args:
        known: Mean selection scores by weights.
    """
    if context.config.publish.require == "parents":
        return None
    passed = {gate.model for gate in context.lineage.gates() if gate.passed}
    before = [
        model
        for model in sorted(map(context.lineage.require, passed), key=_place)
        if _place(model) < _place(child) and model.status == "admitted" and model.weights in known
    ]
    before.sort(key=lambda model: known[model.weights or ""], reverse=True)
    return next((model for model in before if kept_back(context, model) is None), None)


def _place(model: Model) -> tuple[int, str]:
    return model.generation, model.id


def _fingerprint(context: Context) -> str:
    return context.settings.fingerprint("validation")


def _plan(context: Context) -> Iterator[Work]:
    """
    The next family alone: if its merge passes, later ones may not deserve to be judged.

    It answers up to the next look, unless what it has answered decides.
    """
    rules = rules_of(context)
    for child, others in families(context):
        with planning(child.id):
            verdict = judgement(context, child, others, rules)
            if isinstance(verdict, Verdict):
                return
            lacking = to_answer(context, child, others, verdict)
        if any(model.status != "admitted" for model in lacking):
            continue  # one of them cannot be evaluated: there is no fair comparison
        works = [work_for(context.settings, m, "validation", verdict.look) for m in lacking]
        yield from together(context, "validate", context.settings, works)
        return


def _run(context: Context, work: Work) -> Evaluated:
    return evaluate(context, context.settings, work)


def _commit(lineage: Lineage, _work: Work, found: Evaluated) -> None:
    record(lineage, found)


STEP = Step("validate", "device", _plan, _run, _commit, say_nothing, feeds=True)
