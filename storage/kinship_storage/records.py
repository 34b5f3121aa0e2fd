"""
What the lineage holds, as frozen records.

Times are UTC text with seconds, `2026-01-31T08:15:00Z`; a `created` left empty is filled in when
the record is added. Models are named by their id, weights by their identity (`sha256:...` of the
weight files, or `recipe:...` of a merge that never needed to become a file).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Literal

from kinship_storage.transitions import Cause, JobStatus, Status

__all__ = [
    "Candidate",
    "Cause",
    "Event",
    "File",
    "Gate",
    "Generation",
    "Job",
    "JobStatus",
    "Kind",
    "Model",
    "Partial",
    "Publication",
    "Score",
    "Split",
    "Status",
    "StopKind",
]

Kind = Literal["base", "finetune", "merge"]
Split = Literal["selection", "validation"]
StopKind = Literal["converged", "policy failed", "budget", "nothing new"]


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
        reason: Why it was refused or quarantined, in words; `cause` says whose fault that is.
        setting: The config key whose change opens it again, such as `triage.max_gb`; only with
            cause `settings`.
        retry_at: When it opens again by itself; only with cause `world`.
        faults: How many times in a row it was set aside for the world; 0 once admitted.
        folder: Where its files lie; None if they are not on this disk.
        size: Bytes of its files on disk, kept when they made room.
        gated: The hub asks for its terms to be accepted.
        screen: Its score of the quick screen.
        not_published: Why a merge that passed the gate is not published.
        role: What the policy proposed it as: `pair`, `exploration`.
        why: The policy's reason, in words.
        recipe: The merge as it was made; None for what came from a hub.
        parents: Ids of the merged models, in the recipe's order.
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
    cause: Cause | None = None
    setting: str | None = None
    retry_at: str | None = None
    faults: int = 0
    folder: str | None = None
    size: int | None = None
    gated: bool = False
    screen: float | None = None
    not_published: str | None = None
    role: str | None = None
    why: str | None = None
    recipe: Mapping[str, Any] | None = None
    parents: tuple[str, ...] = ()
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
        ancestry: How far it is from the base, and which known models it is made of, as its sample
            tells (`kinship_daemon.ancestry`); None where nobody looked.
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
    ancestry: Mapping[str, Any] | None = None
    read_bytes: int = 0
    gone: bool = False


@dataclass(frozen=True)
class File:
    """One file of a model: size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Score:
    """
    One task's score of some weights, under exactly these settings.

    Attributes:
        settings: Fingerprint of everything that can change the score.
        stderr: Standard error of the mean; NaN where one sample gives none.
        n: Number of samples.
        harness: Name and version of what measured it.
        samples: (document id, value), sorted; `score` is the mean of the values. Empty where they
            were not asked for.
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
class Partial:
    """
    How far some weights are with the selection documents, where they have not answered all.

    Attributes:
        rung: They may answer the documents up to this one.
        best: They were stopped, for they could hardly be among so many best; None while they go on.
        share: Of the documents, that they had answered then.
        mean: Their score on all documents as foretold; None until the race is over.
        stderr: Standard deviation of what is foretold.
    """

    weights: str
    settings: str
    rung: int
    best: int | None = None
    share: float | None = None
    mean: float | None = None
    stderr: float | None = None


@dataclass(frozen=True)
class Generation:
    """
    One decision of the policy; a stop is a decision too.

    Attributes:
        number: Of the decision, unique and ascending.
        generation: The generation whose merges it proposed; None for a stop, which uses up none.
        settings: The policy's settings.
        decision: What it answered: merges, top, top_mean_kinship, stop.
        stop: Why it stopped, in words; `stop_kind` is its kind.
    """

    number: int
    generation: int | None
    policy: str
    settings: Mapping[str, Any]
    seed: int
    decision: Mapping[str, Any]
    stop: str | None = None
    stop_kind: StopKind | None = None
    created: str = ""


@dataclass(frozen=True)
class Gate:
    """
    Whether a merge may be published: its gain on the validation documents, and the evidence for it.

    Attributes:
        against: Whom the gain is over: of its parents, and of who else had to be beaten, the one
            that it is least surely better than.
        low: Lower end of the 95 % interval of `gain`; `high` its upper end.
        n: Number of paired documents.
        evaluation: Fingerprint of the settings of the validation scores; a model has one gate
            under each.
        settings: The gate's rules, the seed, and the share of all documents that it was given on.
        p: Chance of such a gain by luck; None under the gate before schema 4, which had none.
        alpha: The level that p was held against; None likewise.
        test: How many judgements there were in this home up to this one; None is filled in.
    """

    model: str
    against: str
    passed: bool
    gain: float
    low: float
    high: float
    n: int
    reason: str
    evaluation: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    p: float | None = None
    alpha: float | None = None
    test: int | None = None


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
        key: Of kind and inputs (`kinship_storage.jobs.job_key`).
        inputs: What the step is given, as JSON.
        model: Id of the model it is about, if it is about one.
        reason: Why it waits or failed, in words; `cause` says whose fault that is.
        due: When a waiting job can start; None for at once.
        attempts: How often it was started.
        started: Time of the last start; `finished` of its end.
        seconds: Time at work, over all attempts that were not killed.
    """

    key: str
    kind: str
    inputs: Mapping[str, Any]
    model: str | None
    status: JobStatus
    cause: Cause | None = None
    reason: str | None = None
    due: str | None = None
    attempts: int = 0
    started: str | None = None
    finished: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Event:
    """
    Something that the world outside may be told.

    Attributes:
        number: Events ascend in the order in which they happened.
        kind: One word, such as `publish`.
        message: The event in words.
        model: Id of the model that it is about, if it is about one.
        facts: The same for machines, as JSON.
    """

    number: int
    kind: str
    message: str
    model: str | None
    facts: Mapping[str, Any]
    created: str

    @property
    def id(self) -> str:
        """The same whenever it is delivered; no other event has it, in any home."""
        content = json.dumps(astuple(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]
