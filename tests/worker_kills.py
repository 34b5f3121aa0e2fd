"""
Kills evaluation workers with SIGKILL at ten random moments.

    SEED -- kinship-daemon's arguments      the daemon, in a process of `warm_workers.py`

A moment is so long after a worker was asked: it is still starting, at work, or has just answered.
No request is disturbed twice: whom the worker dies over again at once is set aside for a time.
Where a worker cannot start, a run that is to end says so and ends; it is started again, as systemd
would do.
"""

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from unittest import mock

from kinship_daemon.cli import app
from kinship_daemon.errors import Transient
from kinship_daemon.evaluate.worker import WorkerEvaluator

KILLS = 10
LONGEST_SECONDS = 0.5


@dataclass
class Tally:
    """How often workers were asked, and how many were killed over it."""

    asked: int = 0
    killed: int = 0


@contextmanager
def killing(seed: int) -> Iterator[Tally]:
    """While this lasts, the workers of this process are killed, ten times in all."""
    chance, lock, tally = random.Random(seed), threading.Lock(), Tally()
    ask, disturbed = WorkerEvaluator._ask, set()

    def ask_and_kill(self, assembly, what, *given):
        tally.asked += 1
        request = (assembly.identity, str(what))
        if tally.killed == KILLS or request in disturbed:
            return ask(self, assembly, what, *given)
        timer = threading.Timer(chance.uniform(0, LONGEST_SECONDS), kill, (self, request))
        timer.daemon = True
        timer.start()
        try:
            return ask(self, assembly, what, *given)
        finally:
            kill(self, request)

    def kill(evaluator, request):
        with lock:
            child = evaluator._child
            if tally.killed == KILLS or request in disturbed or child is None:
                return
            if child._process.is_alive():
                disturbed.add(request)
                child._process.kill()
                tally.killed += 1

    with mock.patch.object(WorkerEvaluator, "_ask", ask_and_kill):
        yield tally


def main():
    with killing(int(sys.argv[1])) as tally:
        for _ in range(KILLS):
            with suppress(Transient):
                app.main(args=sys.argv[3:], standalone_mode=False)
                break
    print(f"killed {tally.killed} of {tally.asked}", file=sys.stderr, flush=True)
