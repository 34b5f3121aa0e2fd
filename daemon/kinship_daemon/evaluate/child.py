"""
The worker's side: gets its log and its signals in order, then evaluates until it is told to end.

`worker.py` is the other side and says how the two speak. Nothing heavy is imported before `serve`
has sent all output to the log.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinship_daemon.child_process import settle
from kinship_daemon.errors import EvaluationFailed, KinshipError, ModelError, Transient, UsageError
from kinship_daemon.evaluate.settings import Asked, Settings
from kinship_daemon.imports import uncollected

if TYPE_CHECKING:
    from kinship_daemon.weights.materialise import Assembly

__all__ = ["error_of", "serve"]

# What an error is called in the pipe; a subclass goes as its nearest parent, hence the order.
_ERRORS: dict[str, type[KinshipError]] = {
    error.__name__: error
    for error in (UsageError, EvaluationFailed, ModelError, Transient, KinshipError)
}

_log = logging.getLogger(__name__)
_PROGRESS_SECONDS = 0.1
_LOG_BYTES = 8_000_000


def serve(pipe: Connection, settings: Settings, log: Path) -> None:
    """The child's life: answer until the pipe closes, a model fails or the parent dies."""
    settle(log)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _log.setLevel(logging.INFO)
    try:
        _answer(pipe, settings)
    except KinshipError as error:
        _log.exception("this worker ends")
        kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
        facts = {key: value for key, value in vars(error).items() if not key.startswith("_")}
        pipe.send((kind, str(error), facts))


def error_of(message: tuple[Any, ...]) -> KinshipError | None:
    """The error that a message of the child is; None if it is none."""
    if message[0] not in _ERRORS:
        return None
    _, text, facts = message
    return _ERRORS[message[0]](text, **facts)


def _answer(pipe: Connection, settings: Settings) -> None:
    # Here and not above, for they take seconds.
    with uncollected():
        from tqdm import tqdm  # type: ignore[import-untyped]  # noqa: PLC0415

        from kinship_daemon.evaluate.harness import Harness, pin_numerics  # noqa: PLC0415

    # Its own lock is a semaphore of the system; a killed worker would leave it behind, and the
    # user would be told of it.
    tqdm.set_lock(threading.RLock())
    pin_numerics(settings)
    harness = Harness(settings)
    pipe.send(("ready", harness.found))
    for assembly, asked in _jobs(pipe):
        pipe.send(("taken",))
        _shorten_log()
        _log.info("evaluating %s on %s", assembly.identity, _shown(asked))
        if isinstance(asked, Mapping):
            pipe.send(("answers", harness.evaluate(assembly, asked, _beat(pipe))))
        else:
            harness.probe(assembly, asked)
            pipe.send(("answers", None))


def _shown(asked: Asked) -> str:
    if isinstance(asked, Mapping):
        return ", ".join(f"{len(ids)} documents of {task.task}" for task, ids in asked.items())
    return "one document of each task" if asked is None else "document {1} of {0}".format(*asked)


def _jobs(pipe: Connection) -> Iterator[tuple["Assembly", Asked]]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def _beat(pipe: Connection) -> Callable[[int, int], None]:
    """Progress through the pipe, not oftener than the parent can show; the last always."""
    due = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due or done == total:
            due = now + _PROGRESS_SECONDS
            pipe.send(("progress", done, total))

    return progress


def _shorten_log() -> None:
    """A worker may live for weeks: start its log anew when it is long."""
    if os.fstat(1).st_size > _LOG_BYTES:
        os.ftruncate(1, 0)
