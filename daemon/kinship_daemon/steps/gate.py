"""The gate: a merge that did better on selection is held against the others on validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from kinship_daemon.context import Context
from kinship_daemon.evaluate import gate
from kinship_daemon.evaluate.discovery import Judged, e_lond, saffron
from kinship_daemon.steps.scores import known_means, parents_of, scores
from kinship_daemon.steps.step import Step, Work
from kinship_daemon.steps.validate import families
from kinship_storage.lineage import Lineage
from kinship_storage.records import Gate, Split

__all__ = ["STEP", "judged"]


def _plan(context: Context) -> Iterator[Work]:
    """
    Every merge whose validation scores are known, as those of all that it is compared with.

    Nobody is judged before those who come earlier and may still be.
    """
    known = known_means(context, "validation")
    for child, others in families(context):
        missing = [model for model in (child, *others) if model.weights not in known]
        if any(model.status != "admitted" for model in missing):
            continue  # there will be no fair comparison
        if missing:
            return
        rules = {**context.config.gate.model_dump(), "require": context.config.publish.require}
        inputs = {
            "weights": child.weights,
            "others": [model.weights for model in others],
            "evaluation": context.settings.fingerprint("validation"),
            "rules": {**rules, "seed": context.config.seed},
        }
        yield Work(inputs, child.id)


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


def _run(context: Context, work: Work) -> Gate:
    lineage = context.lineage
    child = lineage.require(str(work.model))
    rules, evaluation = work.inputs["rules"], work.inputs["evaluation"]
    past = judged(lineage)
    own = {parent.weights: parent.id for parent in parents_of(context, child)}
    others = [own.get(w) or lineage.by_weights(w)[0].id for w in work.inputs["others"]]
    both: tuple[Split, ...] = ("validation", "selection") if rules["strict"] else ("validation",)
    answers = {
        name: [row for split in both for row in scores(context, lineage.require(name), split)]
        for name in (child.id, *others)
    }
    verdict = gate.judge(
        answers.pop(child.id),
        answers,
        alpha=(e_lond if rules["strict"] else saffron)(past, rules["fdr"]),
        min_gain=rules["min_gain"],
        resamples=rules["resamples"],
        seed=rules["seed"],
        strict=rules["strict"],
    )
    test = len(past) + 1
    return Gate(child.id, evaluation=evaluation, settings=rules, test=test, **asdict(verdict))


def _commit(lineage: Lineage, _work: Work, verdict: Gate) -> None:
    lineage.add_gate(verdict)


def _tell(context: Context, _work: Work, verdict: Gate) -> None:
    context.report.event(
        "gate",
        f"{verdict.model} {verdict.reason}",
        model=verdict.model,
        passed=verdict.passed,
        gain=verdict.gain,
        low=verdict.low,
        high=verdict.high,
        p=verdict.p,
        allowed=verdict.alpha,
        against=verdict.against,
        test=verdict.test,
    )


STEP = Step("gate", "cpu", _plan, _run, _commit, _tell, blames=False)
