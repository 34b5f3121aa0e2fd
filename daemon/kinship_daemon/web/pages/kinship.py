"""How alike the population is: a clustered matrix, pairs that stand out, a map with who waits."""

from __future__ import annotations

from typing import Any

from kinship_daemon.errors import KinshipError
from kinship_daemon.web.pages.candidates import waiting
from kinship_daemon.web.view import View
from kinship_storage.records import Model

__all__ = ["facts"]

_MOST = 200  # models whose kinships are drawn
_PAIRS = 10
_MAPPED = 150  # fine-tunes on the map: of those admitted the best, of those who wait the next
_DIGITS = 4  # more are rounding of what was measured


def facts(view: View) -> dict[str, Any]:
    """The best of the population, in the order of clustering."""
    population = [m for m in view.lineage.models(status="admitted") if m.kind != "base"]
    population.sort(key=lambda m: (-(view.score(m) or -1.0), m.generation, m.id))
    chosen = population[:_MOST]
    models, matrix = view.kinships.matrix(view.lineage, chosen, view.metric)
    source = "ledger"
    if len(models) < 2:
        source, models, matrix = "decisions", *_kept(view, chosen)
    order = _clustered(matrix) if len(models) > 1 else range(len(models))
    names = [models[i].id for i in order]
    values = [[_rounded(matrix[i][j]) for j in order] for i in order]
    return {
        "metric": view.metric,
        "source": source,
        "population": len(population),
        "models": names,
        "scores": [view.score(models[i]) for i in order],
        "matrix": values,
        **_extremes(names, values),
        **_map(view, [model for model in population if model.kind == "finetune"]),
    }


def _map(view: View, admitted: list[Model]) -> dict[str, Any]:
    """Where fine-tunes stand by their samples; nothing where fewer than three were sampled."""
    nothing: dict[str, Any] = {"map": [], "map_share": None}
    plan = view.lineage.sample_plan()
    if plan is None:
        return nothing
    from kinship_daemon.web.sample_map import places  # noqa: PLC0415 - imports torch

    status = {model.id: "admitted" for model in admitted[:_MAPPED]}
    nearest = [row["model"] for row in waiting(view) if row["novelty"] is not None]
    status |= dict.fromkeys(nearest[:_MAPPED], "waiting")
    vectors = view.lineage.sampled(plan, status)
    try:
        found, share = places(list(vectors.values()))
    except KinshipError:
        return nothing  # one is damaged: `verify` says which
    points = [
        {"model": name, "status": status[name], "x": round(x, _DIGITS), "y": round(y, _DIGITS)}
        for name, (x, y) in zip(vectors, found.tolist(), strict=True)
        if x == x  # noqa: PLR0124 - not NaN
    ]
    return {"map": points, "map_share": round(share, _DIGITS)} if points else nothing


def _kept(view: View, chosen: list[Model]) -> tuple[list[Model], list[list[float | None]]]:
    """Without a ledger: the kinships that decisions rested on, which are not everyone's."""
    pairs = view.lineage.kinships(view.metric)
    named = {name for pair, value in pairs.items() if value is not None for name in pair}
    models = [model for model in chosen if model.id in named]
    return models, [
        [1.0 if a is b else pairs.get((min(a.id, b.id), max(a.id, b.id))) for b in models]
        for a in models
    ]


def _clustered(matrix: list[list[float | None]]) -> list[int]:
    import numpy as np  # noqa: PLC0415 - scipy takes a second to import
    from scipy.cluster.hierarchy import leaves_list  # noqa: PLC0415 - as above

    from kinship_daemon.draw.clustering import cluster  # noqa: PLC0415 - as above

    values = np.array(matrix, dtype=np.float64)
    return [int(i) for i in leaves_list(cluster(values, "pcc"))]


def _extremes(names: list[str], values: list[list[float | None]]) -> dict[str, Any]:
    """The nearest and the farthest pairs."""
    pairs = [
        {"a": names[i], "b": names[j], "value": value}
        for i, row in enumerate(values)
        for j, value in enumerate(row[:i])
        if value is not None
    ]
    pairs.sort(key=lambda pair: (-float(pair["value"]), pair["a"], pair["b"]))  # type: ignore[arg-type]  # not None
    return {"nearest": pairs[:_PAIRS], "farthest": pairs[::-1][:_PAIRS]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
