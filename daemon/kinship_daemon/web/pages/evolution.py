"""How far it came: the best score, the top's score and kinship, and what kinship tells of gain."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from kinship_daemon.web.view import View

__all__ = ["SATURATED", "facts"]

# The mean kinship of the top above which the paper stops (arXiv 2410.12613).
SATURATED = 0.9


def facts(view: View) -> dict[str, Any]:
    from kinship_daemon.analysis import (  # noqa: PLC0415 - scipy takes a second to import
        analyse,
        decisions_after,
    )

    found = analyse(view.lineage, view.metric)
    scores = {m.id: view.score(m) for m in view.lineage.models(status="admitted")}
    best = {n: None if math.isnan(value) else value for n, value in found.best_so_far().items()}
    generations: dict[int, dict[str, Any]] = {
        n: {"generation": n, "best": value, "top_score": None, "top_kinship": None}
        for n, value in best.items()
    }
    for number, decision in decisions_after(view.lineage).items():
        top = [s for name in decision.get("top", []) if (s := scores.get(name))]
        row = generations.setdefault(number, {"generation": number, "best": None})
        row["top_score"] = sum(top) / len(top) if top else None
        row["top_kinship"] = decision.get("top_mean_kinship")
    return {
        "metric": view.metric,
        "saturated": SATURATED,
        "generations": [generations[n] for n in sorted(generations)],
        "merges": [asdict(merge) for merge in found.merges],
        "correlations": [asdict(each) for each in found.correlations],
        "stages": [asdict(stage) for stage in found.stages],
        "rises": [asdict(rise) for rise in found.rises],
        "too_few": found.too_few,
    }
