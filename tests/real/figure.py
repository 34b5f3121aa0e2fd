"""A figure of the table: methods, kinship against gain, policies."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tests.real.analysis import Scores, gains, policies
from tests.real.table import Table

from kinship_daemon.draw.picture import format_of, rendered, styled
from kinship_policies.simulate.evolution import Run
from kinship_policies.simulate.statistics import interval

__all__ = ["draw"]

_SHOWN = ("slerp t 0.5", "task_arithmetic λ 1")
_COLOURS = ("#1f6f8b", "#c8553d")


def draw(table: Table, path: Path) -> None:
    """The same table gives the same bytes."""
    form = format_of(path)
    with styled():
        figure = Figure(figsize=(10, 3), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _methods(left, Scores(table))
        _kinship(middle, Scores(table))
        _policies(right, policies(table)[0])
        path.write_bytes(rendered(figure, form))


def _methods(axes: Axes, scores: Scores) -> None:
    found = {kind: {g.method: g for g in gains(scores, kind)} for kind in ("pairs", "sets")}
    order = list({**found["pairs"], **found["sets"]})
    for kind, label, colour, shift in (
        ("pairs", "two models", _COLOURS[0], -0.15),
        ("sets", "four models", _COLOURS[1], 0.15),
    ):
        rows = [(order.index(name), gain) for name, gain in found[kind].items()]
        at = [place + shift for place, _ in rows]
        means = [gain.mean for _, gain in rows]
        ends = [[g.mean - g.low for _, g in rows], [g.high - g.mean for _, g in rows]]
        axes.errorbar(means, at, xerr=ends, fmt="o", ms=3, lw=1, color=colour, label=label)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.axvline(0, color="#999999", lw=0.6)
    axes.set(title="Methods", xlabel="gain over the best parent, 95 % interval")
    axes.legend(loc="lower right")


def _kinship(axes: Axes, scores: Scores) -> None:
    for recipe, colour in zip(_SHOWN, _COLOURS, strict=True):
        points = []
        for row in scores.table["pairs"]:
            if (recipe, tuple(row["parents"])) in set(scores.merges()):
                child = scores.answers(row["parents"], recipe)
                points.append((row["kinship"], (child - scores.best(row["parents"])).mean()))
        axes.scatter(*zip(*points, strict=True), s=10, color=colour, label=recipe)
    axes.axhline(0, color="#999999", lw=0.6)
    axes.set(title="Kinship and gain", xlabel="kinship of the two parents (pcc)", ylabel="gain")
    axes.legend()


def _policies(axes: Axes, runs: list[Run]) -> None:
    names = list(dict.fromkeys(run.policy for run in runs))
    gain = {
        name: np.array([r.curve[-1].worth - r.curve[0].worth for r in runs if r.policy == name])
        for name in names
    }
    names.sort(key=lambda name: -gain[name].mean())
    for place, name in enumerate(names):
        low, high = interval(gain[name], 0)
        mean = gain[name].mean()
        ends = [[mean - low], [high - mean]]
        axes.errorbar([mean], [place], xerr=ends, fmt="o", ms=3, lw=1, color=_COLOURS[0])
    spent = [np.mean([r.evaluations for r in runs if r.policy == name]) for name in names]
    axes.set_yticks(
        range(len(names)), [f"{n} ({e:.0f})" for n, e in zip(names, spent, strict=True)]
    )
    axes.invert_yaxis()
    axes.axvline(0, color="#999999", lw=0.6)
    axes.set(title="Policies (evaluations)", xlabel="gain over the best of four founders")
