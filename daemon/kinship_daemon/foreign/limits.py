"""How much of a foreign text is looked at, and whether what came out of it keeps to that."""

from __future__ import annotations

from dataclasses import dataclass

from kinship_daemon.foreign.shown import shown

__all__ = ["Limits", "Malformed", "check"]


class Malformed(ValueError):
    """A foreign text cannot be used. The message is a few plain words, safe to show."""

    def __init__(self, message: str) -> None:
        # Parsers quote what they do not know.
        super().__init__(shown(message))


@dataclass(frozen=True)
class Limits:
    """
    What a text may hold.

    Attributes:
        nbytes: Of the text.
        depth: Lists and mappings within each other.
        items: Values and keys in all, each as often as it is referred to.
        string: Characters of one text in it; what is longer can be no name, path or template.
    """

    nbytes: int
    depth: int = 64
    items: int = 100_000
    string: int = 1_000_000


def check(value: object, limits: Limits) -> None:
    """
    That parsed data are JSON's kinds of values, within the limits, and can be encoded.

    Raises:
        Malformed: They are not.
    """
    level, depth, items = [value], 0, 0
    while level:
        if depth > limits.depth:
            raise Malformed(f"nested more than {limits.depth} deep")
        below: list[object] = []
        for each in level:
            kind = type(each)
            if kind is dict:
                below.extend(each)  # type: ignore[arg-type]
                below.extend(each.values())  # type: ignore[attr-defined]
            elif kind is list:
                below.extend(each)  # type: ignore[arg-type]
            elif isinstance(each, str):
                _check_text(each, limits)
            elif not (each is None or isinstance(each, int | float)):
                raise Malformed(f"holds a {kind.__name__}, which is no text and no number")
            if items + len(below) > limits.items:
                raise Malformed(f"holds more than {limits.items} items")
        items += len(below)
        level, depth = below, depth + 1


def _check_text(text: str, limits: Limits) -> None:
    if len(text) > limits.string:
        raise Malformed(f"holds a text of more than {limits.string} characters")
    if not text.isascii():
        try:
            # Half a surrogate pair is valid JSON, and can be neither printed nor stored.
            text.encode()
        except UnicodeEncodeError:
            raise Malformed("holds half a character (surrogates not allowed)") from None
