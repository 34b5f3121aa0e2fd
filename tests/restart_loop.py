"""
Runs the daemon on one home as often as it is told to, to be killed from outside.

    python restart_loop.py kinship-daemon's arguments

For every line on standard input it starts a run and prints its process id; when that has ended, it
prints its wait status. The imports are done once: every run is a fork of this process, which has
started no thread, and so are their workers of another (`warm_workers.py`). What the runs say goes
to standard error.
"""

import os
import sys

import warm_workers
from kinship_daemon import child_process, scheduler, startup  # noqa: F401 - imported for the forks
from kinship_daemon.cli import app, daemon  # noqa: F401
from kinship_daemon.errors import KinshipError
from wide_world import impatient


def start(arguments):
    child = os.fork()
    if child:
        return child
    os.dup2(2, 1)
    try:
        app.main(args=arguments, standalone_mode=False)
    except KinshipError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(70)
    os._exit(0)


def main():
    warm_workers.warm()
    child_process._CONTEXT = warm_workers.CONTEXT
    impatient()
    while sys.stdin.readline():
        child = start(sys.argv[1:])
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
