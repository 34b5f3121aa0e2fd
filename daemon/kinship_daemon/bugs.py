"""Mistakes of ours that one model met: kept in full in a file of the home, and counted."""

from __future__ import annotations

import traceback
from datetime import datetime
from pathlib import Path

from kinship_daemon.foreign.shown import one_line, shown

__all__ = ["bugs_noted", "note_bug"]

_MARK = "== "
_MOST_LINES = 200  # of a traceback: those of endless recursion say nothing new


def note_bug(log: Path, now: datetime, doing: str, error: Exception) -> None:
    """Append an error with its traceback."""
    lines = "".join(traceback.format_exception(error)).splitlines()[-_MOST_LINES:]
    # Indented: words of a stranger in it are not taken for another entry.
    text = "".join(f"  {one_line(line)}\n" for line in lines)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{_MARK}{now:%Y-%m-%dT%H:%M:%SZ} {shown(doing)}\n{text}")


def bugs_noted(log: Path) -> int:
    """How many were noted; 0 where the file is gone."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return sum(line.startswith(_MARK) for line in file)
    except FileNotFoundError:
        return 0
