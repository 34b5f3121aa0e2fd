"""All pages as one file that needs nothing else: to attach, to keep, to put into a Space."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from markupsafe import Markup

from kinship_daemon.home import Home
from kinship_daemon.web.app import PAGES, Page
from kinship_daemon.web.drawn import drawn
from kinship_daemon.web.kinships import Kinships
from kinship_daemon.web.view import View
from kinship_daemon.web.words import environment

__all__ = ["report"]

_MODELS = 150  # with a section of their own
_SECTIONS = ("tree", "evolution", "kinship", "candidates")


class _Anchors:
    """Links within the file."""

    def __init__(self, models: list[str]) -> None:
        self._places = {name: place for place, name in enumerate(models)}

    def page(self, name: str, **_: object) -> str:
        return Markup(f"#{name}")  # noqa: S704 - one of our own names

    def model(self, name: str) -> str | None:
        place = self._places.get(name)
        return None if place is None else Markup(f"#model-{place}")  # noqa: S704 - a number


def report(home: Home) -> tuple[str, int]:
    """
    The page, and how many models have no section of their own for there are too many.

    Published and best models come first. Style and script are part of the file, and allowed by
    their hashes alone: whatever a stranger's name says, no other script runs.
    """
    kinships = Kinships(home)
    kinships.prepare()
    pages = {page.name: page for page in PAGES}
    with View.of(home, kinships) as view:
        facts = {name: page.facts(view, {}) for name, page in pages.items() if name != "model"}
        known = facts["tree"]["models"]
        chosen = sorted(known, key=lambda m: (not m["published"], -(m["score"] or -1.0), m["id"]))
        models = [each["id"] for each in chosen[:_MODELS]]
        stories = [pages["model"].facts(view, {"id": name}) for name in models]
        now = f"{view.now:%Y-%m-%d %H:%M} UTC"
    style, script = _static("style.css"), _static("app.js")
    text = (
        environment()
        .get_template("report.html")
        .render(
            facts=facts,
            sections=[_section(pages[name], facts[name]) for name in _SECTIONS],
            stories=[_section(pages["model"], story) for story in stories],
            left_out=len(known) - len(models),
            now=now,
            link=_Anchors(models),
            policy=_policy(style, script),
            style=Markup(style),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
        )
    )
    return text, len(known) - len(models)


def _section(page: Page, facts: dict[str, object]) -> dict[str, object]:
    return {"page": page, "facts": facts, **drawn(page.name, facts)}


def _static(name: str) -> str:
    return (files("kinship_daemon.web") / "static" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
