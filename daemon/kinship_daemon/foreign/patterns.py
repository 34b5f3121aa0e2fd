"""
Patterns of strangers, matched in a time that grows with pattern and text alone.

Python's `re` tries every way in which a pattern might match, which can take days for a pattern of
thirty characters. RE2 (PyPI google-re2) tries none twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import re2

from kinship_daemon.foreign.limits import Malformed
from kinship_daemon.foreign.shown import shown

__all__ = ["Patterns"]

_LONGEST = 1000  # characters of one pattern
_MOST = 10_000  # an adapter may have one for every module
_MEMORY = 1 << 18  # bytes for one pattern: a{1000} within another such takes more
_EFFORT = 500_000_000  # steps in all, each some nanoseconds at worst; 224 * 224 modules take 1/5


class Patterns:
    """Patterns in their order, matched with the end of a name, as PEFT matches."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """
        Compile them.

        Raises:
            Malformed: One is no pattern, or needs what takes too long, such as looking back; or
                they are too many or too long.
        """
        texts = list(patterns)
        if len(texts) > _MOST:
            raise Malformed(f"{len(texts)} patterns; the most allowed is {_MOST}")
        self._compiled = [(text, _compile(text)) for text in texts]
        self._left = _EFFORT

    def first(self, name: str) -> str | None:
        """
        The first pattern that matches a name, or its part after some dot; None if none does.

        Raises:
            Malformed: It has taken too long in all.
        """
        for text, compiled in self._compiled:
            self._left -= compiled.programsize * len(name)
            if self._left < 0:
                raise Malformed(f"the pattern {shown(text, 80)} is too intricate")
            if compiled.fullmatch(name):
                return text
        return None


def _compile(text: str) -> Any:
    if len(text) > _LONGEST:
        raise Malformed(f"the pattern {shown(text, 80)} is too intricate")
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    try:
        # By itself first: an unpaired bracket must not meet its partner in ours.
        re2.compile(text, options)
        return re2.compile(rf"(?:.*\.)?(?:{text})", options)
    except re2.error:
        raise Malformed(f"the pattern {shown(text, 80)} cannot be used") from None
