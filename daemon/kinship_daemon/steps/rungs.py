"""How far each model is in the race on selection, and how far it may go."""

from __future__ import annotations

from collections.abc import Mapping

from kinship_daemon.config import Config
from kinship_daemon.context import Context
from kinship_daemon.evaluate.race import RUNGS
from kinship_daemon.evaluate.scoring import Look, looks
from kinship_policies.policy import Policy, kept_best
from kinship_storage.records import Partial

__all__ = [
    "best_kept",
    "is_stopped",
    "may_answer",
    "no_race",
    "partials",
    "partials_in_use",
    "racing",
    "rungs",
]


def no_race(config: Config, policy: Policy) -> str | None:
    """Who needs all selection documents of everyone, so that `evaluate.race` has no effect."""
    if config.gate.strict:
        return "gate.strict"
    return f"policy {config.policy.use}" if kept_best(policy) is None else None


def best_kept(context: Context) -> int | None:
    """Whoever can hardly be among so many best may stop; None where there is no race."""
    config, policy = context.config, context.policy
    if not config.evaluate.race or no_race(config, policy):
        return None
    return kept_best(policy)


def rungs(context: Context) -> tuple[Look, ...]:
    """Up to where the documents are answered before who goes on is decided; the last is all."""
    return looks(context.evaluators.known(context.settings), "selection", RUNGS)


def partials(context: Context) -> dict[str, Partial]:
    """Whose selection scores are not of all documents, by weights in their order."""
    return context.lineage.partials(context.settings.fingerprint("selection"))


def partials_in_use(context: Context) -> list[Partial]:
    """Of these, those of models that the population has now."""
    there = {model.weights for model in context.population_models("admitted")}
    return [partial for partial in partials(context).values() if partial.weights in there]


def racing(context: Context) -> list[Partial]:
    """Of these, those that go on."""
    return [each for each in partials_in_use(context) if not is_stopped(context, each)]


def is_stopped(context: Context, partial: Partial) -> bool:
    """Whether it stays so: where more of the best are kept now, or no race is held, it goes on."""
    best = best_kept(context)
    return best is not None and partial.best is not None and partial.best >= best


def may_answer(context: Context, weights: str, known: Mapping[str, Partial]) -> Look | None:
    """Up to where a model without a final score may answer now; None for all documents."""
    if best_kept(context) is None:
        return None
    steps = rungs(context)
    if weights not in known:
        return steps[0]
    return next((look for look in steps if look.number >= known[weights].rung), None)
