"""What a run will take: documents, time, downloads and disk, from a timed probe of the base."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from kinship_daemon.config import Config
from kinship_daemon.evaluate.evaluator import Evaluator
from kinship_daemon.evaluate.scoring import missing
from kinship_daemon.exclusion import excluded
from kinship_daemon.hub.records import Hub
from kinship_daemon.hub.triage import listed_refusal
from kinship_daemon.report import amount
from kinship_daemon.steps.watch import rules_of
from kinship_daemon.weights.materialise import Assembly
from kinship_policies.policy import Member, Policy, Population
from kinship_storage.records import Split

__all__ = ["Estimate", "Probe", "estimate", "estimate_lines", "probe"]

_MOST_MEMBERS = 100  # more founders make no first generation larger that anybody could afford
_HOUR = 3600.0


@dataclass(frozen=True)
class Probe:
    """
    What the base showed.

    Attributes:
        documents: By split, of all its tasks.
        seconds: By split: one model on all of them, its loading included.
        asked: Documents that were timed.
    """

    documents: Mapping[Split, int]
    seconds: Mapping[Split, float]
    asked: int


@dataclass(frozen=True)
class Estimate:
    """
    Attributes:
        founders: Fine-tunes that the hub lists and no rule refuses at a glance.
        model_bytes: Of the base's files, and so of a whole fine-tune's.
        download_bytes: Of all founders, were each as large as the base; adapters are smaller.
        disk_bytes: Of that and the base, at most `limits.disk_gb`: the rest makes room.
        merges: That the policy proposes first, were the founders' kinships all alike; None where
            it fails on such.
        probe: None where the base was not timed.
    """

    founders: int
    model_bytes: int
    download_bytes: int
    disk_bytes: int
    merges: int | None
    probe: Probe | None


def probe(evaluator: Evaluator, base: Assembly) -> Probe:
    """
    Time the base on the first chunk of every task.

    Raises:
        KinshipError: As `Evaluator.check` and `Evaluator.evaluate`.
    """
    evaluator.check()
    splits: tuple[Split, ...] = get_args(Split)
    asked = {split: missing(evaluator.settings, split) for split in splits}
    chunk = evaluator.settings.chunk
    evaluator.probe(base)  # what only the first model has to wait for
    began = time.monotonic()
    evaluator.probe(base)
    loading = time.monotonic() - began
    paces: dict[str, float] = {}
    timed = 0
    for tasks in asked.values():
        for task, documents in tasks.items():
            if task.task in paces or not documents:
                continue
            few = documents[:chunk]
            began = time.monotonic()
            evaluator.evaluate(base, {task: few})
            seconds = time.monotonic() - began
            # Of a short task the loading is most: it counts once for each model, not here.
            paces[task.task] = max(seconds - loading, seconds / 10) / len(few)
            timed += len(few)
    return Probe(
        documents={s: sum(map(len, tasks.values())) for s, tasks in asked.items()},
        seconds={
            s: loading + sum(paces.get(t.task, 0.0) * len(d) for t, d in tasks.items())
            for s, tasks in asked.items()
        },
        asked=timed,
    )


def estimate(
    config: Config,
    hub: Hub,
    base_id: str,
    model_bytes: int,
    policy: Policy,
    found: Probe | None,
) -> Estimate:
    """
    What lies ahead of a home that has nothing yet; lists the hub, fetches nothing.

    Raises:
        Transient: The hub does not answer.
    """
    rules = rules_of(config)
    founders = sum(
        excluded(line.id, config.triage.exclude, ()) is None
        and listed_refusal(line, base_id, rules) is None
        for line in hub.descendants(base_id, None)
    )
    download = founders * model_bytes if hub.copies else 0
    disk = min(download + model_bytes, config.limits.disk_gb * 1e9) if hub.copies else 0
    merges = _first_generation(policy, min(founders, _MOST_MEMBERS))
    return Estimate(founders, model_bytes, download, round(disk), merges, found)


def _first_generation(policy: Policy, founders: int) -> int | None:
    """How many merges the policy proposes of so many fine-tunes, best first, alike in kinship."""
    names = [f"model-{number:03}" for number in range(founders)]
    members = tuple(Member(name, 0.9 - 0.001 * i) for i, name in enumerate(names))
    kinship = tuple(tuple(1.0 if i == j else 0.3 for j in range(founders)) for i in range(founders))
    try:
        decision = policy.propose(Population(1, members, kinship))
    except Exception:
        return None
    return sum(len(merge.variants()) for merge in decision.merges)


def estimate_lines(config: Config, found: Estimate) -> Iterator[tuple[str, str]]:
    """What it says, and about what, for people."""
    size = amount(found.model_bytes, "bytes")
    yield "founders", f"{found.founders:,} fine-tunes that no rule refuses at a glance"
    if found.download_bytes:
        days = found.download_bytes / (config.limits.download_gb_per_day * 1e9)
        yield (
            "download",
            f"at most {amount(found.download_bytes, 'bytes')}: {size} each, "
            f"{amount(config.limits.download_gb_per_day * 1e9, 'bytes')} a day: {_days(days)}",
        )
        yield "disk", f"at most {amount(found.disk_bytes, 'bytes')} for models"
    else:
        yield "download", "nothing, and no disk: the models are in a folder here"
    if found.probe is None:
        return
    selection, validation = (found.probe.seconds[s] for s in ("selection", "validation"))
    yield (
        "a model",
        f"about {_time(selection)} on {found.probe.documents['selection']:,} documents; to be "
        f"judged, {_time(validation)} on {found.probe.documents['validation']:,} more",
    )
    a_day = config.limits.eval_hours_per_day * _HOUR
    all_founders = found.founders * selection
    yield "founders", f"about {_time(all_founders)} to evaluate all: {_days(all_founders / a_day)}"
    if found.merges is not None:
        least, most = found.merges * selection, found.merges * (selection + validation)
        yield (
            "merges",
            f"{found.merges:,} in the first generation: about {_time(least)}, and "
            f"{_time(most)} if all are judged",
        )
    yield "timed", f"the base on {found.probe.asked:,} documents; a busy machine takes longer"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", _HOUR), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _days(days: float) -> str:
    return "within a day's limit" if days <= 1 else f"{days:.1f} days at the day's limit"
