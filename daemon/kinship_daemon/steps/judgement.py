"""What a merge's validation answers say so far: a verdict, or that it is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kinship_daemon.context import Context
from kinship_daemon.evaluate.discovery import Judged, e_lond, saffron
from kinship_daemon.evaluate.gate import Undecided, Verdict, judge, judge_at_looks
from kinship_daemon.evaluate.scoring import Look, looks
from kinship_daemon.steps.leaves import source
from kinship_daemon.steps.scores import scores
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Split

__all__ = ["judged", "judgement", "rules_of", "to_answer"]


def rules_of(context: Context) -> dict[str, Any]:
    """The rules by which merges are judged from now on."""
    rules = {**context.config.gate.model_dump(), "require": context.config.publish.require}
    return {**rules, "seed": context.config.seed}


def judged(lineage: Lineage) -> list[Judged]:
    """
    All judgements of the home's life as the rule of discoveries sees them, in their order.

    The gate before schema 4 had no p: what passed it is a past discovery, what it refused a test
    that gave nothing. A merge is one discovery, however often it is judged.
    """
    found, discovered = [], set[str]()
    for each in lineage.judgements():
        p = each.p if each.p is not None else float(not each.passed)
        found.append(Judged(p, each.passed and each.model not in discovered))
        if each.passed:
            discovered.add(each.model)
    return found


def _looks(context: Context, rules: Mapping[str, Any]) -> tuple[Look, ...]:
    """When the answers are looked at; the strict gate looks once."""
    found = looks(context.evaluators.known(context.settings), "validation")
    return found[-1:] if rules["strict"] else found


def to_answer(
    context: Context, child: Model, others: Sequence[Model], open_: Undecided
) -> list[Model]:
    """Whom a verdict on the child waits for, under the names by which their bytes are in use."""
    wanted = [child, *(model for model in others if model.id in open_.others)]
    lacking = [m for m in wanted if not open_.look.is_answered(scores(context, m, "validation"))]
    weights = sorted({model.weights or "" for model in lacking})
    return [source(context.lineage, each) for each in weights]


def judgement(
    context: Context, child: Model, others: Sequence[Model], rules: Mapping[str, Any]
) -> Verdict | Undecided:
    """
    The verdict on a merge, if its answers give one.

    Args:
        others: The one that is hardest to beat first.
    """
    past = judged(context.lineage)
    both: tuple[Split, ...] = ("validation", "selection") if rules["strict"] else ("validation",)
    answers = {
        model.id: [row for split in both for row in scores(context, model, split)]
        for model in (child, *others)
    }
    own = answers.pop(child.id)
    known = context.evaluators.known(context.settings).documents
    clusters = {name: found.clusters for tasks in known.values() for name, found in tasks.items()}
    given = {key: rules[key] for key in ("min_gain", "resamples", "seed")} | {"clusters": clusters}
    at = _looks(context, rules)
    if not rules["strict"]:
        alpha = saffron(past, rules["fdr"])
        return judge_at_looks(own, answers, at, alpha=alpha, futility=rules["futility"], **given)
    if not all(map(at[-1].is_answered, (own, *answers.values()))):
        return Undecided(at[-1], tuple(answers))
    return judge(own, answers, alpha=e_lond(past, rules["fdr"]), strict=True, **given)
