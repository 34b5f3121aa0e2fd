"""What a run will take: documents, time, downloads and disk, from a timed probe of the base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kinship_daemon.config import Config
from kinship_daemon.evaluate.timing import Probe
from kinship_daemon.exclusion import excluded
from kinship_daemon.hub.records import Hub
from kinship_daemon.hub.triage import listed_refusal
from kinship_daemon.report import amount
from kinship_daemon.steps.rungs import no_race
from kinship_daemon.steps.watch import rules_of
from kinship_policies.policy import Member, Policy, Population

__all__ = ["Estimate", "estimate", "estimate_lines"]

_MOST_MEMBERS = 100  # more founders make no first generation larger that anybody could afford
_HOUR = 3600.0
# Of the documents, the share that is asked with a race and with looks: of the simulated worlds the
# one that asks more (docs/benchmarks.md).
_FOUNDERS_RACED = 0.73
_MERGES_RACED = 0.86
_GIVEN_UP = 0.35
_ACCEPTED_EARLY = 0.80


@dataclass(frozen=True)
class Shares:
    """
    Of all documents, about what is asked, in [0, 1].

    Attributes:
        founders: On selection; `merges` likewise.
        judged: On validation, of a merge and of its parents.
    """

    founders: float = 1.0
    merges: float = 1.0
    judged: float = 1.0


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
        parents: Fine-tunes that these merges are made of.
        shares: Of the documents, what the race and the looks are expected to leave.
    """

    founders: int
    model_bytes: int
    download_bytes: int
    disk_bytes: int
    merges: int | None
    probe: Probe | None
    parents: int = 0
    shares: Shares = Shares()


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
    merges, parents = _first_generation(policy, min(founders, _MOST_MEMBERS))
    shares = _shares(config, policy)
    return Estimate(founders, model_bytes, download, round(disk), merges, found, parents, shares)


def _shares(config: Config, policy: Policy) -> Shares:
    raced = config.evaluate.race and no_race(config, policy) is None
    looked = _GIVEN_UP if config.gate.futility else _ACCEPTED_EARLY
    return Shares(
        founders=_FOUNDERS_RACED if raced else 1.0,
        merges=_MERGES_RACED if raced else 1.0,
        judged=1.0 if config.gate.strict else looked,
    )


def _first_generation(policy: Policy, founders: int) -> tuple[int | None, int]:
    """
    How many merges the policy proposes of so many fine-tunes, and of how many of these.

    They are best first, alike in kinship.
    """
    names = [f"model-{number:03}" for number in range(founders)]
    members = tuple(Member(name, 0.9 - 0.001 * i) for i, name in enumerate(names))
    kinship = tuple(tuple(1.0 if i == j else 0.3 for j in range(founders)) for i in range(founders))
    try:
        decision = policy.propose(Population(1, members, kinship))
    except Exception:
        return None, 0
    parents = {parent for merge in decision.merges for parent in merge.parents}
    return sum(len(merge.variants()) for merge in decision.merges), len(parents)


def estimate_lines(config: Config, found: Estimate) -> Iterator[tuple[str, str]]:
    """What it says, and about what, for people: what it takes at most, and what is expected."""
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
    shares, all_founders = found.shares, found.founders * selection
    yield (
        "founders",
        f"at most {_time(all_founders)} to evaluate all: {_days(all_founders / a_day)}"
        + _expected(all_founders, all_founders * shares.founders),
    )
    if found.merges is not None:
        asked, judged = found.merges * selection, (found.merges + found.parents) * validation
        yield (
            "merges",
            f"{found.merges:,} in the first generation: at most {_time(asked + judged)}, all judged"
            + _expected(asked + judged, asked * shares.merges + judged * shares.judged),
        )
    yield "timed", f"the base on {found.probe.asked:,} documents; a busy machine takes longer"


def _expected(most: float, seconds: float) -> str:
    """What is expected, where that is less."""
    return f"; about {_time(seconds)} expected, for not all are asked all" if seconds < most else ""


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", _HOUR), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _days(days: float) -> str:
    return "within a day's limit" if days <= 1 else f"{days:.1f} days at the day's limit"
