"""
Does kinship tell what a merge gains? Measured on a lineage's own merges.

The questions are those of *Exploring Model Kinship for Merging Large Language Models*
(arXiv 2410.12613, section 3): how kinship of the parents and gain of the merge go together, and how
kinship rises from the learning to the saturation stage. A merge's gain is its score less the mean
of its parents' scores, as in the paper's tables; scores are means over the selection tasks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from scipy import stats

from kinship_daemon.report import count
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Score

__all__ = [
    "FEWEST",
    "METRICS",
    "Analysis",
    "Correlation",
    "Merge",
    "Rise",
    "Stage",
    "analyse",
    "correlations",
    "decisions_after",
]

METRICS = ("pcc", "cosine", "euclidean")
_Kinships = Mapping[tuple[str, str], float | None]
# Of scores: what is left of equal ones after arithmetic.
_NOTHING = 1e-12
# Below this many merges even a strong correlation has an interval that says nothing.
FEWEST = 8


@dataclass(frozen=True)
class Merge:
    """
    One merge that was made and scored.

    Attributes:
        parents_score: The mean of its parents' scores.
        gain: Its score less that.
        kinship: Of its parents (mean over pairs), by metric; None where it is undefined.
    """

    name: str
    generation: int
    score: float
    parents_score: float
    gain: float
    kinship: Mapping[str, float | None]


@dataclass(frozen=True)
class Correlation:
    """
    Pearson's r of the parents' kinship with what the merge gained.

    Later generations have closer kin and better parents, who leave less to gain: over all merges
    that alone makes a strong correlation. What it says of kinship is what is left of it otherwise.

    Attributes:
        of: `gain`, or `absolute gain` where some merges lost.
        within: r within generations: of what differs from the generation's mean; None where
            nothing does.
        partial: r given the mean score of the parents; None likewise.
        p: Two-sided p-value of no correlation. Merges share parents, so it is smaller than it
            should be; read it as a hint.
        low: Lower end of the 95 % interval (Fisher's z).
        high: Its upper end.
        n: Merges.
    """

    metric: str
    of: str
    r: float
    within: float | None
    partial: float | None
    p: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Rise:
    """
    A generation whose best merge is the best so far.

    Attributes:
        gain: By how much it is above the best before.
        stderr: Standard error of that, paired by document where both answered the same documents.
    """

    generation: int
    gain: float
    stderr: float


@dataclass(frozen=True)
class Stage:
    """
    Generations that learn, or that no longer do.

    Attributes:
        name: `learning` up to the last generation that raised the best score by more than the
            standard error of that rise, `saturation` after it.
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
        rises: Every generation that raised the best score.
        top_kinships: Mean kinship of the policy's top once a generation was scored, by generation.
        too_few: Why correlations are not given; None if they are.
    """

    merges: tuple[Merge, ...]
    correlations: tuple[Correlation, ...]
    stages: tuple[Stage, ...]
    founders: float
    rises: tuple[Rise, ...]
    top_kinships: Mapping[int, float | None]
    too_few: str | None

    def best_so_far(self) -> dict[int, float]:
        """The best score known after each generation; 0 are the fine-tunes."""
        best = {0: self.founders}
        for generation in sorted({merge.generation for merge in self.merges}):
            made = [merge.score for merge in self.merges if merge.generation == generation]
            best[generation] = max(*best.values(), *made)
        return best


def decisions_after(lineage: Lineage) -> dict[int, Mapping[str, Any]]:
    """
    The last decision after each generation was scored, by that generation; 0 are the fine-tunes.

    What it names as the top is the top of that generation and all before; a stop says so, too.
    """
    found: dict[int, Mapping[str, Any]] = {}
    made = 0
    for each in lineage.generations():
        made = made if each.generation is None else each.generation - 1
        if each.decision.get("top") or made not in found:  # a policy that failed names nobody
            found[made] = each.decision
        made = made if each.generation is None else each.generation
    return found


def analyse(
    lineage: Lineage, metric: str = "pcc", more: Mapping[str, _Kinships] | None = None
) -> Analysis:
    """
    Look at every merge that is scored, as its parents are, under the home's present settings.

    Args:
        metric: The one that stages are described in.
        more: Kinships that the lineage does not know, by metric and sorted pair of names.
    """
    models, scored = _scored(lineage)
    merges = tuple(_merges(lineage, models, scored, more or {}))
    founders = [model for model in models if not model.parents]
    enough = len(merges) >= FEWEST
    tops = {n: d.get("top_mean_kinship") for n, d in decisions_after(lineage).items()}
    found = Analysis(
        merges=merges,
        correlations=tuple(correlations(merges)) if enough else (),
        stages=(),
        founders=max((scored[model.id] for model in founders), default=math.nan),
        rises=tuple(_rises(lineage, founders, scored, merges)),
        top_kinships=tops,
        too_few=None
        if enough
        else f"{count(len(merges), 'scored merge')}: too few to conclude; it takes {FEWEST}",
    )
    return Analysis(**{**vars(found), "stages": tuple(_stages(found, metric))})


def _scored(lineage: Lineage) -> tuple[list[Model], dict[str, float]]:
    """Everyone scored under the present settings, and the means over tasks by id."""
    settings = _settings(lineage)
    means = lineage.mean_scores("selection", settings)
    scored = lineage.scored_models("selection", settings)
    models = [m for m in scored if m.kind != "base" and m.weights in means]
    return models, {m.id: means[str(m.weights)] for m in models}


def _settings(lineage: Lineage) -> Any:
    return (lineage.get("settings") or {}).get("selection")


def _merges(
    lineage: Lineage,
    models: Sequence[Model],
    scored: Mapping[str, float],
    more: Mapping[str, _Kinships],
) -> list[Merge]:
    known: dict[str, _Kinships] = {metric: lineage.kinships(metric) for metric in METRICS}
    known |= more
    merges = []
    for model in models:
        if model.kind != "merge" or not {*model.parents} <= scored.keys():
            continue
        score = scored[model.id]
        parents = sum(scored[parent] for parent in model.parents) / len(model.parents)
        kinship = {metric: _parents_kinship(model, pairs) for metric, pairs in known.items()}
        merges.append(Merge(model.id, model.generation, score, parents, score - parents, kinship))
    return merges


def _rises(
    lineage: Lineage,
    founders: Sequence[Model],
    scored: Mapping[str, float],
    merges: Sequence[Merge],
) -> Iterator[Rise]:
    names = sorted(model.id for model in founders)
    best = max(names, key=lambda name: scored[name], default=None)
    for generation in sorted({merge.generation for merge in merges}):
        made = [merge for merge in merges if merge.generation == generation]
        highest = max(made, key=lambda merge: merge.score)
        if best is None or highest.score > scored[best]:
            if best is not None:
                error = _stderr(_answers(lineage, highest.name), _answers(lineage, best))
                yield Rise(generation, highest.score - scored[best], error)
            best = highest.name


def _answers(lineage: Lineage, name: str) -> list[Score]:
    weights = str(lineage.require(name).weights)
    return lineage.scores(weights, "selection", _settings(lineage))


def _stderr(rows: Sequence[Score], others: Sequence[Score]) -> float:
    """Of the difference of two models' scores; every task weighs the same."""
    theirs = {row.task: row for row in others}
    variances = [_variance(row, theirs[row.task]) for row in rows if row.task in theirs]
    return math.sqrt(sum(variances)) / max(1, len(variances))


def _variance(row: Score, other: Score) -> float:
    """Of the difference of two scores on one task."""
    mine, theirs = dict(row.samples), dict(other.samples)
    if len(mine) > 1 and mine.keys() == theirs.keys():
        return statistics.variance(mine[d] - theirs[d] for d in sorted(mine)) / len(mine)
    return sum(0.0 if math.isnan(each.stderr) else each.stderr**2 for each in (row, other))


def _parents_kinship(model: Model, known: _Kinships) -> float | None:
    pairs = [known.get((min(pair), max(pair))) for pair in combinations(model.parents, 2)]
    return _mean([value for value in pairs if value is not None])


def correlations(merges: Sequence[Merge]) -> list[Correlation]:
    """Of kinship and gain, for every metric that is known of enough merges."""
    found = []
    for metric in dict.fromkeys(metric for merge in merges for metric in merge.kinship):
        known = [merge for merge in merges if merge.kinship[metric] is not None]
        kinships = [kin for merge in known if (kin := merge.kinship[metric]) is not None]
        if len(known) < FEWEST or len(set(kinships)) < 2:
            continue
        gained = [merge.gain for merge in known]
        kinds = [("gain", gained)]
        if min(gained) < 0:  # otherwise it is the same again
            kinds.append(("absolute gain", [abs(gain) for gain in gained]))
        for of, gains in kinds:
            if len(set(gains)) < 2:
                continue
            result = stats.pearsonr(kinships, gains)
            interval = result.confidence_interval(0.95)
            found.append(
                Correlation(
                    metric=metric,
                    of=of,
                    r=float(result.statistic),
                    within=_pearson(*(_within(known, values) for values in (kinships, gains))),
                    partial=_pearson(*(_given_parents(known, v) for v in (kinships, gains))),
                    p=float(result.pvalue),
                    low=float(interval.low),
                    high=float(interval.high),
                    n=len(known),
                )
            )
    return found


def _within(merges: Sequence[Merge], values: Sequence[float]) -> list[float]:
    """What differs from the mean of the merge's generation."""
    by_generation: dict[int, list[float]] = {}
    for merge, value in zip(merges, values, strict=True):
        by_generation.setdefault(merge.generation, []).append(value)
    means = {number: statistics.fmean(found) for number, found in by_generation.items()}
    return [value - means[m.generation] for m, value in zip(merges, values, strict=True)]


def _given_parents(merges: Sequence[Merge], values: Sequence[float]) -> list[float]:
    """What a line in the parents' mean score does not explain."""
    parents = [merge.parents_score for merge in merges]
    if len(set(parents)) < 2:
        return list(values)
    line = stats.linregress(parents, values)
    return [v - line.intercept - line.slope * x for x, v in zip(parents, values, strict=True)]


def _pearson(one: Sequence[float], other: Sequence[float]) -> float | None:
    if max(map(abs, one)) < _NOTHING or max(map(abs, other)) < _NOTHING:
        return None
    return float(stats.pearsonr(one, other).statistic)


def _stages(found: Analysis, metric: str) -> list[Stage]:
    numbers = sorted(found.best_so_far())[1:]
    turn = max((r.generation for r in found.rises if r.gain > r.stderr), default=0)
    parts = {
        "learning": [n for n in numbers if n <= turn],
        "saturation": [n for n in numbers if n > turn],
    }
    return [_stage(found, metric, name, part) for name, part in parts.items() if part]


def _stage(found: Analysis, metric: str, name: str, generations: Sequence[int]) -> Stage:
    merges = [merge for merge in found.merges if merge.generation in generations]
    kinships = [kin for merge in merges if (kin := merge.kinship[metric]) is not None]
    tops = [kin for n in generations if (kin := found.top_kinships.get(n - 1)) is not None]
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
