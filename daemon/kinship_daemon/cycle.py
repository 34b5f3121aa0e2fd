"""The flow: every kind of step, in the order in which a model passes through them."""

from __future__ import annotations

from typing import Any

from kinship_daemon.context import Context
from kinship_daemon.runner import Runner, Turn
from kinship_daemon.steps import (
    admit,
    decide,
    gate,
    ledger,
    make,
    publish,
    race,
    refetch,
    score,
    screen,
    triage,
    validate,
    watch,
)
from kinship_daemon.steps.step import Step

__all__ = ["STEPS", "generation", "runner"]

STEPS: tuple[Step[Any], ...] = (
    watch.STEP,  # list the hub: who is new, gone or back
    triage.STEP,  # look into a candidate from afar
    admit.STEP,  # fetch it and check it
    publish.STEP,  # what passed the gate waits for nothing that may go wrong below
    refetch.STEP,  # what was there and is not is fetched again
    screen.STEP,  # a few documents tell who is not worth hours
    ledger.STEP,  # inner products with everyone: its kinship
    make.STEP,  # merges that algebra cannot make are written
    score.STEP,  # selection scores of founders and merges
    race.STEP,  # who can hardly be among the best any more is asked no further
    validate.STEP,  # validation scores of merges that beat their parents, and of these
    gate.STEP,  # the verdict; what passes is published in the next turn
    decide.STEP,  # the next generation's merges, or a stop
)


def runner(context: Context) -> Runner:
    return Runner(context, STEPS)


def generation(running: Runner, context: Context) -> Turn:
    """
    Turns without a look at the hub until one generation is made, judged and published.

    Returns:
        The last turn, which found nothing that can be done now.
    """
    skip: set[str] = set()
    while (turn := running.loop(context.now(), skip=skip)).kind is not None:
        if turn.kind == "decide":
            skip = {"decide"}
    return turn
