"""Which model is best: one notion for every command, page and export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kinship_storage.records import Model, Split

__all__ = ["Best", "best"]


@dataclass(frozen=True)
class Best:
    """The best model by id, with its mean score over the tasks of `split`."""

    model: str
    score: float
    split: Split = "selection"


def best(models: Iterable[Model], means: Mapping[str, float]) -> Best | None:
    """
    The admitted fine-tune or merge with the highest mean selection score; None if none has one.

    Args:
        models: Whoever may be it.
        means: Mean selection scores by weights, under the home's settings.

    Ties go to the earlier generation, then to the smaller id.
    """
    scored = [
        (-mean, model.generation, model.id)
        for model in models
        if model.status == "admitted"
        and model.kind != "base"
        and (mean := means.get(model.weights or "")) is not None
    ]
    if not scored:
        return None
    score, _, name = min(scored)
    return Best(name, -score)
