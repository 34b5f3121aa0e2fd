"""Scores on the line from one model to another, and its three stages."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from kinship_daemon.draw.picture import elided, rendered, styled
from kinship_daemon.sweep import Sweep

__all__ = ["sweep_lines"]

# Okabe and Ito's colours, told apart by colour-blind readers, too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":")
_MEAN, _SHADE, _WORDS = "#333333", "#eeeeee", "#666666"


def sweep_lines(found: Sweep, first: str, second: str, form: str) -> bytes:
    """
    Two panels: the score of each task and their mean; whose answers disputed documents get.

    Args:
        form: png or svg.
    """
    shares = [point.share for point in found.points]
    with styled():
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        scores, whose = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for number, task in enumerate(found.points[0].tasks):
            style = {
                "color": _COLOURS[number % len(_COLOURS)],
                "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)],
            }
            scores.plot(shares, [p.tasks[task] for p in found.points], label=task, **style)
        mean = [point.score for point in found.points]
        scores.plot(
            shares, mean, color=_MEAN, linewidth=2.2, marker="o", markersize=3, label="mean"
        )
        scores.set_ylabel("score")
        scores.legend(loc="upper left", bbox_to_anchor=(1, 1))
        if found.stages is not None:
            _stages(whose, found)
            for axes in (scores, whose):
                axes.axvspan(*found.stages, color=_SHADE, zorder=0, linewidth=0)
        whose.set_ylabel("second's answers")
        a, b = elided([first, second])
        whose.set_xlabel(f"share of {b} in the weights; 0 is {a}")
        scores.set_title(f"From {a} to {b}", loc="left")
        return rendered(figure, form)


def _stages(axes: Any, found: Sweep) -> None:
    told = [(point.share, point.second) for point in found.points]
    axes.plot(*zip(*told, strict=True), color=_MEAN, marker="o", markersize=3)
    axes.axhline(0, color=_WORDS, linewidth=0.5)
    axes.axhline(1, color=_WORDS, linewidth=0.5)
    axes.set_title(
        f"of {found.disputed:,} documents that both answer differently", loc="left", size=8
    )
