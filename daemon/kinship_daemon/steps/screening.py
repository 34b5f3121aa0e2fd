"""A quick screen: few documents tell who is not worth hours of evaluation."""

from __future__ import annotations

from dataclasses import replace

from kinship_daemon.daemon import Daemon
from kinship_daemon.evaluate.worker import Evaluator
from kinship_daemon.steps.scoring import mean_score, score, scores
from kinship_storage.records import Model

__all__ = ["screen"]


def screen(d: Daemon) -> None:
    """
    Score newcomers on admission.screen_documents documents per task of selection.

    Who is worse than the base by more than admission.screen_margin is refused; the others are
    evaluated in the order of their screen scores. Nobody is screened whose scores are known.
    """
    documents = d.config.admission.screen_documents
    newcomers = [
        model
        for model in d.lineage.models("finetune", "admitted")
        if not scores(d, model, "selection") and d.lineage.get(f"screen:{model.id}") is None
    ]
    if not documents or not newcomers:
        return
    settings = replace(d.settings, limit=min(documents, d.settings.limit or documents))
    d.evaluator.close()  # the device is for one worker at a time
    with Evaluator(settings, log=d.home.evaluation_log) as evaluator:
        quick = replace(d, settings=settings, evaluator=evaluator)
        if not score(quick, d.base, "selection", "screen"):
            d.lineage.update_model(d.base.id, status="admitted", reason=None)
            d.report.event("warning", f"nobody is screened: {d.base.id} cannot be")
            return
        floor = mean_score(scores(quick, d.base, "selection")) - d.config.admission.screen_margin
        for model in newcomers:
            if score(quick, model, "selection", "screen"):
                _note(d, model, mean_score(scores(quick, model, "selection")), floor)


def _note(d: Daemon, model: Model, found: float, floor: float) -> None:
    with d.lineage.transaction():
        d.lineage.put(f"screen:{model.id}", found)
        if found < floor:
            margin = d.config.admission.screen_margin
            reason = f"the quick screen gives {found:.4f}, the base {floor + margin:.4f}"
            d.lineage.update_model(model.id, status="refused", reason=reason)
            d.report.event("refused", f"{model.id}: {reason}", model=model.id)
