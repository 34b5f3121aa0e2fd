"""
Runs the daemon to its end, its evaluation worker killed with SIGKILL at ten random moments.

    SEED -- kinship-daemon's arguments

A moment is so long after a worker was asked: it is still starting, at work, or has just answered.
No request is disturbed twice: whom the worker dies over again at once is set aside for a time.
Where a worker cannot start, a run that is to end says so and ends; it is started again, as systemd
would do. It works in a process of `warm_workers.py`.
"""

import random
import sys
import threading
from contextlib import suppress

from kinship_daemon.cli import app
from kinship_daemon.errors import Transient
from kinship_daemon.evaluate.worker import WorkerEvaluator

KILLS = 10
LONGEST_SECONDS = 0.5


def main():
    chance, lock = random.Random(int(sys.argv[1])), threading.Lock()
    ask, asked, killed = WorkerEvaluator._ask, 0, 0
    disturbed = set()

    def ask_and_kill(self, assembly, what, *given):
        nonlocal asked
        asked += 1
        request = (assembly.identity, str(what))
        if killed == KILLS or request in disturbed:
            return ask(self, assembly, what, *given)
        timer = threading.Timer(chance.uniform(0, LONGEST_SECONDS), kill, (self, request))
        timer.daemon = True
        timer.start()
        try:
            return ask(self, assembly, what, *given)
        finally:
            kill(self, request)

    def kill(evaluator, request):
        nonlocal killed
        with lock:
            child = evaluator._child
            if killed == KILLS or request in disturbed or child is None:
                return
            if child._process.is_alive():
                disturbed.add(request)
                child._process.kill()
                killed += 1

    WorkerEvaluator._ask = ask_and_kill
    for _ in range(KILLS):
        with suppress(Transient):
            app.main(args=sys.argv[3:], standalone_mode=False)
            break
    print(f"killed {killed} of {asked}", file=sys.stderr, flush=True)
