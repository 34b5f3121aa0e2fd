"""What runs, what waits, what the day's budgets have left, what happened last."""

from __future__ import annotations

from typing import Any

from kinship_daemon.candidate_rows import STATUS
from kinship_daemon.explain import evolution_words
from kinship_daemon.web.view import View
from kinship_storage.records import Job

__all__ = ["BUDGETS", "facts", "step_facts"]

_WAITING = 30
_PUBLISHED = 8

# Budgets as the lineage notes them: the limit of each, its unit, and how many noted make one.
BUDGETS = {
    "evaluation_seconds": ("eval_hours_per_day", "hours of evaluation", 3600.0),
    "download_bytes": ("download_gb_per_day", "GB fetched", 1e9),
    "candidates": ("candidates_per_day", "candidates looked into", 1.0),
    "merges": ("merges_per_day", "merges made", 1.0),
}


def step_facts(view: View) -> dict[str, Any]:
    """What changes from second to second; a part of `facts` that is quick to have."""
    pid = view.home.holder()
    return {
        "daemon": {
            "running": pid is not None,
            "pid": pid,
            "since": view.activity.get("started") if pid else None,
            "device": view.config("evaluate.device"),
            "policy": view.config("policy.use"),
        },
        "running": [_running(job) for job in view.lineage.jobs("running")] if pid else [],
        "step": view.activity.get("step") if pid else None,
    }


def facts(view: View) -> dict[str, Any]:
    lineage = view.lineage
    best = lineage.best()
    counts = lineage.count_models()
    stuck = [*lineage.jobs("waiting"), *lineage.jobs("failed")]
    looked = lineage.last_finished("watch")
    publications = sorted(lineage.publications(), key=lambda each: each.created, reverse=True)
    return {
        "home": str(view.home.path),
        "base": view.base,
        **step_facts(view),
        "evolution": evolution_words(lineage),
        "generation": max((g.generation or 0 for g in lineage.generations()), default=0),
        "best": None if best is None else {"model": best.model, "score": best.score},
        "last_look": None if looked is None else f"{looked:%Y-%m-%dT%H:%M:%SZ}",
        "population": {kind: counts.get((kind, "admitted"), 0) for kind in ("finetune", "merge")},
        "proposed": counts.get(("merge", "proposed"), 0),
        "candidates": {
            name: counts.get(("finetune", status), 0) for name, status in STATUS.items()
        },
        "jobs": dict(sorted(lineage.count_jobs().items())),
        "stuck": [_stuck(job) for job in stuck[:_WAITING]],
        "stuck_in_all": len(stuck),
        "budgets": _budgets(view),
        "published": [
            {"model": each.model, "repo": each.repo, "url": each.url, "created": each.created}
            for each in publications[:_PUBLISHED]
        ],
        "published_in_all": len(publications),
        "events": list(reversed(view.activity.get("events", []))),
    }


def _running(job: Job) -> dict[str, Any]:
    return {
        "kind": job.kind,
        "model": job.model,
        "started": job.started,
        "attempts": job.attempts,
    }


def _stuck(job: Job) -> dict[str, Any]:
    return {
        "kind": job.kind,
        "model": job.model,
        "status": job.status,
        "cause": job.cause,
        "reason": job.reason,
        "due": job.due,
    }


def _budgets(view: View) -> list[dict[str, Any]]:
    """What is spent since midnight UTC; the limits are those of the daemon that ran last."""
    spent = view.lineage.budgets(f"{view.now:%Y-%m-%d}")
    return [
        {"name": limit, "unit": unit, "spent": spent.get(name, 0.0) / many, "limit": most}
        for name, (limit, unit, many) in BUDGETS.items()
        if (most := view.config(f"limits.{limit}")) is not None
    ]
