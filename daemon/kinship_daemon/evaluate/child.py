"""
The worker's side: gets its log and its signals in order, then evaluates until it is told to end.

`worker.py` is the other side and says how the two speak. Nothing heavy is imported before `serve`
has sent all output to the log.
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from kinship_daemon.errors import KinshipError, ModelError, Transient, UsageError
from kinship_daemon.evaluate.records import Settings, Split

if TYPE_CHECKING:
    from kinship_daemon.weights.materialise import Assembly

__all__ = ["ERRORS", "SIGNALS", "serve"]

# What an error is called in the pipe; a subclass goes as its nearest parent, hence the order.
ERRORS = {error.__name__: error for error in (UsageError, ModelError, Transient, KinshipError)}
# The parent alone decides when the worker ends; Ctrl-C and systemd signal the whole group.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_log = logging.getLogger(__name__)
_PROGRESS_SECONDS = 0.1
_LOG_BYTES = 8_000_000


def serve(pipe: Connection, settings: Settings, log: Path) -> None:
    """The child's life: answer until the pipe closes, a model fails or the parent dies."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    _write_to(log)
    try:
        _answer(pipe, settings)
    except KinshipError as error:
        _log.exception("this worker ends")
        kind = next(name for name, known in ERRORS.items() if isinstance(error, known))
        pipe.send((kind, str(error)))


def _answer(pipe: Connection, settings: Settings) -> None:
    # Here and not above, for they take seconds.
    from tqdm import tqdm  # type: ignore[import-untyped]  # noqa: PLC0415

    from kinship_daemon.evaluate.harness import Harness, pin_numerics  # noqa: PLC0415

    # Its own lock is a semaphore of the system; a killed worker would leave it behind, and the
    # user would be told of it.
    tqdm.set_lock(threading.RLock())
    pin_numerics(settings)
    harness = Harness(settings)
    pipe.send(("ready",))
    for assembly, split in _jobs(pipe):
        pipe.send(("taken",))
        _shorten_log()
        _log.info("evaluating %s on %s", assembly.identity, split)
        pipe.send(("scores", harness.evaluate(assembly, split, _beat(pipe))))


def _jobs(pipe: Connection) -> Iterator[tuple["Assembly", Split]]:
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


def _end_with_parent() -> None:
    """At once, even in the middle of an evaluation: nobody is left who could use its result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _write_to(log: Path) -> None:
    """Send all that this process prints, C libraries included, to the log."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _log.setLevel(logging.INFO)


def _shorten_log() -> None:
    """A worker may live for weeks: start its log anew when it is long."""
    if os.fstat(1).st_size > _LOG_BYTES:
        os.ftruncate(1, 0)
