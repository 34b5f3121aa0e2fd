"""The flow: watch, triage, kinship, policy, merge, evaluate, gate, publish; each line one step."""

from __future__ import annotations

from dataclasses import dataclass

from kinship_daemon.daemon import Daemon
from kinship_daemon.steps import (
    admission,
    assemblies,
    elementwise,
    evolution,
    judging,
    publication,
    screening,
    triage,
    watching,
)

__all__ = ["Outcome", "evolve", "poll"]


@dataclass(frozen=True)
class Outcome:
    """
    How far one generation came.

    Attributes:
        stop: Why there is nothing more to do until a new fine-tune comes; None if there is.
    """

    stop: str | None


def poll(d: Daemon) -> bool:
    """
    One look at the hub. Whoever is new is admitted or refused.

    Returns:
        Whether the population may have grown.

    Raises:
        Transient: the hub is away, or wants no calls for a while; who was admitted stays.
    """
    watching.notice(d)
    away = triage.triage(d)
    admission.admit(d)
    if away is not None:
        raise away
    return bool(admission.without_row(d))


def evolve(d: Daemon) -> Outcome:
    """
    One generation, from where the last call or the last process left off.

    Every step is written down before the next begins and is not taken twice, so that a call after
    a kill goes on in the middle.

    Raises:
        Transient: the hub did not take a merge; all else is done.
    """
    screening.screen(d)
    admission.relate(d)
    elementwise.make_children(d)
    assemblies.record_kinships(d)
    # What passed before waits for nothing that may go wrong below, nor for tomorrow's budget.
    publication.publish_passed(d)
    evolution.score_everyone(d)
    if not evolution.unfinished(d) and evolution.converged(d) is None:
        evolution.decide(d)
        elementwise.make_children(d)
        assemblies.record_kinships(d)
    grown = evolution.grow(d)
    judging.judge_children(d)
    away = publication.publish_passed(d)
    evolution.show_generation(d, grown)
    if away is not None:
        raise away
    return Outcome(evolution.converged(d))
