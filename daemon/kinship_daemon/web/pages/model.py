"""One model: all that `explain` says, its scores beside its parents', its recipe and relatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import yaml

from kinship_daemon.errors import KinshipError
from kinship_daemon.explain import chapters, latest_scores, opens_again
from kinship_daemon.foreign.shown import shown
from kinship_daemon.hub.card import interval
from kinship_daemon.web.view import View
from kinship_storage.records import Gate, Model, Score, Split

__all__ = ["UnknownModel", "facts"]

_CHILDREN = 200


class UnknownModel(KinshipError):
    """The address names a model that is not there."""


def facts(view: View, name: str) -> dict[str, Any]:
    """
    Raises:
        UnknownModel: There is none of that id.
    """
    lineage = view.lineage
    model = lineage.model(name)
    if model is None:
        raise UnknownModel(f"no model {shown(name)!r} in this home")
    told = chapters(lineage, model)
    children = [m for m in lineage.models("merge") if model.id in m.parents]
    candidate = lineage.candidate(model.id)
    publication = lineage.publication(model.id)
    gate = view.gates.get(model.id)
    return {
        "id": model.id,
        "kind": model.kind,
        "status": model.status,
        "generation": model.generation,
        "role": model.role,
        "best": model.id == view.best,
        "score": view.score(model),
        "stopped": view.stopped(model),
        "reason": model.reason,
        "opens_again": None if model.cause is None else opens_again(model),
        "parents": list(model.parents),
        "children": [child.id for child in children[:_CHILDREN]],
        "children_in_all": len(children),
        "why": told["choice"],
        "fate": told["fate"],
        "scores": [row for split in get_args(Split) for row in _scores(view, model, split)],
        "gate": None if gate is None else _gate(gate),
        "published": None
        if publication is None
        else {"repo": publication.repo, "revision": publication.revision, "url": publication.url},
        "not_published": model.not_published,
        "kinships": _kinships(view, model),
        "recipe": _recipe(view, model),
        "shares": [asdict(share) for share in view.kinships.shares(lineage, model)],
        "repo": model.repo,
        "revision": model.revision,
        "url": _url(view, model),
        "licence": model.license,
        "gated": model.gated,
        "ancestry": None if candidate is None else candidate.ancestry,
        "weights": model.weights,
        "parameters": model.parameters,
        "created": model.created,
        "files": [asdict(file) for file in lineage.files(model.id)],
    }


def _gate(gate: Gate) -> dict[str, Any]:
    return {
        "passed": gate.passed,
        "against": gate.against,
        "gain": gate.gain,
        "low": gate.low,
        "high": gate.high,
        "n": gate.n,
        "p": gate.p,
        "alpha": gate.alpha,
    }


def _scores(view: View, model: Model, split: Split) -> list[dict[str, Any]]:
    """Task by task, the model's own first and then its parents'."""
    relatives = [model, *map(view.lineage.require, model.parents)]
    scores = {m.id: latest_scores(view.lineage, m, split) for m in relatives}
    tasks = [row.task for row in scores[model.id]]
    return [
        _score(name, row)
        for task in tasks
        for name, rows in scores.items()
        for row in rows
        if row.task == task
    ]


def _score(name: str, row: Score) -> dict[str, Any]:
    low, high = interval(row) or (None, None)
    return {
        "split": row.split,
        "task": row.task,
        "metric": row.metric,
        "model": name,
        "score": row.score,
        "low": low,
        "high": high,
        "n": row.n,
    }


def _kinships(view: View, model: Model) -> list[dict[str, Any]]:
    """Its kinship to its parents."""
    parents: Sequence[Model] = [view.lineage.require(name) for name in model.parents]
    known, matrix = view.kinships.matrix(view.lineage, [model, *parents], view.metric)
    if not parents or not known or known[0] is not model:
        return []
    return [
        {"model": parent.id, "metric": view.metric, "value": value}
        for parent, value in zip(known[1:], matrix[0][1:], strict=True)
    ]


def _recipe(view: View, model: Model) -> str | None:
    """The merge as it was made, as mergekit's YAML where it can say it."""
    if model.recipe is None:
        return None
    from kinship_daemon.steps.recipes import as_made  # noqa: PLC0415 - imports torch
    from kinship_daemon.weights.checkpoint import Checkpoint  # noqa: PLC0415 - as above

    try:
        folder = next(base.folder for base in view.lineage.models("base"))
        dtype = Checkpoint.open(Path(str(folder))).main_dtype
        return as_made(view.lineage, model, view.base, dtype)
    except (KinshipError, KeyError, StopIteration):
        # The base's files are not here, or a method is not installed: as the lineage has it.
        text: str = yaml.safe_dump(dict(model.recipe), sort_keys=False, allow_unicode=True)
        return text


def _url(view: View, model: Model) -> str | None:
    """Its page on the hub that it came from."""
    hub = view.lineage.get("hub")
    if model.repo is None or not str(hub).startswith(("https://", "http://")):
        return None
    return f"{hub}/{model.repo}"
