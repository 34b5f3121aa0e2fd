"""What an evaluation backend is, and how the one that the config names is found."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kinship_daemon import extensions
from kinship_daemon.evaluate.settings import Documents, Progress, Question, Settings
from kinship_storage.records import Score, Split

if TYPE_CHECKING:
    from kinship_daemon.weights.materialise import Assembly

__all__ = ["GROUP", "Evaluator", "open_evaluator"]

GROUP = "kinship_daemon.evaluators"


class Evaluator(Protocol):
    """
    Scores models one after another, under settings that are pinned for all of them.

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

    def probe(self, assembly: Assembly, question: Question | None = None) -> None:
        """
        Ask a model one question, or the first one of every task: can it be evaluated at all?

        Raises:
            ModelError, KinshipError: As `evaluate`.
        """

    def evaluate(
        self, assembly: Assembly, split: Split, progress: Progress | None = None
    ) -> tuple[Score, ...]:
        """
        Scores of one model on the split's tasks, in the settings' order.

        Args:
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
    settings: Settings, *, log: Path, stop: threading.Event | None = None
) -> Evaluator:
    """
    The evaluator that `evaluate.backend` names; it starts nothing yet.

    Args:
        log: File its output is appended to; its folder is made.
        stop: Ends every wait for it with Stopped, and it.

    Raises:
        UsageError: There is none of that name.
    """
    make = extensions.find(GROUP, "evaluation backend", settings.backend)
    made: Evaluator = make(settings, log=log, stop=stop)
    return made
