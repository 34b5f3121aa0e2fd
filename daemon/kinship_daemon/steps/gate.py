"""The gate: a merge that did better on selection is held against the others on validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from kinship_daemon.context import Context
from kinship_daemon.evaluate.gate import Undecided, Verdict
from kinship_daemon.steps.judgement import judged, judgement, rules_of, to_answer
from kinship_daemon.steps.scores import parents_of
from kinship_daemon.steps.step import Step, Work
from kinship_daemon.steps.validate import families
from kinship_storage.lineage import Lineage
from kinship_storage.records import Gate

__all__ = ["STEP"]


def _plan(context: Context) -> Iterator[Work]:
    """
    Every merge whose answers decide, one after another.

    Nobody is judged before those who come earlier and may still be.
    """
    rules = rules_of(context)
    for child, others in families(context):
        verdict = judgement(context, child, others, rules)
        if isinstance(verdict, Undecided):
            lacking = to_answer(context, child, others, verdict)
            if any(model.status != "admitted" for model in lacking):
                continue  # there will be no fair comparison
            return
        inputs = {
            "weights": child.weights,
            "others": [model.weights for model in others],
            "evaluation": context.settings.fingerprint("validation"),
            "rules": rules,
        }
        yield Work(inputs, child.id)


def _run(context: Context, work: Work) -> Gate:
    lineage = context.lineage
    child = lineage.require(str(work.model))
    rules, evaluation = work.inputs["rules"], work.inputs["evaluation"]
    own = {parent.weights: parent for parent in parents_of(context, child)}
    others = [own.get(w) or lineage.by_weights(w)[0] for w in work.inputs["others"]]
    verdict = judgement(context, child, others, rules)
    assert isinstance(verdict, Verdict), "only what is decided is planned"
    told = asdict(verdict)
    settings = {**rules, "share": told.pop("share")}
    test = len(judged(lineage)) + 1
    return Gate(child.id, evaluation=evaluation, settings=settings, test=test, **told)


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
