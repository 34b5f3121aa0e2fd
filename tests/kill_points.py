"""
Runs the daemon again and again on one home, each time killed with SIGKILL at another point.

    KIND:MOMENT ... -- kinship-daemon's arguments

MOMENT is `before` (the job is written down as running), `during` (half a second later: its worker
is at it, or still starting), `amid` (its work is done, nothing is written), or `after` (its result
is committed). It has one evaluation worker and two by turns, and works in a process of
`warm_workers.py`: every run is a fork of it.
"""

import os
import signal
import sys
import threading
from contextlib import contextmanager

from kinship_daemon.cli import app
from kinship_storage.jobs import Jobs


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind, moment):
    """Make this process die at the first such moment."""
    start, finish = Jobs.start, Jobs.finish

    def start_or_die(self, key):
        job = start(self, key)
        if job.kind == kind:
            if moment == "before":
                die()
            elif moment == "during":
                threading.Timer(0.5, die).start()
        return job

    @contextmanager
    def finish_or_die(self, key):
        if self.job(key).kind != kind or moment in {"before", "during"}:
            with finish(self, key):
                yield
            return
        if moment == "amid":
            die()
        with finish(self, key):
            yield
        die()

    Jobs.start, Jobs.finish = start_or_die, finish_or_die


def fork(arguments, point=None):
    """Run once in a child; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            if point is not None:
                arm(*point.split(":"))
            app.main(args=arguments, standalone_mode=False)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def main():
    split = sys.argv.index("--")
    points, arguments = sys.argv[1:split], sys.argv[split + 1 :]
    for number, point in enumerate(points):
        workers = ["--set", f"evaluate.workers={1 + number % 2}"]
        status = fork([*arguments, *workers], point)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(f"{point} {'killed' if killed else f'not killed: {status}'}", flush=True)
    sys.exit(os.waitstatus_to_exitcode(fork(arguments)))
