"""The gate: a merge that did better on selection is held against its parents on validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from kinship_daemon.context import Context
from kinship_daemon.evaluate import gate
from kinship_daemon.steps.scores import known_means, parents_of, scores
from kinship_daemon.steps.step import Step, Work
from kinship_daemon.steps.validate import families
from kinship_storage.lineage import Lineage
from kinship_storage.records import Gate

__all__ = ["STEP"]


def _plan(context: Context) -> Iterator[Work]:
    """Every merge whose validation scores are known, and its parents'."""
    known = known_means(context, "validation")
    for child, parents in families(context):
        family = [model.weights for model in (child, *parents)]
        if all(weights in known for weights in family):
            inputs = {
                "weights": family[0],
                "parents": family[1:],
                "evaluation": context.settings.fingerprint("validation"),
                "rules": {**context.config.gate.model_dump(), "seed": context.config.seed},
            }
            yield Work(inputs, child.id)


def _run(context: Context, work: Work) -> Gate:
    child = context.lineage.require(str(work.model))
    rules = work.inputs["rules"]
    verdict = gate.judge(
        scores(context, child, "validation"),
        {p.id: scores(context, p, "validation") for p in parents_of(context, child)},
        min_gain=rules["min_gain"],
        confidence=rules["confidence"],
        resamples=rules["resamples"],
        seed=rules["seed"],
    )
    evaluation = work.inputs["evaluation"]
    return Gate(model=child.id, evaluation=evaluation, settings=rules, **asdict(verdict))


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
    )


STEP = Step("gate", "cpu", _plan, _run, _commit, _tell, blames=False)
