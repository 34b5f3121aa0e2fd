"""Other people's words as they may stand in a message: short, on one line, nothing that acts."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

__all__ = ["LONGEST_LINE", "LONGEST_WORDS", "clean", "one_line", "shown"]

LONGEST_WORDS = 200  # characters of someone else's in a message
LONGEST_LINE = 1500  # characters of a message: three such words and our own

_ENOUGH_BITS = 256


def shown(value: object, most: int = LONGEST_WORDS) -> str:
    """
    A value from outside, for a message: at most `most` characters.

    What cannot be seen (control characters, line breaks, marks that turn the direction of
    writing, half a surrogate pair) is shown escaped. Whatever is no text is shown as Python
    writes it, in part where it is large.
    """
    if isinstance(value, str):
        return one_line(value, most)
    if isinstance(value, int) and value.bit_length() > _ENOUGH_BITS:
        # Its digits would take a time that grows with their square, or are refused by Python.
        return f"a number of {value.bit_length()} bits"
    return one_line(reprlib.repr(value), most)


def one_line(text: str, most: int = LONGEST_LINE) -> str:
    """A message as one line of at most `most` characters, which hides and moves nothing."""
    if len(text) <= most and text.isprintable():
        return text
    line = "".join(c if c.isprintable() else _escape(c) for c in text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 3]}..."


def clean(value: object) -> object:
    """An event's fact, with the texts in it as `one_line` has them."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return {clean(key): clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [clean(each) for each in value]
    return value


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
