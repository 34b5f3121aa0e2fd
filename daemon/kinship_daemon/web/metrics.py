"""What Prometheus scrapes: read from the lineage at every scrape, so nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from kinship_daemon.web.pages.now import BUDGETS
from kinship_daemon.web.view import View

__all__ = ["METRICS", "metrics"]

# Name, what it says, and its labels; names that end in _total only grow.
METRICS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "kinship_up": ("1 while a daemon holds the home.", ()),
    "kinship_models": ("Models, by kind and status.", ("kind", "status")),
    "kinship_set_aside": ("Models set aside, by status and cause.", ("status", "cause")),
    "kinship_jobs": ("Jobs, by kind and status.", ("kind", "status")),
    "kinship_job_seconds_total": ("Seconds at work, by kind of job.", ("kind",)),
    "kinship_documents_total": ("Documents answered, of all models.", ()),
    "kinship_step_done": ("Units done of the step at work.", ("unit",)),
    "kinship_step_rate": ("Units per second of the step at work.", ("unit",)),
    "kinship_step_seconds_left": ("Seconds left of the step at work.", ()),
    "kinship_budget_spent": ("Spent of today's budget (UTC), in the limit's unit.", ("limit",)),
    "kinship_budget_limit": ("Today's budget.", ("limit",)),
    "kinship_generation": ("The newest generation.", ()),
    "kinship_best_score": ("Mean selection score of the best model.", ()),
    "kinship_top_kinship": ("Mean kinship of the policy's top at its last decision.", ()),
    "kinship_publications_total": ("Merges published.", ()),
    "kinship_last_look_timestamp_seconds": ("When the hub was listed last, Unix time.", ()),
    "kinship_hub_faults_total": (
        "Faults of the hub since the daemon started, by kind.",
        ("fault",),
    ),
    "kinship_events_total": ("Events since the daemon started, by kind.", ("event",)),
}

_Samples = list[tuple[tuple[str, ...], float]]


def metrics(view: View) -> bytes:
    """The text format, version 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Lineage(view))
    return generate_latest(registry)


class _Lineage(Collector):
    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        samples = _samples(self._view)
        for name, (words, labels) in METRICS.items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            metric = family(name, words, labels=labels)
            for values, value in samples.get(name, []):
                metric.add_metric(values, value)
            yield metric


def _samples(view: View) -> dict[str, _Samples]:
    """Values by metric; what is not known has none."""
    lineage = view.lineage
    running = view.home.holder() is not None
    last, best, looked = lineage.last_generation(), lineage.best(), lineage.last_finished("watch")
    spent = lineage.budgets(f"{view.now:%Y-%m-%d}")
    found: dict[str, _Samples] = {
        "kinship_up": [((), float(running))],
        "kinship_models": [(key, number) for key, number in lineage.count_models().items()],
        "kinship_set_aside": [(key, number) for key, number in lineage.count_set_aside().items()],
        "kinship_jobs": [(key, number) for key, number in lineage.count_jobs_by_kind().items()],
        "kinship_job_seconds_total": [((k,), s) for k, s in lineage.work_seconds().items()],
        "kinship_documents_total": [((), lineage.count_documents())],
        "kinship_budget_spent": [
            ((limit,), spent.get(name, 0.0) / many) for name, (limit, _, many) in BUDGETS.items()
        ],
        "kinship_budget_limit": [
            ((limit,), most)
            for limit, _, _ in BUDGETS.values()
            if (most := view.config(f"limits.{limit}")) is not None
        ],
        "kinship_generation": [
            ((), max((g.generation or 0 for g in lineage.generations()), default=0))
        ],
        "kinship_publications_total": [((), len(view.repos))],
    }
    if best is not None:
        found["kinship_best_score"] = [((), best.score)]
    if last is not None and (kin := last.decision.get("top_mean_kinship")) is not None:
        found["kinship_top_kinship"] = [((), kin)]
    if looked is not None:
        found["kinship_last_look_timestamp_seconds"] = [((), looked.timestamp())]
    if running:
        found |= _activity(view)
    return found


def _activity(view: View) -> dict[str, _Samples]:
    """What the daemon says of itself."""
    counts, step = view.activity.get("counts", {}), view.activity.get("step")
    found: dict[str, _Samples] = {
        "kinship_events_total": [((kind,), number) for kind, number in counts.items()],
        "kinship_hub_faults_total": [
            ((fault,), number) for fault, number in view.activity.get("faults", {}).items()
        ],
    }
    if step is not None:
        unit = (step["unit"],)
        found["kinship_step_done"] = [(unit, step["done"])]
        if step["rate"] is not None:
            found["kinship_step_rate"] = [(unit, step["rate"])]
        if step["seconds_left"] is not None:
            found["kinship_step_seconds_left"] = [((), step["seconds_left"])]
    return found
