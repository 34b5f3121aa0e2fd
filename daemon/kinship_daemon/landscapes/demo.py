"""
The landscape of the demo's real models.

With `control` (`landscapes.control`) fine-tunes that learnt nothing take their place. Results are
kept in the user's cache folder. The models are few and tiny: intervals speak of these six alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kinship_daemon import config as configuration
from kinship_daemon import demo
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.evaluate.evaluator import open_evaluator
from kinship_daemon.landscapes.control import CONTROLS, write_control
from kinship_daemon.landscapes.real import RealModels, Scores
from kinship_daemon.startup import evaluation_settings

__all__ = ["cache_directory", "open_demo"]

_FOUNDERS = 4
_HELD_BACK = demo.HUB.parent / "held_back" / "demo"


def cache_directory() -> Path:
    """Where results are kept (XDG base directory specification)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "kinship-daemon" / "demo-landscape"


@contextmanager
def open_demo(settings: Mapping[str, Any]) -> Iterator[RealModels]:
    """
    The landscape with its evaluator, which is started only for what is not in the cache.

    Raises:
        UsageError: A setting is unknown or out of range.
        KinshipError: The cache cannot be written.
    """
    if strange := sorted(settings.keys() - {"founders", "control"}):
        raise UsageError(
            f"the demo landscape has no setting {strange[0]!r}; known: founders, control"
        )
    founders, most = settings.get("founders", _FOUNDERS), len(demo.SELECTION)
    if not isinstance(founders, int) or not 2 <= founders <= most:
        raise UsageError(f"landscape demo: founders is {founders!r}; it must be from 2 to {most}")
    control = settings.get("control", "none")
    if control not in {"none", *CONTROLS}:
        known = ", ".join(["none", *CONTROLS])
        raise UsageError(f"landscape demo: control is {control!r}; it must be one of {known}")
    evaluation = evaluation_settings(configuration.load(base="demo"))
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KinshipError(f"the cache {cache} cannot be written: {error.strerror}") from None
    with (
        closing(open_evaluator(evaluation, log=cache / "evaluate.log")) as evaluator,
        TemporaryDirectory(prefix="kinship-control-") as scratch,
    ):
        repos = _fine_tunes()
        if control != "none":
            targets = [Path(scratch) / folder.name for folder in repos]
            for folder, target in zip(repos, targets, strict=True):
                write_control(control, demo.HUB / demo.BASE, folder, target)
            repos = targets
        what = "real fine-tunes" if control == "none" else f"{control} controls of fine-tunes"
        title = f"demo: {founders} of {len(repos)} {what} of {demo.BASE}, by seed"
        scores = Scores(evaluator, cache)
        yield RealModels(demo.HUB / demo.BASE, repos, founders, title, scores)


def _fine_tunes() -> list[Path]:
    there = (demo.HUB / "demo", _HELD_BACK)
    repos = [entry for folder in there for entry in sorted(folder.iterdir())]
    repos.remove(demo.HUB / demo.BASE)
    return repos
