"""Thousands that were set aside, told in a few lines: by reason, with how many and who."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from kinship_daemon.report import count

__all__ = ["Reason", "by_reason", "lines"]

# What differs from model to model in one reason: names of repos and tensors, sizes, shapes.
_OWN = re.compile(r"[^\s()\[\],;:]*[\d/][^\s()\[\],;:]*")


@dataclass(frozen=True)
class Reason:
    """
    A reason, and whom it was given for.

    Attributes:
        text: `…` stands for what differs between them.
        models: Sorted.
    """

    text: str
    models: tuple[str, ...]


def by_reason(given: Iterable[tuple[str, str | None]]) -> list[Reason]:
    """(model, reason) grouped, the most frequent reason first; ties by its text."""
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for model, reason in given:
        text = reason or "no reason on record"
        groups.setdefault(tuple(_OWN.split(text)), []).append((model, text))
    found = [
        Reason(
            _common(between, {text for _, text in members}), tuple(sorted(n for n, _ in members))
        )
        for between, members in groups.items()
    ]
    return sorted(found, key=lambda each: (-len(each.models), each.text))


def lines(reasons: Sequence[Reason], *, names: int | None, most: int | None) -> Iterator[str]:
    """
    One line per reason.

    Args:
        names: How many models each names; None for all of them.
        most: How many reasons are told, with a line for the others; None for all.
    """
    for each in reasons[:most]:
        shown = each.models[:names]
        more = "" if len(shown) == len(each.models) else ", …"
        yield f"{len(each.models):>6,}  {each.text}: {', '.join(shown)}{more}"
    if most is not None and (rest := reasons[most:]):
        models = sum(len(each.models) for each in rest)
        yield f"{models:>6,}  for {count(len(rest), 'other reason')}"


def _common(between: Sequence[str], texts: Collection[str]) -> str:
    """The text of all, where they have the same words between those of their own."""
    own = [set(words) for words in zip(*(_OWN.findall(text) for text in texts), strict=True)]
    shown = [words.pop() if len(words) == 1 else "…" for words in own]
    return "".join(part for pair in zip_longest(between, shown, fillvalue="") for part in pair)
