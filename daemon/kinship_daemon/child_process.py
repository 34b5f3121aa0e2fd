"""
A child process that cannot harm its parent: its own environment and signals, killed and reaped.

The policy, the evaluation and mergekit run in such children. They speak through a pipe. A child
gets no secret of ours, ends when its parent ends, and how it ended can be said in words.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from kinship_daemon.errors import Transient

__all__ = ["SECRETS", "ChildProcess", "last_line", "settle"]

# Anew: a fork would have our threads' locks, and no CUDA.
_CONTEXT: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
# The environment is the whole process's: two threads that start a child would mix theirs.
_STARTING = threading.Lock()
# A process that hangs in the kernel (a lost disk, a GPU driver) dies when it comes back.
_KILL_SECONDS = 30.0
# The parent alone decides when a child ends; Ctrl-C and systemd signal the whole group.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Publishing is the parent's alone, and so is what it takes.
SECRETS = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HF_TOKEN_PATH"),
    "KINSHIP_WEBHOOK_SECRET",
)
# Nor does it find the token that `hf auth login` left in a file.
_NOBODY = {"HF_TOKEN_PATH": os.devnull, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


class ChildProcess:
    """
    One child, started at once.

    Args:
        target: Called in the child with its end of the pipe, then `arguments`; it begins with
            `settle`.
        environment: Set for the child, beside ours.

    Attributes:
        pipe: The parent's end.
    """

    def __init__(
        self,
        name: str,
        target: Callable[..., None],
        *arguments: object,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=target, args=(theirs, *arguments), name=name, daemon=True
        )
        # multiprocessing would send SIGTERM at exit and wait; this runs before it, and kills.
        atexit.register(self.close)
        try:
            with _STARTING, _for_the_child({**_NOBODY, **(environment or {})}):
                self._process.start()
        except OSError as error:
            atexit.unregister(self.close)
            self.pipe.close()
            theirs.close()
            raise Transient(f"a process of its own cannot be started: {error.strerror}") from error
        theirs.close()  # so that the child's death is the end of the pipe

    def close(self) -> None:
        """End the child, whatever it is doing."""
        atexit.unregister(self.close)
        self.kill()
        self.pipe.close()

    def kill(self) -> None:
        """The same, but for the pipe: who waits at it in another thread finds its end."""
        self._process.kill()
        self._process.join(timeout=_KILL_SECONDS)

    def ending(self, seconds: float = _KILL_SECONDS) -> str:
        """How the child ended, in words; waits so long for its end."""
        self._process.join(timeout=seconds)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}, perhaps out of memory" if name == "SIGKILL" else name


def settle(log: Path | None = None) -> None:
    """
    The child's first act: it ignores what the parent alone decides, and ends with the parent.

    Args:
        log: Gets all that the process prints, C libraries included; standard error does by
            default, for what a child prints is no event of the daemon's.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    if log is None:
        os.dup2(2, 1)
        return
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "empty")


def _end_with_parent() -> None:
    """At once, whatever is being done: nobody is left who could use its result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _for_the_child(environment: Mapping[str, str]) -> Iterator[None]:
    """
    What a child inherits at its birth: our environment without secrets, and blocked signals.

    Blocked, not ignored: that works in any thread of ours, and for the seconds before the child can
    say that it ignores them.
    """
    # Started now, because starting it later would unblock the signals again.
    resource_tracker.ensure_running()
    before = {name: os.environ.pop(name, None) for name in (*SECRETS, *environment)}
    os.environ.update(environment)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
