"""Tables and sentences that fit the terminal; what is piped elsewhere is left whole."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from textwrap import wrap

import click

__all__ = ["echo_hanging", "fitted", "shortened", "terminal_width"]

_SHORTEST = 12  # characters of a name: below that columns go first
_GAP = 2


def terminal_width() -> int | None:
    """Columns of the terminal; None where the output is no terminal."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else None


def shortened(text: str, width: int) -> str:
    """At most so many characters: of a longer one the middle goes, for names differ at the ends."""
    if len(text) <= width:
        return text
    left = width // 2
    return f"{text[:left]}…{text[len(text) - (width - left - 1) :]}"


def fitted(
    rows: Sequence[Sequence[str]], name: int, droppable: Sequence[int], width: int | None
) -> list[list[str]]:
    """
    The same table, no wider than `width` where that can be.

    Args:
        rows: The heads first; every row has as many cells.
        name: The column whose cells may be shortened in the middle.
        droppable: Columns that may go, the first to go first.
        width: None for any.
    """
    table = [list(row) for row in rows]
    if width is None:
        return table
    columns = list(range(len(table[0])))

    def needed() -> tuple[int, int]:
        widths = {c: max(len(row[c]) for row in table) for c in columns}
        others = sum(w for c, w in widths.items() if c != name) + _GAP * (len(columns) - 1)
        return others, widths[name]

    for column in droppable:
        others, names = needed()
        if others + min(names, _SHORTEST) <= width:
            break
        columns.remove(column)
    others, names = needed()
    room = max(width - others, _SHORTEST)
    for row in table:
        row[name] = shortened(row[name], min(names, room))
    return [[row[c] for c in columns] for row in table]


def echo_hanging(label: str, text: str) -> None:
    """A label and a sentence; on a terminal its further lines stand under the first."""
    width = terminal_width()
    indent = len(click.unstyle(label))
    if width is None or indent + len(text) <= width:
        click.echo(label + text)
        return
    lines = wrap(text, width - indent, break_long_words=False, break_on_hyphens=False)
    click.echo(label + f"\n{' ' * indent}".join(lines))
