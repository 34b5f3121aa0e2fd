"""Decides again on the recorded facts: a change of a policy's code that changes history is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kinship_daemon.errors import UsageError
from kinship_daemon.policy_process import FAILED, NOTHING_NEW, SPENT, PolicyFailed, ask
from kinship_policies.policy import Decision, Population, Proposal
from kinship_policies.registry import make
from kinship_storage.lineage import Lineage
from kinship_storage.records import Generation

__all__ = ["Replayed", "replay"]


@dataclass(frozen=True)
class Replayed:
    """
    One recorded decision, taken again.

    Attributes:
        differences: A line each; empty where history repeats itself.
        worded: Whether only the reasons, in words, differ.
    """

    generation: int
    policy: str
    differences: tuple[str, ...]
    worded: bool = False


def replay(lineage: Lineage, seconds: float) -> Iterator[Replayed]:
    """Every recorded decision in order; a policy gets so many seconds for each."""
    for generation in lineage.generations():
        recorded = Decision.from_json(generation.decision)
        try:
            policy = make(generation.policy, generation.settings)
            again = ask(policy, Population.from_json(generation.facts), seconds)
        except (PolicyFailed, UsageError) as error:
            again = Decision((), (), None, stop=f"{FAILED}{error}")
        yield _compared(generation, recorded, again)


def _compared(generation: Generation, recorded: Decision, again: Decision) -> Replayed:
    if _stopped_by_daemon(recorded) and again.stop is None:
        again = replace(again, merges=(), stop=recorded.stop)
    differences = tuple(_differences(recorded, again))
    worded = not differences and recorded != again
    if worded:
        differences = ("the same in other words",)
    return Replayed(generation.number, generation.policy, differences, worded)


def _stopped_by_daemon(recorded: Decision) -> bool:
    """Whether the policy went on, but nothing that it proposed was new, allowed or sound."""
    stop = recorded.stop or ""
    refused = stop.startswith(FAILED) and bool(recorded.top)  # one that raises has no top
    return refused or stop.startswith((NOTHING_NEW, SPENT))


def _differences(recorded: Decision, again: Decision) -> Iterator[str]:
    then, now = ([_recipe(p) for p in each.merges] for each in (recorded, again))
    for proposal in then:
        if proposal not in now:
            yield f"no longer proposes {proposal}"
    for proposal in now:
        if proposal not in then:
            yield f"now proposes {proposal}"
    if sorted(then) == sorted(now) and then != now:
        yield "proposes the same in another order"
    if recorded.top != again.top:
        yield f"its top was {_listed(recorded.top)}, now {_listed(again.top)}"
    if recorded.top_mean_kinship != again.top_mean_kinship:
        then_mean, now_mean = recorded.top_mean_kinship, again.top_mean_kinship
        yield f"its top's mean kinship was {then_mean}, now {now_mean}"
    if (recorded.stop is None) != (again.stop is None):
        yield f"stopped then: {recorded.stop}" if recorded.stop else f"now stops: {again.stop}"
    if recorded.saturated != again.saturated:
        yield f"was saturated {recorded.saturated} times in a row, now {again.saturated}"


def _recipe(proposal: Proposal) -> str:
    """All that decides what is made, in words."""
    parts = [" + ".join(proposal.parents), f"({proposal.role})"]
    if proposal.method is not None:
        parts.append(f"by {proposal.method}")
    if any(proposal.variants()):
        parts.append(f"with {[dict(sorted(v.items())) for v in proposal.variants()]}")
    return " ".join(parts)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nobody"
