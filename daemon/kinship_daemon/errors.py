"""The daemon's errors. The loop retries Transient, sets ModelError aside, lets bugs crash."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from kinship_daemon.foreign.shown import one_line
from kinship_storage.errors import KinshipError, UsageError
from kinship_storage.transitions import Cause

__all__ = [
    "BudgetReached",
    "Cause",
    "DocumentsChanged",
    "EvaluationFailed",
    "KinshipError",
    "LeafGone",
    "Lost",
    "ModelError",
    "PlanFailed",
    "Stopped",
    "Transient",
    "Unavailable",
    "UsageError",
    "WorkerDied",
    "about",
    "is_scarce",
    "lacking",
    "machine_words",
    "planning",
    "unreadable",
]

_MACHINE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "make it writable, or use another --home",
    errno.EACCES: "make it readable and writable, or use another --home",
    errno.EIO: "look at the disk",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "raise the system's limit of open files",
}
# What Python says where it finds no folder for temporary files, and where it looks.
_NO_ROOM = "No usable temporary directory"
_TEMPORARY = (os.environ.get("TMPDIR", "/tmp"), "/tmp", "/var/tmp")  # noqa: S108 - to be told, not used
_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ModelError(KinshipError):
    """
    One model cannot be used: it is set aside, the loop goes on without it.

    Attributes:
        cause: `model`: its own bytes are bad (a header, NaN, shapes), which is final for those
            bytes. `settings`: it cannot be used as things are set. `world`: neither is to blame.
        setting: With cause `settings`, the config key that would have to change: `evaluate` for
            all that scores depend on, or one key such as `evaluate.time_limit_minutes`.
        model: Id of the model at fault, where it is not the one that is worked on.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: Cause = "model",
        setting: str | None = None,
        model: str | None = None,
    ) -> None:
        # It is made of a stranger's words, and kept in the lineage.
        super().__init__(one_line(message))
        self.cause = cause
        self.setting = setting
        self.model = model


def about(model: str, words: str) -> str:
    """What is said of a model, without its name, which is always shown before it."""
    return words.removeprefix(f"{model}: ").removeprefix(f"{model}/")


def is_scarce(error: OSError) -> bool:
    """Whether the machine lacks something just now: descriptors, memory."""
    return error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def unreadable(path: object, error: OSError) -> ModelError:
    """A model's file cannot be read. What the machine lacks is no fault of the model's."""
    is_ours = error.errno in _MACHINE or is_scarce(error)
    words = f"{path}: cannot be read: {error.strerror or error}"
    return ModelError(words, cause="world" if is_ours else "model")


class PlanFailed(Exception):
    """Something was raised, its cause, while a step looked whether one model has work to do."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


@contextmanager
def planning(model: str) -> Iterator[None]:
    """
    In a step's plan: whatever is raised meanwhile is about this model, and keeps nobody else back.

    Raises:
        PlanFailed: From what was raised.
    """
    try:
        yield
    except Exception as error:
        raise PlanFailed(model) from error


class LeafGone(ModelError):
    """A leaf's bytes cannot be had any more, or are others now: its merges cannot be made."""


class EvaluationFailed(ModelError):
    """
    A model could not be evaluated, and the model, the task or the machine may be to blame.

    Attributes:
        document: The task and the number of the document that it failed at, where that is known.
        seconds: That the evaluation took, which count for the day.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: Cause = "settings",
        setting: str | None = None,
        model: str | None = None,
        document: tuple[str, int] | None = None,
        seconds: float = 0.0,
    ) -> None:
        super().__init__(message, cause=cause, setting=setting, model=model)
        self.document = document
        self.seconds = seconds


class WorkerDied(EvaluationFailed):
    """The evaluation worker died over a model."""

    def __init__(self, message: str) -> None:
        super().__init__(message, cause="world")


class DocumentsChanged(KinshipError):
    """A task asks other questions than the scores so far were taken on."""


class Transient(KinshipError):
    """
    The world is away for a while (hub unreachable, 5xx): worth trying again later.

    Attributes:
        retry_seconds: How long it says it will be away; None if it does not say.
    """

    def __init__(self, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(one_line(message))
        self.retry_seconds = retry_seconds


class Lost(Transient):
    """Whoever was at a job is gone, and not over the job: a machine, a cluster."""


class Unavailable(Transient):
    """
    One repo cannot be had now, though its hub answers: terms to accept, a proxy's 403.

    Attributes:
        model: Id of the model whose files are missed, where it is not the one worked on.
    """

    def __init__(
        self, message: str, retry_seconds: float | None = None, *, model: str | None = None
    ) -> None:
        super().__init__(message, retry_seconds)
        self.model = model


class BudgetReached(KinshipError):
    """
    A limit of the config is used up, a day's or the disk's; work goes on when there is more.

    Attributes:
        others_may_go_on: It keeps one model waiting; smaller ones need not wait.
    """

    def __init__(self, message: str, *, others_may_go_on: bool = False) -> None:
        super().__init__(message)
        self.others_may_go_on = others_may_go_on


class Stopped(Exception):
    """The daemon was asked to stop; raised where everything done is saved."""


def machine_words(error: OSError) -> str | None:
    """One line for what a disk or a limit can do to us; None for what only a bug can cause."""
    hint, what = _MACHINE.get(error.errno or 0), error.strerror
    if _NO_ROOM in (what or ""):
        hint, what = "free some space there, or set TMPDIR", "no temporary file can be written"
        return f"{', '.join(dict.fromkeys(_TEMPORARY))}: {what}; {hint}, then start again"
    if hint is None:
        return None
    return f"{error.filename or 'this machine'}: {what}; {hint}, then start again"


def lacking(error: BaseException) -> OSError | None:
    """
    What the machine lacked where an error came of that, so that no file is blamed for it.

    A library in Rust tells it as text alone.
    """
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and (at.errno in _LACKS or _NO_ROOM in (at.strerror or "")):
            return at
        for number in _LACKS:  # word by word: a stranger's text may be a part of an error's
            if str(at) == f"{os.strerror(number)} (os error {number})":
                return OSError(number, os.strerror(number))
        at = at.__cause__ or at.__context__
    return None
