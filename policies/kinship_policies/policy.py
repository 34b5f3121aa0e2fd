"""What a policy sees and what it answers: frozen data in, frozen data out (design section 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

__all__ = [
    "Decision",
    "Fact",
    "Member",
    "Past",
    "Policy",
    "Population",
    "Proposal",
    "Role",
    "kept_best",
]

Role = Literal["pair", "exploration"]
# Facts that cost something to gather and to record: a policy that wants them names them in `uses`.
Fact = Literal["samples", "layers"]
Matrix = tuple[tuple[float | None, ...], ...]


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
        method: The merge method; None for a fine-tune.
        parameters: The merge method's parameters.
        length: Of the delta, in the geometry of the kinship's metric (for pcc, of the delta less
            its mean); None where it is not known.
        samples: Per selection task, the score of every document, in the same order for every
            member; empty unless the policy uses `samples`.
        stderr: Standard error of `score`; None where it is not known.
        documents: Selection documents that it was asked; None where that is not known. Fewer than
            others were is who could hardly be among the k best: its score is foretold.
    """

    name: str
    score: float
    tasks: Mapping[str, float] = field(default_factory=dict)
    generation: int = 0
    parents: tuple[str, ...] = ()
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    length: float | None = None
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stderr: float | None = None
    documents: int | None = None


@dataclass(frozen=True)
class Past:
    """
    An earlier decision of the same policy.

    Attributes:
        merges: Names of the children it led to.
    """

    generation: int
    top: tuple[str, ...]
    top_mean_kinship: float | None
    merges: tuple[str, ...] = ()


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
            generation 1, where everyone is new. A decision that failed, or had no budget, proposed
            none.
        previous_top: The top k of the previous decision, best first; None in generation 1 and
            after a decision that failed or was another policy's.
        saturated: For how many decisions in a row, up to the previous one, the policy found
            the top k saturated.
        seed: For policies that draw; the same population and seed give the same decision.
        history: Earlier decisions of this policy, the oldest first.
        budget: How many merges may still be evaluated now; None for no limit.
        layers: Kinship per layer, the first layer first; empty unless the policy uses `layers`.
    """

    generation: int
    members: tuple[Member, ...]
    kinship: Matrix
    merged: frozenset[tuple[str, str]] = frozenset()
    newcomers: tuple[str, ...] = ()
    previous_top: tuple[str, ...] | None = None
    saturated: int = 0
    seed: int = 0
    history: tuple[Past, ...] = ()
    budget: int | None = None
    layers: tuple[Matrix, ...] = ()

    @cached_property
    def _index(self) -> dict[str, int]:
        return {member.name: i for i, member in enumerate(self.members)}

    @cached_property
    def kinships(self) -> NDArray[np.float64]:
        """`kinship` as an array, (members, members); NaN where it is undefined."""
        n = len(self.members)
        return np.array(self.kinship, dtype=np.float64).reshape(n, n)

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """Every member's score, (members,), in their order; NaN where it is not known."""
        return np.array([member.score for member in self.members], dtype=np.float64)

    def __getitem__(self, name: str) -> Member:
        return self.members[self._index[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def chance(self, *more: int) -> np.random.Generator:
        """The only chance there is: of this seed and generation, and `more` to tell draws apart."""
        return np.random.default_rng([self.seed, self.generation, *more])

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

    def scores_above(self, a: str, b: str) -> bool:
        """Whether a's score is known and higher than b's; an unknown one is below all others."""
        one, other = self[a].score, self[b].score
        return one > other or (math.isnan(other) and not math.isnan(one))

    def unmerged(self, among: Iterable[str] | None = None) -> NDArray[np.intp]:
        """Pairs not merged before, (pairs, 2) places in `members`, in the order of the places."""
        n = len(self.members)
        there = np.ones(n, dtype=bool)
        if among is not None:
            there[:] = False
            there[[self._index[name] for name in among]] = True
        free = np.triu(there[:, None] & there, 1)
        for pair in self.merged:
            if pair[0] in self._index and pair[1] in self._index:
                low, high = sorted(self._index[name] for name in pair)
                free[low, high] = False
        return np.argwhere(free)

    def affordable(self, merges: Iterable[Proposal]) -> tuple[Proposal, ...]:
        """The first of these merges, as many as the budget allows; a sweep may be cut short."""
        kept: list[Proposal] = []
        left = math.inf if self.budget is None else self.budget
        for merge in merges:
            if left <= 0:
                break
            children = len(merge.variants())
            kept.append(
                merge if children <= left else replace(merge, sweep=merge.sweep[: int(left)])
            )
            left -= children
        return tuple(kept)

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
            member["samples"] = {
                task: [_or_null(x) for x in scores] for task, scores in member["samples"].items()
            }
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        members = tuple(_member(m) for m in facts["members"])
        top = facts["previous_top"]
        return cls(
            generation=facts["generation"],
            members=members,
            kinship=_matrix(facts.get("kinship", ())),  # kept apart: the ledger knows it
            merged=frozenset((a, b) for a, b in facts["merged"]),
            newcomers=tuple(facts["newcomers"]),
            previous_top=None if top is None else tuple(top),
            saturated=facts["saturated"],
            seed=facts["seed"],
            # Facts that were recorded before these were known have none of them.
            history=tuple(_past(past) for past in facts.get("history", ())),
            budget=facts.get("budget"),
            layers=tuple(_matrix(layer) for layer in facts.get("layers", ())),
        )


def _best_first(member: Member) -> tuple[bool, float, str]:
    unknown = math.isnan(member.score)
    return unknown, 0.0 if unknown else -member.score, member.name


def _matrix(rows: Iterable[Iterable[float | None]]) -> Matrix:
    return tuple(tuple(row) for row in rows)


def _past(facts: Mapping[str, Any]) -> Past:
    lists = {"top": tuple(facts["top"]), "merges": tuple(facts["merges"])}
    return Past(**{**facts, **lists})


def _or_null(score: float) -> float | None:
    return None if math.isnan(score) else score


def _member(facts: Mapping[str, Any]) -> Member:
    tasks = {task: _or_nan(x) for task, x in facts["tasks"].items()}
    samples = {
        task: tuple(_or_nan(x) for x in scores) for task, scores in facts.get("samples", {}).items()
    }
    changed = {"score": _or_nan(facts["score"]), "tasks": tasks, "samples": samples}
    return Member(**{**facts, **changed, "parents": tuple(facts["parents"])})


def _or_nan(score: float | None) -> float:
    return math.nan if score is None else score


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
        sweep: A coefficient sweep: further overrides, one child for each; empty for one child.
    """

    parents: tuple[str, ...]
    role: Role
    reason: str
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    sweep: tuple[Mapping[str, Any], ...] = ()

    def variants(self) -> tuple[Mapping[str, Any], ...]:
        """The parameters of every child that it asks for."""
        return tuple({**self.parameters, **step} for step in self.sweep or ({},))


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
        # Not `asdict`: it copies every string, and simulations do this thousands of times.
        return {**vars(self), "merges": tuple(dict(vars(merge)) for merge in self.merges)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        merges = tuple(_proposal(merge) for merge in data["merges"])
        return cls(
            merges=merges,
            top=tuple(data["top"]),
            top_mean_kinship=data["top_mean_kinship"],
            stop=data["stop"],
            saturated=data["saturated"],
        )

    @staticmethod
    def read(text: str) -> Decision:
        """
        From JSON that a stranger's policy may have made.

        Raises:
            ValueError: It is no decision; which part, in one line.
        """
        try:
            return _DECISION.validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where} of its decision: {first['msg']}") from None


_DECISION = TypeAdapter(Decision)


def _proposal(data: Mapping[str, Any]) -> Proposal:
    lists = {"parents": tuple(data["parents"]), "sweep": tuple(data.get("sweep", ()))}
    return Proposal(**{**data, **lists})


@runtime_checkable
class Policy(Protocol):
    """
    A pure function of frozen data, deterministic given the population's seed.

    A class attribute `uses: ClassVar[frozenset[Fact]]` names the costlier facts that it wants to be
    given; without it there are none of them.

    An attribute or property `keeps: int` says how many of the best it goes on from: whoever can
    hardly be among these is not asked all documents. Without it, and with the fact `samples`,
    everyone is.
    """

    def propose(self, population: Population) -> Decision: ...


def kept_best(policy: Policy) -> int | None:
    """What a policy says of itself in `keeps`; None where it needs all documents of everyone."""
    uses: frozenset[Fact] = getattr(policy, "uses", frozenset())
    keeps = getattr(policy, "keeps", None)
    return keeps if isinstance(keeps, int) and keeps > 0 and "samples" not in uses else None
