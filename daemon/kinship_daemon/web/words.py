"""How templates write values: names that fit, numbers, times; strangers' text hides nothing."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kinship_daemon.ancestry import ancestry_mark, ancestry_words
from kinship_daemon.foreign.shown import one_line
from kinship_daemon.report import amount

__all__ = ["Links", "ServerLinks", "environment"]

_LONGEST = 400  # characters of a text on a page
_NAME = 34


class Links(Protocol):
    """Where a page is found from another page."""

    def page(self, name: str, **query: object) -> str: ...

    def model(self, name: str) -> str | None:
        """None where the model has no page."""


class ServerLinks:
    """Relative, so that they also work behind a proxy that serves us below a path."""

    def page(self, name: str, **query: object) -> str:
        asked = {key: value for key, value in query.items() if value not in {"", None}}
        return Markup(f"{name}?{urlencode(asked)}" if asked else name)  # noqa: S704 - quoted

    def model(self, name: str) -> str | None:
        return Markup(f"model?id={quote(name, safe='')}")  # noqa: S704 - quoted


def environment() -> Environment:
    """Jinja2 that escapes everything, in every template."""
    found = Environment(
        loader=PackageLoader("kinship_daemon.web"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "name": short_name,
        "score": _score,
        "signed": _signed,
        "spent": _spent,
        "chance": lambda p: "< 0.0001" if p < 1e-4 else f"{p:.2g}",
        "size": lambda value: "-" if value is None else amount(value, "bytes"),
        "time": lambda value: str(value).replace("T", " ").removesuffix("Z"),
        "lines": _lines,
        "path": escape,  # of a drawing: our own numbers, as long as they are
        "web": _web,
        "ancestry_mark": ancestry_mark,
        "ancestry": ancestry_words,
    }
    return found


def _shown(value: Any) -> Any:
    """Every text that a template puts out: on one line, and nothing that hides or turns."""
    if value is None:
        return ""
    return one_line(value, _LONGEST) if isinstance(value, str) and not _is_safe(value) else value


def _is_safe(value: str) -> bool:
    return isinstance(value, Markup)


def short_name(name: str, most: int = _NAME) -> str:
    """Cut in the middle where it is long: versions stand at the end of names."""
    name = one_line(name, _LONGEST)
    if len(name) <= most:
        return name
    head = (most - 1) * 2 // 5
    return f"{name[:head]}…{name[-(most - 1 - head) :]}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _spent(value: float) -> str:
    """Of a budget: whole where it is, else to a tenth."""
    if 0 < value < 0.05:
        return "< 0.1"
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def _lines(text: str) -> Markup:
    """A text of several lines as it stands, each of them shown as `one_line` has it."""
    return escape("\n".join(one_line(line, _LONGEST) for line in text.split("\n")))


def _web(url: str | None) -> str | None:
    """A link that may be followed; None for a folder, or for anything that acts."""
    return url if url is not None and url.startswith(("https://", "http://")) else None
