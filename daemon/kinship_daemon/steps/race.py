"""
The race on selection: at the end of a rung it is decided who goes on.

It is decided once everyone has answered up to there, from stored answers alone, so that the lineage
does not depend on who was first. Whoever can hardly be among the best any more stops; the policy
sees the score that its answers foretell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from kinship_daemon.context import Context
from kinship_daemon.evaluate.race import Asked, Forecast, can_hardly_be_among, forecast, stop_words
from kinship_daemon.evaluate.scoring import in_order
from kinship_daemon.steps.rungs import (
    best_kept,
    is_stopped,
    partials,
    partials_in_use,
    racing,
    rungs,
)
from kinship_daemon.steps.score import to_ask_today
from kinship_daemon.steps.scores import known_means, scores
from kinship_daemon.steps.step import Step, Work
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Partial

__all__ = ["STEP"]


def _plan(context: Context) -> Iterator[Work]:
    """
    The lowest rung, once nobody has to answer; at the very end, what is foretold of the rest.

    Merges that today's budget has no room for do not hold up the others.
    """
    best = best_kept(context)
    if best is None or to_ask_today(context):
        return
    inputs = {
        "settings": context.settings.fingerprint("selection"),
        "best": best,
        "width": context.config.evaluate.race_width,
    }
    if going := racing(context):
        rung = min(partial.rung for partial in going)
        at = [partial.weights for partial in going if partial.rung == rung]
        yield Work({**inputs, "rung": rung, "weights": at})
    elif over := [each.weights for each in partials_in_use(context) if each.mean is None]:
        yield Work({**inputs, "weights": over})


@dataclass(frozen=True)
class Raced:
    """How far those are who were looked at; of these, names of whom stopped just now."""

    partials: tuple[Partial, ...]
    stopped: tuple[str, ...] = ()


def _run(context: Context, work: Work) -> Raced:
    field, known = _Field(context), partials(context)
    chosen = [known[weights] for weights in work.inputs["weights"]]
    if "rung" not in work.inputs:
        return Raced(tuple(_foretold(partial, field) for partial in chosen))
    found, stopped = [], []
    after = next(look.number for look in rungs(context) if look.number > work.inputs["rung"])
    for partial in chosen:
        if _is_beaten(field, work, partial.weights):
            share = field.share(partial.weights)
            found.append(replace(partial, best=work.inputs["best"], share=share))
            stopped.append(field.models[partial.weights].id)
        else:
            found.append(Partial(partial.weights, partial.settings, after))
    return Raced(tuple(found), tuple(stopped))


def _foretold(partial: Partial, field: _Field) -> Partial:
    end = field.forecast(partial.weights)
    return replace(partial, mean=end.mean, stderr=end.stderr)


def _is_beaten(field: _Field, work: Work, weights: str) -> bool:
    """Neither is it among the best, nor above its better parent, by which it might be published."""
    best, width = work.inputs["best"], work.inputs["width"]
    own = field.forecast(weights)
    parents = [field.forecast(each) for each in field.parents(weights)]
    return can_hardly_be_among(own, field.others(weights), best, width) and (
        not parents or can_hardly_be_among(own, parents, 1, width)
    )


class _Field:
    """Everyone in the race or through with all documents, and the final scores as foretold."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.evaluators.known(context.settings)
        self._partials = partials(context)
        self._means = known_means(context, "selection")
        self._totals = [len(ids) for ids in rungs(context)[-1].documents.values()]
        self._answers: dict[str, list[np.ndarray]] = {}
        self._forecasts: dict[str, Forecast] = {}
        self.models: dict[str, Model] = {}
        for model in context.population_models("admitted"):
            weights = model.weights or ""
            if weights in self._means or weights in self._partials:
                self.models.setdefault(weights, model)
        whole = [weights for weights in self.models if weights not in self._partials]
        self._whole = sorted(whole, key=lambda weights: (self._means[weights], weights))

    def parents(self, weights: str) -> list[str]:
        lineage = self._context.lineage
        found = [lineage.require(name).weights or "" for name in self.models[weights].parents]
        return [each for each in found if each in self.models]

    def others(self, weights: str) -> list[Forecast]:
        return [self.forecast(each) for each in sorted(self.models) if each != weights]

    def share(self, weights: str) -> float:
        """Of all documents, those that it has answered."""
        return sum(map(len, self._answered(weights))) / sum(self._totals)

    def forecast(self, weights: str) -> Forecast:
        partial = self._partials.get(weights)
        if partial is None or (partial.mean is not None and is_stopped(self._context, partial)):
            return Forecast(self._means[weights], 0.0 if partial is None else partial.stderr or 0.0)
        if weights not in self._forecasts:
            self._forecasts[weights] = self._foretell(weights)
        return self._forecasts[weights]

    def _foretell(self, weights: str) -> Forecast:
        """From two who have answered all: its parents, then the best."""
        parents = self.parents(weights)
        chosen = [each for each in self._whole if each in parents][-2:]
        for each in reversed(self._whole):
            if len(chosen) < 2 and each not in chosen:
                chosen.append(each)
        chosen.sort(key=self._whole.index)
        pair = [self._answered(each) for each in (chosen[:1] * 2 if len(chosen) == 1 else chosen)]
        return forecast(
            [
                Asked(answers, total, np.array([each[task] for each in pair]) if pair else None)
                for task, (answers, total) in enumerate(
                    zip(self._answered(weights), self._totals, strict=True)
                )
            ]
        )

    def _answered(self, weights: str) -> list[np.ndarray]:
        if weights not in self._answers:
            rows = scores(self._context, self.models[weights], "selection")
            self._answers[weights] = in_order(self._settings, "selection", rows)
        return self._answers[weights]


def _commit(lineage: Lineage, _work: Work, raced: Raced) -> None:
    for partial in raced.partials:
        lineage.put_partial(partial)


def _tell(context: Context, _work: Work, raced: Raced) -> None:
    known = partials(context)
    for name in raced.stopped:
        partial = known[context.lineage.require(name).weights or ""]
        words = f"{name} {stop_words(partial)}"
        context.report.event("race", words, model=name, share=partial.share)


STEP = Step("race", "cpu", _plan, _run, _commit, _tell, blames=False, repeats=True)
