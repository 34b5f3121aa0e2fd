"""
The one ASGI app: pages, each with its `.json` twin, and live events.

It only reads. Every page is made from one moment of the lineage, opened for that page alone, so it
works beside a running daemon, on a finished home and on a copy.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from kinship_daemon.activity import recorded
from kinship_daemon.errors import KinshipError
from kinship_daemon.home import Home
from kinship_daemon.web.drawn import drawn
from kinship_daemon.web.guard import guarded
from kinship_daemon.web.kinships import Kinships
from kinship_daemon.web.live import Live
from kinship_daemon.web.metrics import metrics
from kinship_daemon.web.pages import candidates, evolution, kinship, model, now, tree
from kinship_daemon.web.view import View
from kinship_daemon.web.words import Links, ServerLinks, environment

__all__ = ["PAGES", "Page", "application", "rendered"]

_LIVE_SECONDS = 1.0
_STILL_SECONDS = 15
_MOST_VISITORS = 20  # browsers that are told of changes at a time; others look for themselves

Query = Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """
    Attributes:
        name: Its address, and its template's name.
        facts: What it says, as JSON; what its `.json` twin gives.
        is_listed: Stands in the navigation.
        is_slow: Takes torch or scipy, which a start imports in a thread of its own.
    """

    name: str
    title: str
    facts: Callable[[View, Query], dict[str, Any]]
    is_listed: bool = True
    is_slow: bool = False


PAGES = (
    Page("now", "Now", lambda view, _: now.facts(view)),
    Page("tree", "Family tree", lambda view, _: tree.facts(view)),
    Page("kinship", "Kinship", lambda view, _: kinship.facts(view), is_slow=True),
    Page("evolution", "Evolution", lambda view, _: evolution.facts(view), is_slow=True),
    Page("candidates", "Candidates", candidates.facts),
    Page("model", "Model", lambda view, asked: model.facts(view, asked.get("id", "")), False, True),
)


def application(
    home: Home, *, token: str | None = None, local: bool = True, stop: threading.Event
) -> guarded:
    """
    The app of one home.

    Args:
        token: What a visitor must know; None for nothing.
        local: Serves this machine alone: other names of it than localhost are not answered, so
            that no page of the web can read us under a name of its own (DNS rebinding).
        stop: Set when the server is to end.
    """
    site = _Site(home, stop)
    routes = [
        Route("/", site.html(PAGES[0])),
        *(Route(f"/{page.name}", site.html(page)) for page in PAGES),
        *(Route(f"/{page.name}.json", site.twin(page)) for page in PAGES),
        Route("/step", site.step),
        Route("/metrics", site.metrics),
        Route("/live", site.live),
        Mount("/static", StaticFiles(packages=[("kinship_daemon.web", "static")])),
    ]
    app = Starlette(
        routes=routes, exception_handlers={KinshipError: site.failed, 404: site.missing}
    )
    return guarded(app, token=token, local=local and token is None)


def rendered(
    templates: Environment, page: Page, facts: dict[str, Any], links: Links, *, part: bool = False
) -> str:
    """A page's HTML; with `part` only what stands between head and foot."""
    name = f"parts/{page.name}.html" if part else "base.html"
    given = {"page": page, "pages": PAGES, "facts": facts, "link": links}
    return templates.get_template(name).render(**given, **drawn(page.name, facts))


class _Site:
    def __init__(self, home: Home, stop: threading.Event) -> None:
        self._home = home
        self._stop = stop
        self._kinships = Kinships(home)
        self._templates = environment()
        self._links = ServerLinks()
        # A page holds the interpreter for a tenth of a second: one at a time is soonest for all.
        self._one = threading.Lock()
        self._now = Live(self._written, self._now_text)
        self._step = Live(lambda: _changed(home.activity), self._step_text)
        self._visitors = 0
        threading.Thread(target=self._kinships.prepare, name="torch", daemon=True).start()

    def html(self, page: Page) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            if page is PAGES[0] and "part" in request.query_params:
                return Response(self._now.text(), media_type="text/html")
            self._await(page)
            with self._one:
                text = rendered(self._templates, page, self._facts(page, request), self._links)
            return Response(text, media_type="text/html")

        return answer

    def twin(self, page: Page) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            self._await(page)
            with self._one:
                return JSONResponse(self._facts(page, request))

        return answer

    def step(self, _: Request) -> Response:
        return Response(self._step.text(), media_type="text/html")

    def _now_text(self) -> str:
        with self._one, View.of(self._home, self._kinships) as view:
            return rendered(self._templates, PAGES[0], now.facts(view), self._links, part=True)

    def _step_text(self) -> str:
        """The part of Now that changes from second to second."""
        with self._one, View.of(self._home, self._kinships) as view:
            given = {"facts": now.step_facts(view), "link": self._links}
            return self._templates.get_template("parts/step.html").render(**given)

    def metrics(self, _: Request) -> Response:
        with self._one, View.of(self._home, self._kinships) as view:
            return Response(metrics(view), media_type=CONTENT_TYPE_LATEST)

    def _await(self, page: Page) -> None:
        """What a slow page takes; others are shown meanwhile."""
        if page.is_slow:
            self._kinships.prepare()

    def _facts(self, page: Page, request: Request) -> dict[str, Any]:
        with View.of(self._home, self._kinships) as view:
            return page.facts(view, request.query_params)

    async def live(self, _: Request) -> Response:
        """Server-sent events: `change` with a commit or an event, `step` with every step on."""
        if self._visitors >= _MOST_VISITORS:
            return Response("enough browsers are told of changes", 503)
        return StreamingResponse(self._changes(), media_type="text/event-stream")

    async def _changes(self) -> AsyncIterator[str]:
        self._visitors += 1
        try:
            seen, quiet = (self._now.version(), self._step.version()), 0.0
            yield "retry: 5000\n\n"
            while not self._stop.is_set():
                await asyncio.sleep(_LIVE_SECONDS)
                before, seen = seen, (self._now.version(), self._step.version())
                quiet = quiet + _LIVE_SECONDS if seen == before else 0.0
                if seen[0] != before[0]:
                    yield "event: change\ndata:\n\n"
                elif seen[1] != before[1]:
                    yield "event: step\ndata:\n\n"
                elif quiet >= _STILL_SECONDS:
                    quiet = 0.0
                    yield ": still here\n\n"  # a browser that went away is noticed by this
        finally:
            self._visitors -= 1

    def _written(self) -> object:
        """Another one after every commit and event."""
        lineage = self._home.lineage
        events = recorded(self._home.activity).get("events", [])
        wal = lineage.with_name(f"{lineage.name}-wal")
        return _changed(lineage), _changed(wal), next(iter(events[-1:]), None)

    def failed(self, request: Request, error: Exception) -> Response:
        """A lineage that cannot be read, or a model that is not there: in the error's words."""
        return self._error(
            request, str(error), 404 if isinstance(error, model.UnknownModel) else 503
        )

    def missing(self, request: Request, _: Exception) -> Response:
        return self._error(request, "there is no such page", 404)

    def _error(self, request: Request, message: str, status: int) -> Response:
        if request.url.path.endswith(".json"):
            return JSONResponse({"error": message}, status)
        given = {"page": None, "pages": PAGES, "message": message, "link": self._links}
        text = self._templates.get_template("error.html").render(**given)
        return Response(text, status, media_type="text/html")


def _changed(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
