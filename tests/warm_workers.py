"""
Processes that are forked from one which has done their imports: that saves seconds each.

A daemon starts its own anew. They do so in test_worker.py, and wherever a test starts a daemon as
its users do (`command.py`).
"""

import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import huggingface_hub

import command
from kinship_daemon import child_process
from kinship_daemon.cli import main

CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ("evaluate.harness", "policy_process", "cli.daemon", "cli.run", "scheduler", "startup")


def warm() -> None:
    """Start that process; forks of the caller may use it, too."""
    multiprocessing.set_forkserver_preload([f"kinship_daemon.{name}" for name in _IMPORTED])
    forkserver._forkserver.ensure_running()
    _share()


def run(
    arguments: Sequence[object],
    home: Path,
    *,
    environment: Mapping[str, str] | None = None,
    work: Callable[[], object] = main,
    timeout: float = 300,
) -> command.Result:
    """
    As `command.run`, in such a process; so are its children.

    Args:
        environment: The whole of it; that of `command.environment` by default.
        work: What finds the arguments in `sys.argv`; the command by default.
    """
    warm()
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        found = dict(environment or command.environment(home))
        given = (work, list(map(str, arguments)), found, (out.name, err.name))
        process = CONTEXT.Process(target=_work, args=given)
        process.start()
        process.join(timeout)
        code = process.exitcode
        process.kill()
        assert code is not None, f"it still runs after {timeout} s"
        return command.Result(code, out.read().decode(), err.read().decode())


def _work(
    work: Callable[[], object],
    arguments: list[str],
    environment: dict[str, str],
    streams: tuple[str, str],
) -> None:
    for number, name in enumerate(streams, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    # The library read the tests' own when it was imported.
    importlib.reload(huggingface_hub.constants)
    _share()
    child_process._CONTEXT = CONTEXT
    sys.argv = ["kinship-daemon", *arguments]
    work()


def _share() -> None:
    """Whether the first process still runs can only be asked by its parent, which a fork is not."""
    forkserver._forkserver.ensure_running = lambda: None
