"""
What the lineage holds, as frozen records.

Times are UTC text with seconds, `2026-01-31T08:15:00Z`; a `created` left empty is filled in when
the record is added. Models are named by their id, weights by their identity (`sha256:...` of the
weight files, or `recipe:...` of a merge that never needed to become a file).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Candidate",
    "File",
    "Gate",
    "Generation",
    "Job",
    "JobStatus",
    "Kind",
    "Model",
    "Publication",
    "ScoreRow",
    "Split",
    "Status",
]

Kind = Literal["base", "finetune", "adapter", "merge"]
Status = Literal["seen", "proposed", "admitted", "refused", "quarantined"]
JobStatus = Literal["pending", "running", "done", "failed", "quarantined"]
Split = Literal["selection", "validation"]


@dataclass(frozen=True)
class Model:
    """
    A model that was seen, made or only proposed.

    Attributes:
        id: Unique in the lineage, never changes.
        generation: 0 for what came from a hub, otherwise the generation that proposed it.
        repo: Where it came from, with `revision`; None for our own merges.
        weights: Identity of its weights; None until they were hashed or the recipe resolved.
        parameters: Number of elements of its weights.
        reason: Why it was refused or quarantined.
        role: What the policy proposed it as: `pair`, `exploration`.
        why: The policy's reason, in words.
        recipe: The merge as it was made; None for what came from a hub.
        parents: Ids of the merged models, in the recipe's order.
        joined: The first generation it could be chosen from.
    """

    id: str
    kind: Kind
    status: Status
    generation: int = 0
    repo: str | None = None
    revision: str | None = None
    weights: str | None = None
    parameters: int | None = None
    license: str | None = None
    reason: str | None = None
    role: str | None = None
    why: str | None = None
    recipe: Mapping[str, Any] | None = None
    parents: tuple[str, ...] = ()
    joined: int | None = None
    created: str = ""

    @property
    def name(self) -> str:
        """What people call it: the repo it came from, or its id."""
        return self.repo or self.id


@dataclass(frozen=True)
class Candidate:
    """
    What a hub says of a model that a watch noticed, and what triage found out from afar.

    Attributes:
        model: Its id in the lineage.
        modified: When the hub saw it change last.
        downloads: As the hub counts them, of late.
        bytes: Size of its weights files; None until it is known.
        triaged: Whether triage is through with it; its model's status says with what outcome.
        novelty: One minus its highest kinship to the population when it was triaged; None where
            that is unknown.
        novelty_error: Standard error of `novelty`.
        read_bytes: Bytes read from the hub to triage it.
        gone: The hub has it no more.
    """

    model: str
    modified: str
    downloads: int = 0
    likes: int = 0
    bytes: int | None = None
    triaged: bool = False
    novelty: float | None = None
    novelty_error: float | None = None
    read_bytes: int = 0
    gone: bool = False


@dataclass(frozen=True)
class File:
    """One file of a model: size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ScoreRow:
    """
    One task's score of some weights, under exactly these settings.

    Attributes:
        settings: Fingerprint of everything that can change the score.
        stderr: Standard error of the mean; NaN where one sample gives none.
        n: Number of samples.
        harness: Name and version of what measured it.
        samples: (document id, value), sorted; `score` is the mean of the values.
    """

    weights: str
    task: str
    split: Split
    settings: str
    metric: str
    task_version: str
    score: float
    stderr: float
    n: int
    seed: int
    harness: str
    samples: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """
    One decision of the policy; a stop is a decision too.

    Attributes:
        number: Unique and ascending; what comes after a stop has the next number.
        settings: The policy's settings.
        facts: All that the policy was shown, so that the decision can be replayed.
        decision: What it answered: merges, top, top_mean_kinship, stop.
    """

    number: int
    policy: str
    settings: Mapping[str, Any]
    seed: int
    facts: Mapping[str, Any]
    decision: Mapping[str, Any]
    stop: str | None = None
    created: str = ""


@dataclass(frozen=True)
class Gate:
    """
    Whether a merge may be published: its gain over its best parent on the validation samples.

    Attributes:
        low: Lower end of the interval of `gain`; `high` its upper end.
        n: Number of paired samples.
        settings: Confidence, resamples, seed, least gain.
    """

    model: str
    parent: str
    passed: bool
    gain: float
    low: float
    high: float
    n: int
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""


@dataclass(frozen=True)
class Publication:
    """A merge as it stands in a hub; `files` maps each path to its sha256."""

    model: str
    repo: str
    revision: str
    url: str
    files: Mapping[str, str] = field(default_factory=dict)
    created: str = ""


@dataclass(frozen=True)
class Job:
    """
    One step of the work, keyed by its inputs so that repeating it is harmless.

    Attributes:
        attempts: How often it was started.
        reason: Why it failed or was quarantined.
        started: Time of the last start; `finished` of its end.
    """

    key: str
    kind: str
    model: str | None
    status: JobStatus
    attempts: int = 0
    reason: str | None = None
    started: str | None = None
    finished: str | None = None
