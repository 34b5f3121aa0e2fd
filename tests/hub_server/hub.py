"""The first port: the Hub itself, from a path to who answers it."""

import re
from urllib.parse import unquote

from hub_server.cdn import Storage
from hub_server.listing import Listing
from hub_server.people import Token
from hub_server.reading import Reading
from hub_server.writing import Writing

_ID = r"([^/]+/[^/]+)"
_ROUTES = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in (
        ("GET", "/api/whoami-v2", "whoami"),
        ("GET", "/api/agent-harnesses", "harnesses"),
        ("GET", "/api/models", "models"),
        ("GET", f"/api/models/{_ID}", "model"),
        ("GET", f"/api/models/{_ID}/revision/([^/]+)", "model"),
        ("GET", f"/api/models/{_ID}/tree/([^/]+)", "tree"),
        ("GET", f"/api/models/{_ID}/tree/([^/]+)/(.*)", "tree"),
        ("POST", f"/api/models/{_ID}/paths-info/([^/]+)", "paths_info"),
        ("GET", f"/api/models/{_ID}/commits/([^/]+)", "commits"),
        ("GET", f"/api/models/{_ID}/refs", "refs"),
        ("GET", f"/{_ID}/resolve/([^/]+)/(.+)", "resolve"),
        ("GET", f"/{_ID}/raw/([^/]+)/(.+)", "raw_file"),
        ("POST", "/api/repos/create", "create"),
        ("DELETE", "/api/repos/delete", "delete"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("POST", f"/api/models/{_ID}/preupload/([^/]+)", "preupload"),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "batch"),
        ("POST", rf"/{_ID}\.git/info/lfs/verify", "verify"),
        ("POST", f"/api/models/{_ID}/commit/([^/]+)", "commit"),
    )
]


class Hub(Reading, Writing, Listing):
    name = "hub"
    token: Token | None = None

    def admitted(self) -> bool:
        """The quota and the token, before anything is looked up."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        self.token = self.hub.tokens.get(given)
        if self.hub.limits is not None:
            with self.hub.lock:
                now = self.hub.clock()
                self.extra, over = self.hub.limits.take(self.where, given or "anonymous", now)
            if over:
                self.error(429, "We had to rate limit you. Retry after the window has passed.")
                return False
        if given and self.token is None:
            self.error(401, "Invalid credentials in Authorization header")
            return False
        return True

    def answer(self) -> None:
        # The path as it was sent, since a revision may hold an encoded slash.
        # HEAD is answered wherever GET is.
        command = "GET" if self.command == "HEAD" else self.command
        for method, pattern, answer in _ROUTES:
            match = pattern.fullmatch(self.raw) if method == command else None
            if match:
                return getattr(self, answer)(*map(unquote, match.groups()))
        return self.error(404, f"no such endpoint: {self.command} {self.where}")


class Elsewhere(Hub, Storage):
    """A third port that nobody should bring a token to: it answers as the other two, to anyone."""

    name = "elsewhere"

    def admitted(self) -> bool:
        return True

    def answer(self) -> None:
        if self.where.startswith("/lfs/"):
            return self.blob()
        return Hub.answer(self)
