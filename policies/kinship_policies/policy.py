"""What a policy sees and what it answers: frozen data in, frozen data out (design section 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, Self, runtime_checkable

__all__ = ["Decision", "Member", "Policy", "Population", "Proposal", "Role"]

Role = Literal["pair", "exploration"]


@dataclass(frozen=True)
class Member:
    """
    One model the policy may choose from.

    Attributes:
        name: Unique in the population; ties are broken by it.
        score: Mean over the selection tasks; higher is better.
        tasks: Score per selection task.
        generation: 0 for a fine-tune, otherwise the generation that made it.
        parents: Names of the merged models; empty for a fine-tune.
    """

    name: str
    score: float
    tasks: Mapping[str, float] = field(default_factory=dict)
    generation: int = 0
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Population:
    """
    All that a policy may know when it proposes a generation.

    Attributes:
        generation: The number of the generation to propose; the first is 1.
        members: Sorted by name.
        kinship: Row i, column j is the kinship of members i and j (for pcc and cosine in [-1, 1]);
            None where it is undefined.
        merged: Pairs merged before, each sorted by name.
        newcomers: Fine-tunes admitted since the previous generation was proposed; empty in
            generation 1, where everyone is new.
        previous_top: The top k of the previous decision, best first; None in generation 1.
        saturated: For how many decisions in a row, up to the previous one, the policy found
            the top k saturated.
        seed: For policies that draw; the same population and seed give the same decision.
    """

    generation: int
    members: tuple[Member, ...]
    kinship: tuple[tuple[float | None, ...], ...]
    merged: frozenset[tuple[str, str]] = frozenset()
    newcomers: tuple[str, ...] = ()
    previous_top: tuple[str, ...] | None = None
    saturated: int = 0
    seed: int = 0

    @cached_property
    def _index(self) -> dict[str, int]:
        return {member.name: i for i, member in enumerate(self.members)}

    def __getitem__(self, name: str) -> Member:
        return self.members[self._index[name]]

    def kin(self, a: str, b: str) -> float | None:
        """Kinship of two members; None where it is undefined (a delta without variance)."""
        return self.kinship[self._index[a]][self._index[b]]

    def mean_kinship(self, names: Iterable[str]) -> float | None:
        """Mean over all pairs, the kinship of more than two models; None if no pair has one."""
        chosen = sorted(names)
        known = [
            kin
            for i, a in enumerate(chosen)
            for b in chosen[i + 1 :]
            if (kin := self.kin(a, b)) is not None
        ]
        return sum(known) / len(known) if known else None

    def was_merged(self, a: str, b: str) -> bool:
        return (min(a, b), max(a, b)) in self.merged

    def best(self, k: int, among: Iterable[str] | None = None) -> tuple[str, ...]:
        """Names of the k best by score, best first, ties by name; a NaN score ranks last."""
        pool = self.members if among is None else [self[name] for name in sorted(among)]
        return tuple(m.name for m in sorted(pool, key=_best_first)[:k])

    def to_json(self) -> dict[str, Any]:
        """Facts as they are recorded with a decision, to be replayed; a NaN score is null."""
        facts = asdict(self)
        facts["merged"] = sorted(self.merged)
        for member in facts["members"]:
            member["score"] = _or_null(member["score"])
            member["tasks"] = {task: _or_null(x) for task, x in member["tasks"].items()}
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        members = tuple(_member(m) for m in facts["members"])
        top = facts["previous_top"]
        return cls(
            generation=facts["generation"],
            members=members,
            kinship=tuple(tuple(row) for row in facts["kinship"]),
            merged=frozenset((a, b) for a, b in facts["merged"]),
            newcomers=tuple(facts["newcomers"]),
            previous_top=None if top is None else tuple(top),
            saturated=facts["saturated"],
            seed=facts["seed"],
        )


def _best_first(member: Member) -> tuple[bool, float, str]:
    unknown = math.isnan(member.score)
    return unknown, 0.0 if unknown else -member.score, member.name


def _or_null(score: float) -> float | None:
    return None if math.isnan(score) else score


def _member(facts: Mapping[str, Any]) -> Member:
    tasks = {task: math.nan if x is None else x for task, x in facts["tasks"].items()}
    score = math.nan if facts["score"] is None else facts["score"]
    parents = tuple(facts["parents"])
    return Member(**{**facts, "score": score, "tasks": tasks, "parents": parents})


@dataclass(frozen=True)
class Proposal:
    """
    One merge to make.

    Attributes:
        parents: Two or more members' names, the first is the merge's point of departure (t = 0).
        role: `pair` or `exploration`.
        reason: Why, in words, with the facts it rests on.
        method: A merge method, or None for the configured one.
        parameters: Overrides of the configured method's parameters.
    """

    parents: tuple[str, ...]
    role: Role
    reason: str
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """
    A generation's merges, or a stop.

    Attributes:
        merges: In the order in which they are to be made; empty when stopped.
        top: The policy's chosen few, best first.
        top_mean_kinship: Mean pairwise kinship of `top`; None if there are fewer than two.
        stop: Why evolution stops here, in words; None while it goes on.
        saturated: For how many decisions in a row, this one included, the top was saturated.
    """

    merges: tuple[Proposal, ...]
    top: tuple[str, ...]
    top_mean_kinship: float | None
    stop: str | None = None
    saturated: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        merges = tuple(Proposal(**{**m, "parents": tuple(m["parents"])}) for m in data["merges"])
        return cls(
            merges=merges,
            top=tuple(data["top"]),
            top_mean_kinship=data["top_mean_kinship"],
            stop=data["stop"],
            saturated=data["saturated"],
        )


@runtime_checkable
class Policy(Protocol):
    """A pure function of frozen data, deterministic given the population's seed."""

    def propose(self, population: Population) -> Decision: ...
