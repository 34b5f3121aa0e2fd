"""What merges gained against their parents' kinship, and how the population grew alike."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from kinship_daemon.analysis import Analysis, Correlation
from kinship_daemon.draw.picture import KINSHIP, rendered, styled
from kinship_daemon.report import count

__all__ = ["draw_analysis"]

_SATURATED = 0.9  # above, the paper calls the top inbred (arXiv 2410.12613)
_DOT, _BEST, _KIN = "#1f6f8b", "#1f6f8b", "#b5543c"


def draw_analysis(found: Analysis, form: str) -> bytes:
    """A panel per metric and kind of gain, and the best score with the top's kinship over time."""
    metrics = [m for m in KINSHIP if any(x.kinship.get(m) is not None for x in found.merges)]
    # Where nobody lost, the absolute gain is the gain.
    kinds = ["gain", *(["absolute gain"] if any(m.gain < 0 for m in found.merges) else [])]
    rows = len(kinds) + 1
    with styled():
        columns = max(1, len(metrics))
        figure = Figure(figsize=(3.1 * columns, 0.1 + 2.5 * rows), layout="constrained")
        grid = figure.add_gridspec(rows, columns)
        for column, metric in enumerate(metrics):
            for row, of in enumerate(kinds):
                axes = figure.add_subplot(grid[row, column])
                _scatter(axes, found, metric, of)
        _course(figure.add_subplot(grid[-1, :]), found)
        figure.suptitle(
            f"Kinship and gain of {count(len(found.merges), 'merge')}", fontweight="bold"
        )
        return rendered(figure, form)


def _scatter(axes: Any, found: Analysis, metric: str, of: str) -> None:
    points = [(kin, m.gain) for m in found.merges if (kin := m.kinship[metric]) is not None]
    gains = [abs(gain) if of == "absolute gain" else gain for _, gain in points]
    axes.scatter([kin for kin, _ in points], gains, s=14, color=_DOT, alpha=0.7, linewidths=0)
    axes.axhline(0, color="#888888", linewidth=0.6)
    axes.set_xlabel(KINSHIP[metric])
    axes.set_ylabel(f"{of} over the parents' mean")
    axes.set_title(_title(metric, found.correlations, of))


def _title(metric: str, correlations: tuple[Correlation, ...], of: str) -> str:
    for each in correlations:
        if (each.metric, each.of) == (metric, of):
            return f"{metric}: r {each.r:+.2f} [{each.low:+.2f}, {each.high:+.2f}]"
    return metric


def _course(axes: Any, found: Analysis) -> None:
    best = found.best_so_far()
    axes.plot(list(best), list(best.values()), color=_BEST, marker="o", markersize=3)
    axes.set_xlabel("generation (0: fine-tunes)")
    axes.set_ylabel("best score so far", color=_BEST)
    axes.xaxis.get_major_locator().set_params(integer=True)
    for stage in found.stages:
        if stage.name == "saturation":
            axes.axvspan(stage.generations[0] - 0.5, max(best) + 0.5, color="#eeeeee", zorder=0)
            axes.text(
                stage.generations[0] - 0.45, min(best.values()), "saturation", color="#666666"
            )
    tops = {n: kin for n, kin in found.top_kinships.items() if kin is not None}
    other = axes.twinx()
    other.spines["right"].set_visible(True)
    other.plot(list(tops), list(tops.values()), color=_KIN, marker="s", markersize=3)
    other.set_ylabel("mean kinship of the top", color=_KIN)
    if tops:
        other.axhline(_SATURATED, color=_KIN, linewidth=0.7, linestyle="--", alpha=0.6)
        words = f"{_SATURATED:g}: saturated"
        other.text(min(best), _SATURATED, words, color=_KIN, fontsize=7, va="bottom")
    axes.set_title("How far it came, and how alike the best became")
