"""What every picture has in common: formats, style, names that fit, the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from kinship_daemon.errors import UsageError

__all__ = ["FORMATS", "KINSHIP", "elided", "format_of", "rendered", "styled"]

FORMATS = ("png", "svg")

# What the numbers of each metric are, for the axes.
KINSHIP = {
    "pcc": "Pearson correlation of weight changes",
    "cosine": "cosine similarity of weight changes",
    "euclidean": "Euclidean distance of weight changes (units of weight)",
    "functional": "functional kinship (hidden states)",
}

_WIDEST_NAME = 30
_DPI = 200
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib's own: the same on every machine
    "font.size": 8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "savefig.dpi": _DPI,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "kinship",
    "text.parse_math": False,  # a model's name may hold a $
}


def format_of(path: Path) -> str:
    """
    The format that a file's name asks for.

    Raises:
        UsageError: Neither png nor svg.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise UsageError(f"{path}: a picture is a .png or .svg file")
    return ending


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's defaults and our own, whatever the user's are."""
    with style.context(_STYLE, after_reset=True):
        yield


def rendered(figure: Figure, form: str) -> bytes:
    """The file's content; the same figure gives the same bytes. Inside `styled`."""
    out = io.BytesIO()
    undated = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(out, format=form, metadata=undated, bbox_inches="tight", pad_inches=0.1)
    return out.getvalue()


def elided(names: Sequence[str]) -> list[str]:
    """Names cut in the middle where they are long, unless two would look the same."""
    short = [_elide(name) for name in names]
    return [cut if short.count(cut) == 1 else name for cut, name in zip(short, names, strict=True)]


def _elide(name: str) -> str:
    if len(name) <= _WIDEST_NAME:
        return name
    half = (_WIDEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
