"""What a notifier is, and whom the configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kinship_daemon import extensions
from kinship_daemon.errors import UsageError
from kinship_daemon.foreign.shown import clean, one_line
from kinship_daemon.notify.settings import Notify, rendered
from kinship_storage.errors import KinshipError
from kinship_storage.records import Event

__all__ = ["GROUP", "NotTold", "Notifier", "Target", "notifier", "targets"]

GROUP = "kinship_daemon.notifiers"

# Gets an event's kind, its text and its facts. What it raises is tried again later. It may have
# `events`: kinds that it is for, and told where the configuration names none.
Notifier = Callable[[str, str, Mapping[str, Any]], None]


class NotTold(KinshipError):
    """An event was not taken; the message is shown, so it names no address and no secret."""


def notifier(name: str, settings: Mapping[str, Any], kind: str | None = None) -> Notifier:
    """
    The notifier of the recipient called `name`, made with its settings.

    Args:
        kind: The installed notifier, where it has another name.

    Raises:
        UsageError: There is none, or it does not take these settings.
    """
    make = extensions.find(GROUP, "notifier", kind or name)
    try:
        made: Notifier = make(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"notify.use.{name}: {error}") from None
    return made


@dataclass(frozen=True)
class Target:
    """
    One recipient.

    Attributes:
        kinds: What it is told.
    """

    name: str
    notifier: Notifier
    kinds: frozenset[str]
    template: str = "{kind}: {message}"

    def tell(self, event: Event) -> None:
        """
        Deliver one event.

        Raises:
            NotTold: It did not take it.
        """
        words = {
            "id": event.id,
            "kind": event.kind,
            "message": one_line(event.message),
            "model": one_line(event.model or ""),
            "time": event.created,
        }
        facts = {"id": event.id, "time": event.created, "model": event.model, **event.facts}
        shown = {name: clean(each) for name, each in facts.items() if each is not None}
        try:
            self.notifier(event.kind, rendered(self.template, **words), shown)
        except NotTold:
            raise
        except Exception as error:  # a stranger's code, whose words may hold its address
            raise NotTold(type(error).__name__) from None


def targets(config: Notify) -> list[Target]:
    """
    Everyone whom the configuration names.

    Raises:
        UsageError: There is no such notifier, or it does not take its settings.
    """
    found = []
    for name, each in sorted(config.use.items()):
        made = notifier(name, each.settings, each.notifier)
        own = getattr(made, "events", config.events)
        kinds = own if each.events is None else each.events
        found.append(Target(name, made, frozenset(kinds), each.template))
    return found
