"""
Runs the daemon to its end, its evaluation worker killed with SIGKILL at ten random moments.

    python worker_kills.py SEED -- kinship-daemon's arguments

A moment is so long after a worker was asked: it is still starting, at work, or idle again. Of two
questions in a row one is left in peace: whom the worker dies over twice is set aside for a time.
Where a worker cannot start, a run that is to end says so and ends; it is started again, as systemd
would do.
"""

import random
import sys
import threading
from contextlib import suppress

import warm_workers
from kinship_daemon import child_process
from kinship_daemon.cli import app
from kinship_daemon.errors import Transient
from kinship_daemon.evaluate.worker import WorkerEvaluator

KILLS = 10
LONGEST_SECONDS = 0.6


def main():
    warm_workers.warm()
    child_process._CONTEXT = warm_workers.CONTEXT
    chance = random.Random(int(sys.argv[1]))
    ask, asked, killed = WorkerEvaluator._ask, 0, 0
    moments = {2 * number + chance.randrange(2) * (number % 2) for number in range(1, 1 + KILLS)}

    def mortal(self, *given):
        nonlocal asked
        asked += 1
        if asked in moments:
            timer = threading.Timer(chance.uniform(0, LONGEST_SECONDS), kill, (self,))
            timer.daemon = True
            timer.start()
        return ask(self, *given)

    def kill(evaluator):
        nonlocal killed
        child = evaluator._child
        if child is not None and child._process.is_alive():
            child._process.kill()
            killed += 1

    WorkerEvaluator._ask = mortal
    for _ in range(KILLS):
        with suppress(Transient):
            app.main(args=sys.argv[3:], standalone_mode=False)
            break
    print(f"killed {killed} of {asked}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
