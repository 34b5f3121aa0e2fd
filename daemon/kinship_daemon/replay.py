"""Decides again on the recorded facts: a change of a policy's code that changes history is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kinship_daemon.context import Rows
from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.policy_process import PolicyFailed, ask
from kinship_daemon.steps.facts import told
from kinship_policies.policy import Decision, Fact, Proposal
from kinship_policies.registry import make
from kinship_storage.lineage import Lineage
from kinship_storage.records import Generation

__all__ = ["Replayed", "replay"]


@dataclass(frozen=True)
class Replayed:
    """
    One recorded decision, taken again.

    Attributes:
        decision: Its number.
        differences: A line each; empty where history repeats itself.
        worded: Whether only the reasons, in words, differ.
        missing: Why it could not be taken again.
    """

    decision: int
    policy: str
    differences: tuple[str, ...] = ()
    worded: bool = False
    missing: str | None = None


def replay(lineage: Lineage, rows: Rows, seconds: float) -> Iterator[Replayed]:
    """
    Every recorded decision in order.

    Args:
        rows: The home's ledger, which knows the kinships that decisions rested on.
        seconds: That a policy gets for each.
    """
    for decision in lineage.generations():
        try:
            policy = make(decision.policy, decision.settings)
            facts = lineage.facts(decision.number) or {}
            uses: frozenset[Fact] = getattr(policy, "uses", frozenset())
            population = told(lineage, rows, facts, uses)
        except (ModelError, UsageError) as error:
            yield Replayed(decision.number, decision.policy, missing=str(error))
            continue
        try:
            again = ask(policy, population, seconds)
        except PolicyFailed as error:
            again = Decision((), (), None, stop=f"the policy failed: {error}")
        yield _compared(decision, again)


def _compared(decision: Generation, again: Decision) -> Replayed:
    recorded = Decision.from_json(decision.decision)
    if _stopped_by_daemon(decision, recorded) and again.stop is None:
        again = replace(again, merges=(), stop=recorded.stop)
    differences = tuple(_differences(recorded, again))
    worded = not differences and recorded != again
    if worded:
        differences = ("the same in other words",)
    return Replayed(decision.number, decision.policy, differences, worded)


def _stopped_by_daemon(decision: Generation, recorded: Decision) -> bool:
    """Whether the policy went on, but nothing that it proposed was new, allowed or sound."""
    refused = decision.stop_kind == "policy failed" and bool(
        recorded.top
    )  # one that raises has none
    return refused or decision.stop_kind in {"nothing new", "budget"}


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
