"""Where things stand in a picture: axes, lines, and the family tree. The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Axis", "axis", "line"]


@dataclass(frozen=True)
class Axis:
    """
    From values to places.

    Attributes:
        low: The value at place `start`; `high` the one at `end`.
        ticks: Round values in between, ascending.
        digits: Decimals that tell the ticks apart.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    digits: int

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def label(self, value: float) -> str:
        return f"{value:.{self.digits}f}".replace("-", "\N{MINUS SIGN}")


def axis(
    values: Iterable[float | None], start: float, end: float, *, ticks: int = 6, whole: bool = False
) -> Axis:
    """
    An axis that holds all values, with about so many ticks.

    Args:
        start: Place of the lower end; `end` of the upper one.
        whole: Values are integers.
    """
    known = [value for value in values if value is not None and math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
    low, high = low - pad, high + pad
    step = 10 ** math.floor(math.log10((high - low) / ticks))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= ticks)
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step)
    found = tuple(n * step for n in range(first, math.floor(high / step) + 1))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(low, high, start, end, found, digits)


def line(points: Sequence[tuple[float, float | None]], x: Axis, y: Axis) -> str:
    """A path through the points, with a gap where the second is unknown."""
    parts, pen = [], "M"
    for across, up in points:
        if up is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x(across):g} {y(up):g}")
        pen = "L"
    return "".join(parts)
