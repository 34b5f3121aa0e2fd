"""What goes wrong, and with which requests: laid one by one, or at random from a seed."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

# Before anything is done: nothing comes, or something else.
INSTEAD = {"status", "html", "json", "stall", "reset", "redirect"}
# The request is done, the answer suffers.
AFTER = {
    "lost",  # answered with `status`
    "truncate",  # half of the body, then the end of the connection
    "corrupt",  # one bit of the body, same size
    "flip",  # the same at any place, of JSON
    "shape",  # JSON of another shape: what was a list in an object, and the reverse
    "stall-body",  # half of the body, then silence
    "reset-body",  # half of the body, then a reset
    "trickle",  # the body byte by byte, 20 a second
    "range-ignored",  # 200 and the whole file
    "wrong-range",  # a Content-Range one byte further on
    "changed",  # another ETag and commit, as if the file were a new one
    "expire",  # resolve: a signed URL whose time is over; storage: refused for that reason
    "out-of-order",  # a listing, and the pages that follow it, in no order
    "tags-null",
    "card",  # cardData and config that are no objects
    "edit",  # what `edit` makes of the JSON
    "pass",  # only adds `headers`
}
CHAOS = ("500", "502", "503", "429", "reset", "reset-body", "truncate", "html", "expire", "lost")


@dataclass
class Fault:
    """What goes wrong with the next `n` requests that match, the first `skip` left alone."""

    method: str  # a regular expression, as `path` and `server` are; all match as a whole
    path: str
    n: int  # below zero: for ever
    action: str
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    skip: int = 0
    server: str = "hub|storage"
    edit: Callable[[Any], Any] | None = None
    place: float = 0.5  # of the wrong bit in the body, from 0 to 1
    done: int = 0

    def __post_init__(self) -> None:
        if self.action not in INSTEAD | AFTER:
            raise ValueError(f"no fault {self.action!r}; there are {sorted(INSTEAD | AFTER)}")

    def takes(self, server: str, method: str, path: str) -> bool:
        if not self.n or not re.fullmatch(self.method, method):
            return False
        if not re.fullmatch(self.server, server) or not re.fullmatch(self.path, path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.n -= 1
        self.done += 1
        return True


class Chaos:
    """
    Faults at random, the same ones in every run, whatever the order in which threads ask.

    Whether a request fails, and how, follows from the seed, the request (method, path, query
    without signatures, Range) and how often that same request has come before. Only the first
    faults, of which each kind is owed some, depend on the order of the requests as well.
    """

    def __init__(
        self,
        seed: int,
        rate: float,
        kinds: Sequence[str] = CHAOS,
        *,
        streak: int | None = None,
        least: int = 0,
    ) -> None:
        """
        Args:
            kinds: Actions of `Fault`, or status codes; one that is there twice is twice as likely.
            streak: The most failures in a row of one same request.
            least: How often each kind happens before any is left to chance.
        """
        self.seed, self.rate, self.kinds, self.streak = seed, rate, tuple(kinds), streak
        self.least = least
        self.failed: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()
        for kind in self.kinds:
            _chaos_fault(kind)

    def choose(self, server: str, method: str, path: str, query: str, span: str) -> Fault | None:
        key = f"{server} {method} {path} {query} {span}"
        self._asked[key] += 1
        draw = random.Random(f"{self.seed} {self._asked[key]} {key}")
        kinds = [kind for kind in self.kinds if _applies(kind, server, method, path, span)]
        tired = self.streak is not None and self._in_a_row[key] >= self.streak
        if not kinds or tired or draw.random() >= self.rate:
            self._in_a_row[key] = 0
            return None
        owed = [kind for kind in dict.fromkeys(kinds) if self.failed[kind] < self.least]
        kind = draw.choice(owed or kinds)
        self._in_a_row[key] += 1
        self.failed[kind] += 1
        fault = _chaos_fault(kind)
        if kind == "flip":
            fault.place = draw.random()
        return fault


def _chaos_fault(kind: str) -> Fault:
    if not kind.isdigit():
        return Fault(".*", ".*", 1, kind, status=500)
    soon = {"RateLimit": '"api";r=0;t=1'} if kind == "429" else {}
    return Fault(".*", ".*", 1, "status", status=int(kind), headers=soon)


def _applies(kind: str, server: str, method: str, path: str, span: str) -> bool:
    """Whether a kind of fault means anything for a request."""
    file = server == "storage" or "/resolve/" in path
    if kind in {"range-ignored", "wrong-range"}:
        return file and span != ""
    if kind in {"expire", "changed"}:
        return method == "GET" and file and (kind == "changed" or server == "storage")
    if kind in {"truncate", "corrupt", "stall-body", "reset-body", "trickle"}:
        return method == "GET"
    if kind in {"flip", "shape"}:
        return path.startswith("/api/models") and method == "GET"
    if kind in {"out-of-order", "tags-null", "card"}:
        return path.startswith("/api/models") and method == "GET"
    return kind != "lost" or method in {"POST", "PUT", "DELETE"}
