"""Posts events to a URL, as JSON that chat services such as Slack and Mattermost show."""

from collections.abc import Mapping
from typing import Any

import httpx

from kinship_daemon.notify.notifier import Notifier, NotTold

__all__ = ["webhook"]

_SECONDS = 10.0


def webhook(*, url: str) -> Notifier:
    """
    A notifier that posts `{"id": ..., "text": ..., "event": ..., "facts": {...}}`.

    Any answer from 200 to 299 has taken it; redirects are not followed.

    Raises:
        ValueError: When made: that is no http or https URL.
    """
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        found = None
    if found is None or found.scheme not in {"http", "https"} or not found.host:
        raise ValueError("url must be an http or https URL")

    def tell(kind: str, text: str, facts: Mapping[str, Any]) -> None:
        body = {"id": facts["id"], "text": text, "event": kind, "facts": dict(facts)}
        # The answer's body is not read: it may have no end.
        with httpx.stream("POST", url, json=body, timeout=_SECONDS) as answer:
            if not answer.is_success:
                raise NotTold(f"it answered {answer.status_code}")

    return tell
