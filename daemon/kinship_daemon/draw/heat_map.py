"""A kinship matrix as a heat map whose rows are ordered by clustering, with the dendrogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram

from kinship_daemon.draw.clustering import cluster
from kinship_daemon.draw.picture import KINSHIP, elided, rendered, styled
from kinship_daemon.report import count

__all__ = ["heat_map"]

_Matrix = NDArray[np.float64]

_MOST_VALUES = 20  # models up to which cells are wide enough for their values
_MOST_NAMES = 120  # and rows are tall enough for names
_OWN = "#e6e6e6"  # a model beside itself: 1 or 0, which says nothing
_INK = "#222222"

# Inches.
_CELL = 0.46
_BODY = 1.6, _MOST_VALUES * _CELL  # the least and the most
_TREE = 0.9
_GAP = 0.1
_BAR = 0.1
_HEAD = 0.62  # room for the title and the scale


def heat_map(
    matrix: Sequence[Sequence[float]], names: Sequence[str], metric: str, base: str, form: str
) -> bytes:
    """
    A picture of the kinship of two models or more.

    Args:
        matrix: (models, models); NaN where it is not defined.
        form: png or svg.
    """
    values = np.asarray(matrix, dtype=np.float64)
    tree = dendrogram(cluster(values, metric), no_plot=True)
    order = tree["leaves"]
    with styled():
        body, figure = _canvas(len(names))
        norm, colours = _colours(values, metric)
        _cells(body, values[np.ix_(order, order)], norm, colours)
        _name(body, [elided(names)[i] for i in order])
        _draw_tree(_beside(body, -_TREE - _GAP, 0, _TREE, None), tree, metric, len(names))
        bar = _beside(body, 0, None, None, _BAR)
        scale = ScalarMappable(norm, colours)
        figure.colorbar(scale, cax=bar, orientation="horizontal", label=KINSHIP[metric])
        bar.xaxis.set_ticks_position("top")
        bar.xaxis.set_label_position("top")
        bar.tick_params(labelsize=7)
        _title(body, f"{metric} kinship of {count(len(names), 'model')}, deltas from {base}")
        return rendered(figure, form)


def _canvas(models: int) -> tuple[Axes, Figure]:
    """A figure with square axes for the cells, the rest around them."""
    side = min(max(models * _CELL, _BODY[0]), _BODY[1])
    width, height = _TREE + _GAP + side, side + _HEAD
    figure = Figure(figsize=(width, height))
    left = (_TREE + _GAP) / width
    return figure.add_axes((left, 0, side / width, side / height)), figure


def _beside(
    body: Axes, right: float, up: float | None, width: float | None, height: float | None
) -> Axes:
    """Axes so many inches from the body's lower left corner; None for the body's own size."""
    figure = body.get_figure(root=True)
    assert figure is not None
    inches = figure.get_size_inches()
    place = body.get_position()
    low = place.y1 + _GAP / inches[1] if up is None else place.y0 + up / inches[1]
    wide = place.width if width is None else width / inches[0]
    high = place.height if height is None else height / inches[1]
    return figure.add_axes((place.x0 + right / inches[0], low, wide, high))


def _colours(values: _Matrix, metric: str) -> tuple[Normalize, Colormap]:
    """
    Dark is near. Two-sided about 0 where kinship is negative, one-sided where it is not.

    The ends are the furthest of what is off the diagonal.
    """
    off = values[~np.eye(len(values), dtype=bool)]
    off = off[np.isfinite(off)]
    most = float(np.abs(off).max(initial=0)) or 1.0
    if metric == "euclidean":
        return Normalize(0, most), colormaps["viridis"]
    if off.min(initial=0) < -0.01:
        return Normalize(-most, most), colormaps["coolwarm"]
    return Normalize(0, most), colormaps["viridis_r"]


def _cells(axes: Axes, values: _Matrix, norm: Normalize, colours: Colormap) -> None:
    models = len(values)
    shown = np.ma.masked_where(~np.isfinite(values) | np.eye(models, dtype=bool), values)
    axes.set_facecolor(_OWN)
    axes.pcolormesh(
        shown,
        cmap=colours,
        norm=norm,
        edgecolors="white" if models <= _MOST_VALUES else "none",
        linewidth=1.0,
        rasterized=models > _MOST_VALUES,  # else an SVG is a path for each cell
    )
    axes.set_xlim(0, models)
    axes.set_ylim(models, 0)
    axes.spines[:].set_visible(False)
    if models <= _MOST_VALUES:
        for i, j in np.ndindex(*values.shape):
            value = float(values[i, j])
            shade = colours(norm(value))
            _write(axes, j + 0.5, i + 0.5, value, "#999999" if i == j else _ink_on(shade))


def _write(axes: Axes, x: float, y: float, value: float, ink: str) -> None:
    text = f"{value:.2f}" if abs(value) < 99.5 else f"{value:.0f}"
    if not np.isfinite(value):
        text, ink = "n/a", "#777777"
    text = text.replace("-", "\N{MINUS SIGN}")
    axes.text(x, y, text, ha="center", va="center", color=ink, size=7)


def _ink_on(shade: tuple[float, float, float, float]) -> str:
    """What can be read on a colour: its luma decides (ITU-R BT.601)."""
    red, green, blue, _ = shade
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _name(axes: Axes, names: Sequence[str]) -> None:
    """Names along the right and the lower edge, as large as the rows allow."""
    if len(names) > _MOST_NAMES:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{count(len(names), 'model')}, ordered by clustering")
        return
    points = 72 * _BODY[1] / max(len(names), 1)
    size = min(8.0, 0.8 * points)
    middle = np.arange(len(names)) + 0.5
    axes.set_yticks(middle, names, size=size)
    axes.set_xticks(middle, names, size=size)
    for label in axes.get_xticklabels():
        if len(names) <= _MOST_VALUES:
            label.set(rotation=45, ha="right", rotation_mode="anchor")
        else:
            label.set_rotation(90)
    axes.yaxis.tick_right()
    axes.tick_params(length=0, pad=3)


def _draw_tree(axes: Axes, tree: dict[str, list[list[float]]], metric: str, models: int) -> None:
    for places, heights in zip(tree["icoord"], tree["dcoord"], strict=True):
        # scipy lays leaves 10 apart, the first at 5.
        axes.plot(heights, [place / 10 for place in places], color="#555555", linewidth=0.8)
    axes.set_ylim(models, 0)
    highest = max(map(max, tree["dcoord"]))
    axes.set_xlim(highest * 1.03 or 1.0, 0)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=3)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(labelsize=7, length=2)
    axes.set_xlabel("distance" if metric == "euclidean" else f"1 \N{MINUS SIGN} {metric}", size=7)
    # Above, where no name of a model is in the way.
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.spines["top"].set_visible(True)
    axes.spines[["left", "bottom"]].set_visible(False)


def _title(body: Axes, text: str) -> None:
    figure = body.get_figure(root=True)
    assert figure is not None
    figure.text(0, 1, text, va="bottom", size=10, weight="bold")
