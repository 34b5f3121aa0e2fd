"""Posts events to a URL, as JSON that chat services such as Slack and Mattermost show."""

from collections.abc import Mapping
from typing import Any

import httpx

from kinship_daemon.notify.notifier import Notifier

__all__ = ["webhook"]

_SECONDS = 10.0


def webhook(*, url: str) -> Notifier:
    """
    A notifier that posts `{"text": ..., "event": ..., "facts": {...}}`.

    Raises:
        ValueError: When made: that is no http or https URL.
    """
    if httpx.URL(url).scheme not in {"http", "https"}:
        raise ValueError("url must be an http or https URL")

    def tell(kind: str, message: str, facts: Mapping[str, Any]) -> None:
        plain = {name: value if _is_plain(value) else str(value) for name, value in facts.items()}
        body = {"text": f"{kind}: {message}", "event": kind, "facts": plain}
        httpx.post(url, json=body, timeout=_SECONDS).raise_for_status()

    return tell


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
