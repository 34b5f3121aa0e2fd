"""
Which policy is better: paired by seed, with intervals and corrected p-values, and in words.

Four measures of a run, all of its best-so-far curve: after each evaluation, the worth of the model
that measured best until then. The worth is its true score where the landscape knows that, so that
luck in measuring does not count; it may go down when a lucky model takes the lead. A run that
stopped early, or failed, stays where it was.

- best: the worth at the full budget.
- area: the mean worth over the budget's evaluations, for quick gains count too.
- reach: evaluations until the worth reaches what topk-greedy has in the end, under the same seed. A
  run that never does is censored: it counts as the full budget, so a mean is what is called a
  restricted mean, and how many did is told beside it. topk-greedy itself always does.
- evaluations: how many were made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from kinship_policies.simulate.evolution import Run
from kinship_policies.simulate.landscape import Array
from kinship_policies.simulate.statistics import holm, interval, sign_flip

__all__ = ["MEASURES", "REFERENCE", "Comparison", "Difference", "compare", "worth"]

MEASURES = ("best", "area", "reach", "evaluations")
REFERENCE = "topk-greedy"
_SIGNIFICANT = 0.05
_SAME = 1e-9


@dataclass(frozen=True)
class Difference:
    """
    One measure of two policies; all but `reached` are means over seeds, `a` less `b`.

    Attributes:
        low: Lower end of the difference's 95 % interval; None where seeds cannot tell.
        p: Of a paired sign-flip test; `p_holm` corrected over all pairs of policies.
        reached: For `reach`, how many runs of a and of b did.
    """

    a: float
    b: float
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    reached: tuple[int, int] | None = None

    @property
    def shown(self) -> bool:
        """Both the test and the interval must say so; where they disagree, nothing is shown."""
        if self.p_holm is None or self.low is None or self.high is None:
            return False
        return self.p_holm < _SIGNIFICANT and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """
    Policies a and b.

    Attributes:
        seeds: How many pairs of runs.
        measures: By name; `reach` only where topk-greedy ran too.
        sentence: What it comes to.
    """

    a: str
    b: str
    seeds: int
    measures: Mapping[str, Difference]
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Where a run has no score there is NaN, which is null."""
        facts = asdict(self)
        for measure in facts["measures"].values():
            for name, value in measure.items():
                if isinstance(value, float) and not math.isfinite(value):
                    measure[name] = None
        return facts


def worth(run: Run, budget: int) -> Array:
    """The best-so-far curve, (budget + 1,): after 0, 1, .. evaluations; NaN without any model."""
    curve = np.full(budget + 1, np.nan)
    for point in run.curve:
        curve[point.evaluations :] = point.worth
    return curve


def compare(
    runs: Sequence[Run], budget: int, seed: int, *, varies: bool = True
) -> list[Comparison]:
    """
    Every pair of policies, in the order in which they came.

    Args:
        runs: Of every policy under the same seeds.
        seed: Of resampling.
        varies: Whether each seed is another world. If not, two policies that do not draw are one
            case however often they were run, and there is nothing to test.
    """
    labels = list(dict.fromkeys(run.policy for run in runs))
    ordered = sorted(runs, key=lambda run: run.seed)
    of = {label: [run for run in ordered if run.policy == label] for label in labels}
    pairs = list(combinations(labels, 2))
    cases = {
        pair: _cases([worth(run, budget) for label in pair for run in of[label]], varies)
        for pair in pairs
    }
    tested = {}
    for name, values in _measured(of, budget).items():
        found = {p: _difference(name, values, p, cases[p], budget, seed) for p in pairs}
        tested[name] = _corrected(found)
    seeds = len({run.seed for run in runs})
    return [
        Comparison(a, b, seeds, measures, _sentence(a, b, measures, cases[a, b], budget))
        for a, b in pairs
        for measures in ({name: found[a, b] for name, found in tested.items()},)
    ]


def _cases(curves: Sequence[Array], varies: bool) -> int:
    """How many runs of each of two policies (their curves, the first's first) tell something."""
    half = len(curves) // 2
    one, other = np.stack(curves[:half]), np.stack(curves[half:])
    alike = all(np.array_equal(c, np.broadcast_to(c[0], c.shape)) for c in (one, other))
    return 1 if alike and not varies else half


def _measured(of: Mapping[str, Sequence[Run]], budget: int) -> dict[str, dict[str, Array]]:
    """Measure -> policy -> (seeds,)."""
    curves = {label: np.stack([worth(run, budget) for run in runs]) for label, runs in of.items()}
    measured = {
        "best": {label: curve[:, -1] for label, curve in curves.items()},
        "area": {label: curve[:, 1:].mean(1) for label, curve in curves.items()},
        "reach": {},
        "evaluations": {
            label: np.array([float(run.evaluations) for run in runs]) for label, runs in of.items()
        },
    }
    if REFERENCE in curves:
        target = curves[REFERENCE][:, -1:]
        measured["reach"] = {label: _reach(curve, target) for label, curve in curves.items()}
    return {name: values for name, values in measured.items() if values}


def _reach(curves: Array, target: Array) -> Array:
    """Evaluations until each curve (seeds, budget + 1) is at its target; infinity if it never is"""
    there = curves >= target - _SAME
    return np.where(there.any(1), there.argmax(1), np.inf)


def _difference(
    name: str,
    values: Mapping[str, Array],
    pair: tuple[str, str],
    cases: int,
    budget: int,
    seed: int,
) -> Difference:
    """One measure of two policies, p not corrected yet."""
    a, b = (values[label] for label in pair)
    reached = None
    if name == "reach":
        reached = int(np.isfinite(a).sum()), int(np.isfinite(b).sum())
        a, b = np.minimum(a, budget), np.minimum(b, budget)
    differences = a - b
    means = float(a.mean()), float(b.mean()), float(differences.mean())
    if cases < 2 or np.isnan(differences).any():
        return Difference(*means, reached=reached)
    low, high = interval(differences, seed)
    return Difference(*means, low, high, sign_flip(differences, seed), reached=reached)


def _corrected(found: Mapping[tuple[str, str], Difference]) -> dict[tuple[str, str], Difference]:
    """With Holm's correction over the pairs of policies."""
    names = {f"{a}\n{b}": (a, b) for a, b in found}
    p_values = {key: p for key, pair in names.items() if (p := found[pair].p) is not None}
    holms = holm(p_values)
    return {pair: replace(found[pair], p_holm=holms.get(key)) for key, pair in names.items()}


def _sentence(a: str, b: str, measures: Mapping[str, Difference], cases: int, budget: int) -> str:
    best = measures["best"]
    if cases < 2:
        return (
            f"{a} ends at {best.a:.4f}, {b} at {best.b:.4f} ({best.difference:+.4f}): "
            "one case, which shows nothing beyond itself"
        )
    if best.p is None:
        return f"{a} and {b} cannot be compared: a run has no score"
    parts = [_best(a, b, best, budget)]
    parts += [_area(a, b, measures["area"]), _spent(a, b, measures["evaluations"])]
    return "; ".join(part for part in parts if part)


def _best(a: str, b: str, best: Difference, budget: int) -> str:
    numbers = f"{_sized(best)} after {budget} evaluations, {_chance(best)}"
    if not best.shown:
        why = ""
        if best.low is not None and best.high is not None and best.low * best.high > 0:
            why = (
                "; the interval is of this pair alone and leaves 0 out, but p is corrected for all "
                "pairs compared"
            )
        return f"no difference shown between {a} and {b} in the best model: {numbers}{why}"
    better, worse = (a, b) if best.difference > 0 else (b, a)
    turned = best if best.difference > 0 else _turned(best)
    return (
        f"{better} finds a better model than {worse}: "
        f"{_sized(turned)} after {budget} evaluations, {_chance(best)}"
    )


def _area(a: str, b: str, area: Difference) -> str:
    if not area.shown:
        return ""
    return (
        f"{a if area.difference > 0 else b} is ahead on the way (area {abs(area.difference):.4f})"
    )


def _spent(a: str, b: str, spent: Difference) -> str:
    if not spent.shown or not max(spent.a, spent.b):
        return ""
    fewer = a if spent.difference < 0 else b
    share = abs(spent.difference) / max(spent.a, spent.b)
    return f"{fewer} makes {abs(spent.difference):.1f} evaluations fewer ({share:.0%})"


def _turned(d: Difference) -> Difference:
    low, high = (None if end is None else -end for end in (d.high, d.low))
    return replace(d, a=d.b, b=d.a, difference=-d.difference, low=low, high=high)


def _sized(d: Difference) -> str:
    return f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


def _chance(d: Difference) -> str:
    assert d.p_holm is not None
    return "p < 0.001" if d.p_holm < 0.001 else f"p = {d.p_holm:.3f}"
