"""What an evaluation backend is, and how the one that the config names is found."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kinship_daemon import extensions
from kinship_daemon.evaluate.settings import (
    DocumentId,
    Documents,
    Evaluation,
    Progress,
    Settings,
    Task,
)

if TYPE_CHECKING:
    from kinship_daemon.weights.materialise import Assembly

__all__ = ["GROUP", "Evaluator", "open_evaluator"]

GROUP = "kinship_daemon.evaluators"


class Evaluator(Protocol):
    """
    Asks models one after another, under settings that are pinned for all of them.

    Attributes:
        settings: With what the tasks' documents turned out to be.
    """

    settings: Settings

    def check(self) -> Documents:
        """
        Load the tasks and their data, so that mistakes show before the first model is fetched.

        Returns:
            What the documents are, which the scores' fingerprint is to hold.

        Raises:
            DocumentsChanged: They are others than the settings say.
            UsageError: A task or metric that does not exist or cannot be used.
            Transient: A task's data cannot be reached now, or the backend does not start.
            KinshipError: The tasks cannot be loaded.
        """

    def probe(self, assembly: Assembly, document: DocumentId | None = None) -> None:
        """
        Ask a model about one document, or the first of every task: can it be evaluated?

        Raises:
            ModelError, KinshipError: As `evaluate`.
        """

    def evaluate(
        self,
        assembly: Assembly,
        documents: Mapping[Task, Sequence[int]],
        progress: Progress | None = None,
    ) -> Evaluation:
        """
        One model's answers to these documents, in the order of the tasks.

        Every `chunk` of the settings' documents are asked by themselves: what they are answered
        depends on them alone.

        Args:
            documents: Ids by task, a task being one of the settings.
            progress: Gets documents done and in all, a few times a second. What it raises ends the
                evaluation and comes out here.

        Raises:
            ModelError: The model gives NaN, or has not what the tasks need.
            EvaluationFailed: The harness failed or crashed over it, or it took too long.
            KinshipError: As `check`.
        """

    def close(self) -> None:
        """End it, whatever it is doing; the next call may start it anew."""


def open_evaluator(
    settings: Settings,
    *,
    log: Path,
    stop: threading.Event | None = None,
    device: str | None = None,
) -> Evaluator:
    """
    The evaluator that `evaluate.backend` names; it starts nothing yet.

    Args:
        log: File its output is appended to; its folder is made.
        stop: Ends every wait for it with Stopped, and it.
        device: The one device that it is to use, `cuda:1`; the settings say of which class it is.

    Raises:
        UsageError: There is none of that name.
    """
    make = extensions.find(GROUP, "evaluation backend", settings.backend)
    more = {} if device is None else {"device": device}
    made: Evaluator = make(settings, log=log, stop=stop, **more)
    return made
