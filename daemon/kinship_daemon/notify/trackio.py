"""
Draws curves with trackio, on this machine; extra `kinship-daemon[trackio]`.

It runs in a process of its own: it prints, starts threads and would call the Hub where a token is.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kinship_daemon.child_process import ChildProcess, settle
from kinship_daemon.errors import UsageError
from kinship_daemon.notify.notifier import NotTold

__all__ = ["Trackio"]

_SECONDS = 60.0


class Trackio:
    """
    A notifier whose run has a step per model, per generation and per verdict of the gate.

    Args:
        name: Of the run, which every start goes on with; one for each home.
        folder: Where trackio keeps it; by default its own, `~/.cache/huggingface/trackio`.

    Raises:
        UsageError: trackio is not installed.
    """

    events = ("scores", "gate")

    def __init__(
        self, *, name: str, project: str = "kinship-daemon", folder: str | None = None
    ) -> None:
        if importlib.util.find_spec("trackio") is None:
            raise UsageError(
                "the notifier trackio needs trackio: pip install 'kinship-daemon[trackio]'"
            )
        # Without a network it asks nobody who we are.
        self._environment = {"HF_HUB_OFFLINE": "1"}
        if folder is not None:
            self._environment["TRACKIO_DIR"] = str(Path(folder).absolute())
        self._run = (project, name)
        self._child: ChildProcess | None = None

    def __call__(self, kind: str, _text: str, facts: Mapping[str, Any]) -> None:
        """
        Log an event; it is on the disk afterwards.

        Raises:
            NotTold: trackio did not take it.
        """
        if self._child is None:
            self._child = ChildProcess("trackio", _log, *self._run, environment=self._environment)
        try:
            self._child.pipe.send(list(_steps(kind, facts)))
            trouble = "it took too long"
            if self._child.pipe.poll(_SECONDS):
                trouble = self._child.pipe.recv()
        except (EOFError, OSError):
            trouble = f"its process ended: {self._child.ending()}"
        if trouble is not None:
            self._child.close()
            self._child = None
            raise NotTold(trouble)


def _steps(kind: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is logged of an event, a step each; only what is known."""
    if kind == "scores":
        for model in facts["models"]:
            yield _known(model)
        yield _known({f"generation/{key}": facts.get(key) for key in _OF_A_GENERATION})
    elif kind == "gate":
        verdict = {f"gate/{key}": facts.get(key) for key in _OF_A_VERDICT}
        yield _known({"model": facts["model"], **verdict})
    else:
        yield {f"event/{kind}": 1}


_OF_A_GENERATION = ("after", "best", "top", "kinship")
_OF_A_VERDICT = ("passed", "gain", "low", "high", "p", "allowed", "documents")


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in values.items()
        if value is not None
    }


def _log(pipe: Connection, project: str, name: str) -> None:
    """The child: logs what comes, and answers with what went wrong, or None."""
    settle(Path(os.devnull))
    import trackio  # noqa: PLC0415 - an extra, and here alone

    while True:
        try:
            steps = pipe.recv()
        except EOFError:
            return
        # trackio never raises: what it could not write, it warns of.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = trackio.init(
                project,
                name=name,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            for step in steps:
                run.log(step)
            run.finish()
        said = [str(each.message) for each in caught if each.category is UserWarning]
        pipe.send(next((each for each in said if each.startswith("trackio")), None))
