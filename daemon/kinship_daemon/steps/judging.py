"""The gate: a merge that did better on selection is held against its best parent on validation."""

from __future__ import annotations

from kinship_daemon.daemon import Daemon
from kinship_daemon.evaluate import gate
from kinship_daemon.steps.scoring import mean_score, score, scores
from kinship_storage.records import Gate, Model

__all__ = ["judge_children"]


def judge_children(d: Daemon) -> None:
    """
    Judge every merge that deserves it and was not judged yet.

    Validation costs as much as selection did, so it is spent on merges that beat all their parents
    there; the others cannot be expected to pass.
    """
    for child in d.lineage.models(kind="merge", status="admitted"):
        if d.lineage.gate(child.id) is None and _is_promising(d, child):
            _judge(d, child)


def _is_promising(d: Daemon, child: Model) -> bool:
    """Whether its selection score is above its best parent's."""
    mine = scores(d, child, "selection")
    theirs = [scores(d, parent, "selection") for parent in _parents(d, child)]
    # A parent without scores was quarantined since, under other settings: nothing to compare with.
    return bool(mine) and all(theirs) and mean_score(mine) > max(map(mean_score, theirs))


def _parents(d: Daemon, child: Model) -> list[Model]:
    return [d.lineage.require(name) for name in child.parents]


def _judge(d: Daemon, child: Model) -> None:
    family = [child, *_parents(d, child)]
    if not all(score(d, model, "validation", "validate") for model in family):
        # One of them was quarantined on the way, which has been said; there is no fair comparison.
        return
    rules = d.config.gate

    def work() -> gate.Verdict:
        return gate.judge(
            scores(d, child, "validation"),
            {parent.id: scores(d, parent, "validation") for parent in _parents(d, child)},
            min_gain=rules.min_gain,
            confidence=rules.confidence,
            resamples=rules.resamples,
            seed=d.config.seed,
        )

    def record(verdict: gate.Verdict) -> None:
        d.lineage.add_gate(
            Gate(
                model=child.id,
                parent=verdict.parent,
                passed=verdict.passed,
                gain=verdict.gain,
                low=verdict.low,
                high=verdict.high,
                n=verdict.n,
                reason=verdict.reason,
                settings={
                    **rules.model_dump(),
                    "seed": d.config.seed,
                    "evaluation": d.settings.fingerprint("validation"),
                },
            )
        )
        outcome = "passed" if verdict.passed else "not passed"
        d.report.event(
            "gate",
            f"{child.id} {outcome}: {verdict.reason}",
            model=child.id,
            passed=verdict.passed,
            gain=verdict.gain,
            low=verdict.low,
            high=verdict.high,
        )

    d.step("gate", f"gate:{child.id}", child, work, record)
