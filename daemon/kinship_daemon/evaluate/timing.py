"""How long models take to answer, found out with one that is here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from kinship_daemon.evaluate.evaluator import Evaluator
from kinship_daemon.evaluate.scoring import missing
from kinship_daemon.weights.assembly import Assembly
from kinship_storage.records import Split

__all__ = ["Probe", "probe"]


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
