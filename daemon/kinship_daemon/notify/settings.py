"""The section `notify` of the configuration."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, Secret, field_validator

from kinship_daemon.evaluate.settings import Section

__all__ = ["KINDS", "MANY", "Kind", "Notify", "Recipient", "rendered"]

Kind = Literal[
    "publish",
    "converged",
    "stopped",
    "quarantine",
    "hub_away",
    "budget",
    "gate_refused",
    "gate",
    "scores",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Those that may come by the hundred, and then are told as one.
MANY: frozenset[Kind] = frozenset({"quarantine", "gate_refused"})

_FIELDS = ("id", "kind", "message", "model", "time")


def _kinds(given: Any) -> Any:
    """`warning` is what older versions called the warnings that matter outside."""
    if not isinstance(given, list | tuple):
        return given
    return tuple(
        kind
        for each in given
        for kind in (("hub_away", "budget") if each == "warning" else (each,))
    )


class Recipient(BaseModel):
    """One that is told; every other key is a setting of its notifier, and a secret."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, Secret[Any]]

    notifier: str | None = None
    """An installed notifier; by default the one of the recipient's name."""
    events: tuple[Kind, ...] | None = None
    """What it is told; by default what its notifier is for, or `notify.events`."""
    template: str = "{kind}: {message}"
    """The text; {id}, {kind}, {message}, {model} and {time} are filled in."""

    _older = field_validator("events", mode="before")(_kinds)

    @field_validator("template")
    @classmethod
    def _can_be_filled_in(cls, template: str) -> str:
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"cannot be read: {error}") from None
        for _, name, how, conversion in parts:
            if name is not None and (name not in _FIELDS or how or conversion):
                raise ValueError(f"can hold {', '.join(f'{{{each}}}' for each in _FIELDS)} only")
        return template

    @property
    def settings(self) -> dict[str, Any]:
        """In the clear: for the notifier alone."""
        return {name: each.get_secret_value() for name, each in self.__pydantic_extra__.items()}


class Notify(Section):
    use: Mapping[str, Recipient] = {}
    """Who is told, by name: `{webhook: {url: "https://..."}, apprise: {url: "tgram://..."}}`."""
    events: tuple[Kind, ...] = (
        "publish",
        "converged",
        "stopped",
        "quarantine",
        "hub_away",
        "budget",
    )
    """Kinds of events that are told; `gate_refused`, `gate` and `scores` are three more."""
    digest_minutes: float = Field(10.0, ge=0)
    """After a quarantine or a refusal by the gate, what follows of its kind is told as one."""
    hub_away_minutes: float = Field(60.0, gt=0)
    """A hub that is away for so long is an event."""

    _older = field_validator("events", mode="before")(_kinds)


def rendered(template: str, **values: str) -> str:
    """The text of an event, in which a stranger's words call nobody: no `@all`, no `<!channel>`."""
    text = template.format(**{name: values.get(name, "") for name in _FIELDS})
    return text.replace("@", "@\u2060").replace("<", "<\u2060")
