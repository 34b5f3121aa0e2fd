"""
Child processes that are forked from one which has done their imports: that saves seconds each.

A daemon starts its own anew. They do so in test_worker.py, and wherever a test starts a daemon as
its users do.
"""

import multiprocessing
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")


def warm() -> None:
    """Start that process; forks of the caller may use it, too."""
    multiprocessing.set_forkserver_preload(
        ["kinship_daemon.evaluate.harness", "kinship_daemon.policy_process"]
    )
    server = forkserver._forkserver
    server.ensure_running()
    # Whether it still runs can only be asked by its parent, which a fork is not.
    server.ensure_running = lambda: None
