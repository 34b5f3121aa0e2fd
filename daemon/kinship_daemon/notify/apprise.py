"""Tells chats, mail and phones through Apprise's URLs; extra `kinship-daemon[notify]`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kinship_daemon.errors import UsageError
from kinship_daemon.notify.notifier import Notifier, NotTold

__all__ = ["apprise"]

_TITLE = "kinship-daemon"


def apprise(*, url: str | Sequence[str]) -> Notifier:
    """
    A notifier of one of Apprise's services, or several that are told together.

    Args:
        url: As https://github.com/caronc/apprise/wiki has them: `tgram://...`, `mailto://...`.

    Raises:
        UsageError: When made: Apprise is not installed.
        ValueError: When made: a URL is none of Apprise's.
    """
    try:
        import apprise as library  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError(
            "the notifier apprise needs Apprise: pip install 'kinship-daemon[notify]'"
        ) from None
    # Its own log repeats addresses; what went wrong is said by us.
    logging.getLogger("apprise").disabled = True
    services = library.Apprise()
    for number, each in enumerate([url] if isinstance(url, str) else url, 1):
        if not isinstance(each, str) or not services.add(each):
            raise ValueError(f"url {number} is none that Apprise knows")

    def tell(_kind: str, text: str, facts: Mapping[str, Any]) -> None:
        body = f"{text}\n{facts['time']}, event {facts['id']}"
        if not services.notify(body=body, title=_TITLE, body_format=library.NotifyFormat.TEXT):
            raise NotTold("a service of Apprise did not take it")

    return tell
