"""Tables and sentences that fit the terminal; 80 columns where there is none, or `COLUMNS`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from textwrap import wrap

import click

__all__ = ["columns", "compared", "echo_hanging", "fitted", "longest", "shortened"]

_SHORTEST = 12  # characters of a name: below that columns go first
_GAP = 2


def columns() -> int:
    return shutil.get_terminal_size((80, 24)).columns


def shortened(text: str, width: int) -> str:
    """At most so many characters: of a longer one the middle goes, for names differ at the ends."""
    if len(text) <= width:
        return text
    left = width // 2
    return f"{text[:left]}…{text[len(text) - (width - left - 1) :]}"


def longest(names: Sequence[str], room: int, least: Sequence[int] | None = None) -> int:
    """
    How long the longest of some names may be, so that all of them have room beside each other.

    Args:
        least: Per name, what its place takes however short it is.
    """
    places = least or [0] * len(names)
    most = max(map(len, names), default=0)
    while most > _SHORTEST:
        if sum(max(min(len(n), most), p) for n, p in zip(names, places, strict=True)) <= room:
            break
        most -= 1
    return most


def fitted(
    rows: Sequence[Sequence[str]], name: int, droppable: Sequence[int], width: int
) -> list[list[str]]:
    """
    The same table, no wider than `width` where that can be.

    Args:
        rows: The heads first; every row has as many cells.
        name: The column whose cells may be shortened in the middle.
        droppable: Columns that may go, the first to go first.
    """
    table = [list(row) for row in rows]
    kept = list(range(len(table[0])))

    def needed() -> tuple[int, int]:
        widths = {c: max(len(row[c]) for row in table) for c in kept}
        others = sum(w for c, w in widths.items() if c != name) + _GAP * (len(kept) - 1)
        return others, widths[name]

    for column in droppable:
        others, names = needed()
        if others + min(names, _SHORTEST) <= width:
            break
        kept.remove(column)
    others, names = needed()
    room = max(width - others, _SHORTEST)
    for row in table:
        row[name] = shortened(row[name], min(names, room))
    return [[row[c] for c in kept] for row in table]


def compared(rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """
    A table of numbers whose heads and first cells are names, no wider than `width`.

    Names become shorter, down to 12 characters; then the last columns go.
    """
    for count in range(len(rows[0]), 1, -1):
        heads, *others = [list(row[:count]) for row in rows]
        numbers = [max((len(row[i]) for row in others), default=0) for i in range(1, count)]
        names = [max((row[0] for row in (heads, *others)), key=len), *heads[1:]]
        room = width - _GAP * (count - 1)
        most = longest(names, room, [0, *numbers])
        table = [[shortened(name, most) for name in heads]]
        table += [[shortened(row[0], most), *row[1:]] for row in others]
        if sum(max(map(len, column)) for column in zip(*table, strict=True)) <= room:
            break
    return table


def echo_hanging(label: str, text: str) -> None:
    """A label and a sentence; its further lines stand under the first."""
    width = columns()
    words = text.lstrip(" ")
    label, text = label + " " * (len(text) - len(words)), words
    indent = len(click.unstyle(label))
    if indent + len(text) <= width:
        click.echo(label + text)
        return
    lines = wrap(text, width - indent, break_long_words=False, break_on_hyphens=False)
    click.echo(label + f"\n{' ' * indent}".join(lines))
