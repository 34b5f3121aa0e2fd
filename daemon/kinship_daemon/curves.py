"""Drawn simulations: the best so far by evaluations, and the kinship of the top by generations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kinship_daemon.errors import KinshipError, UsageError
from kinship_policies.simulate.compare import worth
from kinship_policies.simulate.evolution import Run
from kinship_policies.simulate.landscape import Array
from kinship_policies.simulate.statistics import RESAMPLES

__all__ = ["check", "draw"]

# What would make two files of one picture differ.
_STAMPS = {"png": "Software", "svg": "Date"}
_FORMATS = tuple(f".{kind}" for kind in _STAMPS)
# Okabe and Ito's palette, told apart by the colour-blind too; less its yellow, which is too pale.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")
# The paper's saturation (arXiv 2410.12613).
_SATURATED = 0.9
# A fixed salt gives the same ids, and no date: the same picture has the same bytes.
_STYLE: dict[Any, Any] = {"svg.hashsalt": "kinship", "font.size": 9, "axes.spines.top": False}
_STYLE |= {"axes.spines.right": False, "svg.fonttype": "path"}


def check(path: Path) -> None:
    """
    Raises:
        UsageError: It is not a picture that can be drawn, or its folder is not there.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"--plot {path}: it can be drawn as {' or '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")


def draw(runs: Sequence[Run], budget: int, path: Path, *, title: str, seed: int) -> None:
    """
    Mean over seeds with its 95 % bootstrap interval, one colour per policy.

    Seeds differ more from each other than policies do. Where there are several policies, the bands
    of the best so far are therefore drawn with each seed's own level taken out (Cousineau 2005):
    where they part, policies differ; how high a new world would come they do not say.

    Raises:
        KinshipError: The file cannot be written.
    """
    labels = list(dict.fromkeys(run.policy for run in runs))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        levels = _levels(runs, budget) if len(labels) > 1 else {}
        of = {label: [run for run in runs if run.policy == label] for label in labels}
        called = _coinciding(
            {label: np.stack([worth(r, budget) for r in mine]) for label, mine in of.items()}
        )
        for place, (label, mine) in enumerate(of.items()):
            colour = _COLOURS[place % len(_COLOURS)]
            dash = _DASHES[place // len(_COLOURS) % len(_DASHES)]
            # Where curves coincide, the earlier one is seen on both sides of the later one.
            width = 1.6 + 1.4 * min(2, len(labels) - 1 - place)
            best = np.stack([worth(run, budget) for run in mine])
            best -= np.array([[levels.get(run.seed, 0.0)] for run in mine])
            _band(left, np.arange(budget + 1.0), best, called[label], colour, dash, seed, width)
            kinships = _kinships(mine, max(len(run.generations) for run in runs))
            _band(
                right,
                np.arange(1.0, kinships.shape[1] + 1),
                kinships,
                label,
                colour,
                dash,
                seed,
                width,
            )
        _explain(left, right, runs, levels=bool(levels))
        figure.suptitle(title, fontsize=10)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(len(labels), 4),
            frameon=False,
        )
        _save(figure, path)


def _levels(runs: Sequence[Run], budget: int) -> dict[int, float]:
    """How much higher each seed comes than all of them do, mean over policies and evaluations."""
    means = [(run.seed, float(worth(run, budget).mean())) for run in runs]
    everyone = float(np.mean([mean for _, mean in means]))
    return {
        seed: float(np.mean([mean for own, mean in means if own == seed])) - everyone
        for seed in sorted({seed for seed, _ in means})
    }


def _explain(left: Axes, right: Axes, runs: Sequence[Run], *, levels: bool) -> None:
    points = [point for run in runs for point in run.curve]
    true = bool(points) and all(point.true is not None for point in points)
    left.set(xlabel="evaluations", ylabel=f"{'true ' if true else ''}score of the best so far")
    left.set_xlim(left=0)
    if len({run.seed for run in runs}) > 1:
        bands = "mean over seeds with 95 % interval"
        own = bands + (", seeds' own levels taken out" if levels else "")
        left.set_title(own, fontsize=8, color="0.35", loc="left")
        right.set_title(bands, fontsize=8, color="0.35", loc="left")
    _saturated_line(right)
    right.set(xlabel="generation", ylabel="mean kinship of the top")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (left, right):
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)


def _saturated_line(axes: Axes) -> None:
    axes.axhline(_SATURATED, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.text(
        0.99,
        _SATURATED,
        f"{_SATURATED:g}: saturated",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=7,
        color="0.4",
    )


def _coinciding(best: Mapping[str, Array]) -> dict[str, str]:
    """What to call each curve: with the name of an earlier one that it lies on, if any."""
    called: dict[str, str] = {}
    for label, curve in best.items():
        twin = next((o for o in called if np.array_equal(best[o], curve, equal_nan=True)), None)
        called[label] = label if twin is None else f"{label} (lies on {twin})"
    return called


def _kinships(runs: Sequence[Run], generations: int) -> Array:
    """(seeds, generations): a run that ended keeps its last, so that no run drops out; or NaN."""
    values = np.full((len(runs), max(generations, 1)), np.nan)
    for row, run in zip(values, runs, strict=True):
        for place, generation in enumerate(run.generations):
            kin = generation["top_mean_kinship"]
            row[place:] = np.nan if kin is None else kin
    return values


def _band(
    axes: Axes, x: Array, values: Array, label: str, colour: str, dash: str, seed: int, width: float
) -> None:
    known = values[~np.isnan(values).any(1)]
    if not len(known):
        axes.plot([], [], color=colour, linestyle=dash, label=label)
        return
    (line,) = axes.plot(
        x, known.mean(0), color=colour, linestyle=dash, linewidth=width, label=label
    )
    if len(x) == 1:  # a line through one point is nothing to see
        line.set(marker="o", markersize=3 * width)
    if len(known) > 1:
        low, high = _interval(known, seed)
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _interval(values: Array, seed: int) -> tuple[Array, Array]:
    """Percentile bootstrap of the mean, point by point; whole runs are drawn."""
    rng = np.random.default_rng([seed, 0xC0DE])
    count = len(values)
    # How often each run is drawn, (resamples, runs): a product then gives all the means.
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES // 5)
    low, high = np.quantile(drawn @ values / count, [0.025, 0.975], axis=0)
    return low, high


def _save(figure: Figure, path: Path) -> None:
    try:
        kind = path.suffix.lower()[1:]
        figure.savefig(path, format=kind, dpi=150, metadata={_STAMPS[kind]: None})
    except OSError as error:
        raise KinshipError(f"--plot {path}: cannot be written: {error.strerror}") from None
