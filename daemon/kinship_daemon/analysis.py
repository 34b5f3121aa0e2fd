"""
Does kinship tell what a merge gains? Measured on a lineage's own merges.

The questions are those of *Exploring Model Kinship for Merging Large Language Models*
(arXiv 2410.12613, section 3): how kinship of the parents and gain of the merge go together, and how
kinship rises from the learning to the saturation stage. A merge's gain is its score less the mean
of its parents' scores, as in the paper's tables; scores are means over the selection tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from scipy import stats

from kinship_daemon.report import count
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["FEWEST", "Analysis", "Correlation", "Merge", "Stage", "analyse"]

METRICS = ("pcc", "cosine", "euclidean")
# Below this many merges even a strong correlation has an interval that says nothing.
FEWEST = 8


@dataclass(frozen=True)
class Merge:
    """
    One merge that was made and scored.

    Attributes:
        gain: Its score less the mean of its parents'.
        kinship: Of its parents (mean over pairs), by metric; None where it is undefined.
    """

    name: str
    generation: int
    score: float
    gain: float
    kinship: Mapping[str, float | None]


@dataclass(frozen=True)
class Correlation:
    """
    Pearson's r of the parents' kinship with what the merge gained.

    Attributes:
        of: `gain` or `absolute gain`.
        p: Two-sided p-value of no correlation. Merges share parents, so it is smaller than it
            should be; read it as a hint.
        low: Lower end of the 95 % interval (Fisher's z).
        high: Its upper end.
        n: Merges.
    """

    metric: str
    of: str
    r: float
    p: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Stage:
    """
    Generations that learn, or that no longer do.

    Attributes:
        name: `learning` up to the last generation that raised the best score by more than its
            standard error, `saturation` after it.
        kinship: Mean kinship of the parents merged in it; None where there is none.
        top_kinship: Mean over its decisions of the kinship of the policy's top.
        gain: Mean gain of its merges over the means of their parents.
    """

    name: str
    generations: tuple[int, ...]
    merges: int
    kinship: float | None
    top_kinship: float | None
    gain: float | None


@dataclass(frozen=True)
class Analysis:
    """
    All that was found.

    Attributes:
        founders: The best score among the fine-tunes.
        stderr: The standard error by which the best score must rise to count as learning.
        top_kinships: Mean kinship of the policy's top, by generation.
        too_few: Why correlations are not given; None if they are.
    """

    merges: tuple[Merge, ...]
    correlations: tuple[Correlation, ...]
    stages: tuple[Stage, ...]
    founders: float
    stderr: float
    top_kinships: Mapping[int, float | None]
    too_few: str | None

    def best_so_far(self) -> dict[int, float]:
        """The best score known after each generation; 0 are the fine-tunes."""
        best = {0: self.founders}
        for generation in sorted({merge.generation for merge in self.merges}):
            made = [merge.score for merge in self.merges if merge.generation == generation]
            best[generation] = max(*best.values(), *made)
        return best


def analyse(lineage: Lineage, metric: str = "pcc") -> Analysis:
    """
    Look at every merge that is scored, as its parents are, under the home's present settings.

    `metric` is the one that stages are described in.
    """
    models, scored = _scored(lineage)
    merges = tuple(_merges(lineage, models, scored))
    founders = [scored[model.id] for model in models if not model.parents]
    stderr = _mean([error for _, error in scored.values()]) or 0.0
    enough = len(merges) >= FEWEST
    tops = {
        g.generation: g.decision.get("top_mean_kinship")
        for g in lineage.generations()
        if g.generation is not None  # a stop is of no generation
    }
    found = Analysis(
        merges=merges,
        correlations=tuple(_correlations(merges)) if enough else (),
        stages=(),
        founders=max((value for value, _ in founders), default=math.nan),
        stderr=stderr,
        top_kinships=tops,
        too_few=None
        if enough
        else f"{count(len(merges), 'scored merge')}: too few to conclude; it takes {FEWEST}",
    )
    return Analysis(**{**vars(found), "stages": tuple(_stages(found, metric))})


def _scored(lineage: Lineage) -> tuple[list[Model], dict[str, tuple[float, float]]]:
    """Everyone scored under the present settings; mean over tasks, and standard error, by id."""
    settings: Any = (lineage.get("settings") or {}).get("selection")
    means = lineage.mean_scores("selection", settings)
    errors = lineage.mean_errors("selection", settings)
    models = [m for m in lineage.scored_models("selection", settings) if m.kind != "base"]
    return models, {m.id: (means[str(m.weights)], errors[str(m.weights)]) for m in models}


def _merges(
    lineage: Lineage, models: Sequence[Model], scored: Mapping[str, tuple[float, float]]
) -> list[Merge]:
    known = {metric: lineage.kinships(metric) for metric in METRICS}
    return [
        Merge(
            name=model.id,
            generation=model.generation,
            score=scored[model.id][0],
            gain=scored[model.id][0]
            - sum(scored[parent][0] for parent in model.parents) / len(model.parents),
            kinship={metric: _parents_kinship(model, known[metric]) for metric in METRICS},
        )
        for model in models
        if model.kind == "merge" and all(parent in scored for parent in model.parents)
    ]


def _parents_kinship(model: Model, known: Mapping[tuple[str, str], float | None]) -> float | None:
    pairs = [known.get((min(pair), max(pair))) for pair in combinations(model.parents, 2)]
    return _mean([value for value in pairs if value is not None])


def _correlations(merges: Sequence[Merge]) -> list[Correlation]:
    found = []
    for metric in METRICS:
        pairs = [(kin, m.gain) for m in merges if (kin := m.kinship[metric]) is not None]
        if len(pairs) < FEWEST or len({kin for kin, _ in pairs}) < 2:
            continue
        kinships = [kin for kin, _ in pairs]
        for of, gains in (
            ("gain", [gain for _, gain in pairs]),
            ("absolute gain", [abs(gain) for _, gain in pairs]),
        ):
            if len(set(gains)) < 2:
                continue
            result = stats.pearsonr(kinships, gains)
            interval = result.confidence_interval(0.95)
            found.append(
                Correlation(
                    metric=metric,
                    of=of,
                    r=float(result.statistic),
                    p=float(result.pvalue),
                    low=float(interval.low),
                    high=float(interval.high),
                    n=len(pairs),
                )
            )
    return found


def _stages(found: Analysis, metric: str) -> list[Stage]:
    best = found.best_so_far()
    numbers = sorted(best)[1:]
    rises = [
        n
        for before, n in zip(sorted(best), numbers, strict=False)
        if best[n] - best[before] > found.stderr
    ]
    turn = max(rises, default=0)
    parts = {
        "learning": [n for n in numbers if n <= turn],
        "saturation": [n for n in numbers if n > turn],
    }
    return [_stage(found, metric, name, part) for name, part in parts.items() if part]


def _stage(found: Analysis, metric: str, name: str, generations: Sequence[int]) -> Stage:
    merges = [merge for merge in found.merges if merge.generation in generations]
    kinships = [kin for merge in merges if (kin := merge.kinship[metric]) is not None]
    tops = [kin for n in generations if (kin := found.top_kinships.get(n)) is not None]
    return Stage(
        name=name,
        generations=tuple(generations),
        merges=len(merges),
        kinship=_mean(kinships),
        top_kinship=_mean(tops),
        gain=_mean([merge.gain for merge in merges]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
