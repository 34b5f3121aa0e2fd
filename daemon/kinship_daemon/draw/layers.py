"""Kinship over depth: a line for each pair of models or, of many, their mean and the extremes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kinship_daemon.draw.picture import KINSHIP, elided, rendered, styled
from kinship_daemon.report import count

__all__ = ["MOST_LINES", "layer_lines"]

_Values = NDArray[np.float64]

MOST_LINES = 12

# Okabe and Ito's colours, told apart by colour-blind readers, too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--")
_MEAN = "#333333"


def layer_lines(
    layers: Mapping[int | None, Sequence[Sequence[float]]],
    names: Sequence[str],
    metric: str,
    base: str,
    form: str,
) -> bytes:
    """
    A picture of kinship over depth.

    Args:
        layers: (models, models) of each layer; under None, of the tensors outside the layers,
            drawn apart on the right. NaN where it is not defined leaves a gap.
        form: png or svg.
    """
    depths = sorted(layer for layer in layers if layer is not None)
    shown = elided(names)
    pairs = list(combinations(range(len(names)), 2))
    labels = [f"{shown[i]} \N{EN DASH} {shown[j]}" for i, j in pairs]
    places = [*depths, *([_outside(depths)] if None in layers else [])]
    rows = [layers[layer] for layer in [*depths, *([None] if None in layers else [])]]
    values = np.array([[row[i][j] for row in rows] for i, j in pairs], dtype=np.float64)
    with styled():
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.add_axes((0, 0, 1, 1))
        draw = _each if len(pairs) <= MOST_LINES else _summary
        draw(axes, np.array(places), values, labels, len(depths))
        _frame(axes, depths, None in layers, metric)
        axes.set_title(f"{metric} kinship by layer, deltas from {base}", loc="left")
        return rendered(figure, form)


def _outside(depths: Sequence[int]) -> float:
    """Where the tensors outside the layers are drawn."""
    last = depths[-1] if depths else 0
    return last + max(0.4, 0.12 * last)


def _each(axes: Axes, places: _Values, values: _Values, labels: Sequence[str], depths: int) -> None:
    for rank, pair in enumerate(_nearest_first(values)):
        turn, colour = divmod(rank, len(_COLOURS))
        style = {"color": _COLOURS[colour], "linestyle": _DASHES[turn], "linewidth": 1.3}
        _line(axes, places, values[pair], depths, label=labels[pair], **style)
    _legend(axes)


def _summary(
    axes: Axes, places: _Values, values: _Values, labels: Sequence[str], depths: int
) -> None:
    # Where no pair is defined, the band has a gap, too.
    columns = [layer[np.isfinite(layer)] for layer in values.T]
    low, high = (
        np.array([np.percentile(c, share) if len(c) else np.nan for c in columns])
        for share in (10, 90)
    )
    axes.fill_between(
        places[:depths],
        low[:depths],
        high[:depths],
        color=_MEAN,
        alpha=0.15,
        linewidth=0,
        label="10th to 90th percentile",
    )
    mean = np.array([c.mean() if len(c) else np.nan for c in columns])
    _line(
        axes,
        places,
        mean,
        depths,
        label=f"mean of {count(len(values), 'pair')}",
        color=_MEAN,
        linewidth=2,
    )
    order = _nearest_first(values)
    for pair, colour in ((order[0], _COLOURS[1]), (order[-1], _COLOURS[0])):
        word = "highest" if pair == order[0] else "lowest"
        label = f"{word}: {labels[pair]}"
        _line(axes, places, values[pair], depths, label=label, color=colour, linewidth=1.2)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Below, where long names make the picture no wider than a page."""
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=2, columnspacing=1.5)


def _line(
    axes: Axes, places: _Values, values: _Values, depths: int, *, label: str, **style: Any
) -> None:
    marker = "o" if depths == 1 else None
    axes.plot(places[:depths], values[:depths], label=label, marker=marker, markersize=3, **style)
    axes.plot(places[depths:], values[depths:], "o", color=style["color"], markersize=3.5)


def _nearest_first(values: _Values) -> list[int]:
    """Pairs by their mean over depth, the greatest first; those never defined last."""
    means = [
        float(pair[np.isfinite(pair)].mean()) if np.isfinite(pair).any() else -np.inf
        for pair in values
    ]
    return sorted(range(len(means)), key=lambda pair: (-means[pair], pair))


def _frame(axes: Axes, depths: Sequence[int], outside: bool, metric: str) -> None:
    axes.set_xlabel("layer (0 is nearest to the input)")
    axes.set_ylabel(KINSHIP[metric])
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    last = max(depths, default=0)
    ticks = [t for t in MaxNLocator(9, integer=True).tick_values(0, last) if t in depths]
    if outside:
        place = _outside(depths)
        axes.axvline((place + last) / 2, color="#bbbbbb", linewidth=0.6, linestyle=":")
        axes.set_xticks([*ticks, place], [*(f"{t:.0f}" for t in ticks), "outside\nlayers"])
    else:
        axes.set_xticks(ticks)
    if metric == "euclidean":
        axes.set_ylim(bottom=0)
