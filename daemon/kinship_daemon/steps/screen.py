"""A quick screen: few documents tell who is not worth hours of evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kinship_daemon.context import Context
from kinship_daemon.errors import ModelError, Transient
from kinship_daemon.evaluate.settings import Settings
from kinship_daemon.steps.evaluation import Evaluated, evaluate, record, together, work_for
from kinship_daemon.steps.scores import known_means, mean_score
from kinship_daemon.steps.step import Step, Work
from kinship_storage.lineage import Lineage

__all__ = ["STEP"]


@dataclass(frozen=True)
class Screened:
    """
    How a newcomer did, and what it had to reach.

    Attributes:
        base: The base's score on the same documents.
        margin: How far below that is still good enough.
    """

    evaluated: Evaluated
    base: float
    margin: float

    @property
    def score(self) -> float:
        return mean_score(self.evaluated.scores)

    @property
    def refusal(self) -> str | None:
        if self.score >= self.base - self.margin:
            return None
        return f"the quick screen gives {self.score:.4f}, the base {self.base:.4f}"


def quick(context: Context) -> Settings:
    """Today's settings on admission.screen_documents documents per task of selection."""
    documents = context.config.admission.screen_documents
    return context.settings.but(limit=min(documents, context.settings.limit or documents))


def _plan(context: Context) -> Iterator[Work]:
    """The base first, then newcomers. Nobody is screened whose scores are known."""
    if not context.config.admission.screen_documents:
        return
    known = known_means(context, "selection")
    newcomers = [
        model
        for model in context.lineage.models("finetune", "admitted")
        if model.weights not in known and model.screen is None
    ]
    settings = quick(context)
    if newcomers and _base_score(context, settings) is None:
        base = [work_for(settings, context.base, "selection")]
        yield from together(context, "screen", settings, base)
    if _base_score(context, settings) is not None:
        works = [work_for(settings, model, "selection") for model in newcomers]
        yield from together(context, "screen", settings, works)


def _base_score(context: Context, settings: Settings) -> float | None:
    means = context.lineage.mean_scores("selection", settings.fingerprint("selection"))
    return means.get(context.base.weights or "")


def _run(context: Context, work: Work) -> Screened:
    settings = quick(context)
    try:
        evaluated = evaluate(context, settings, work)
    except ModelError as error:
        if work.model != context.base.id:
            raise
        raise Transient(f"nobody is screened: {error}") from error
    base = _base_score(context, settings)
    margin = context.config.admission.screen_margin
    return Screened(evaluated, mean_score(evaluated.scores) if base is None else base, margin)


def _commit(lineage: Lineage, work: Work, found: Screened) -> None:
    name = str(work.model)
    record(lineage, found.evaluated)
    lineage.update_model(name, screen=found.score)
    if found.refusal is not None:
        setting = "admission.screen_margin"
        lineage.move_model(name, "refuse", reason=found.refusal, cause="settings", setting=setting)


def _tell(context: Context, work: Work, found: Screened) -> None:
    if found.refusal is None:
        context.report.event("screen", f"{work.model} {found.score:.4f}", model=work.model)
    else:
        context.report.event("refused", f"{work.model}: {found.refusal}", model=work.model)


STEP = Step(
    "screen",
    "device",
    _plan,
    _run,
    _commit,
    _tell,
    holds_up=False,
    feeds=True,
    sifts=True,
    repeats=True,
)
