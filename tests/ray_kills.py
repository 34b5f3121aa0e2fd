"""
The demo on a Ray cluster of two nodes, while nodes, the head and the daemon are killed.

    python ray_kills.py FOLDER [--seed 0] [--nodes 10] [--daemons 10] [--heads 1] [--lone-heads 1]

Kills everything with SIGKILL at seeded random moments, and brings it back; then compares the
lineage and all that was published with an undisturbed run of `inline`. Exit 1 where they differ, or
where an actor or shared memory is left.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import command
from ray_clusters import add_node, start_head
from test_kill import ARGUMENTS, INLINE, content
from test_main_job import history

PORT = 26379
LONGEST_SECONDS = 12.0
PATIENCE_SECONDS = 900.0


def main():
    asked = arguments()
    asked.folder.mkdir(parents=True, exist_ok=True)
    calm, killed = asked.folder / "calm", asked.folder / "killed"
    if not calm.exists():  # kept from call to call
        run = command.run(
            [*ARGUMENTS, *INLINE, "--home", calm], asked.folder, timeout=PATIENCE_SECONDS
        )
        assert run.code == 0, run.err
    shutil.rmtree(killed, ignore_errors=True)
    shared_before = shared_memory()
    cluster = Machines()
    daemon = Daemon(killed, asked.folder)
    try:
        kills = ["node"] * asked.nodes + ["daemon"] * asked.daemons + ["head"] * asked.heads
        kills += ["lone head"] * asked.lone_heads
        chance = random.Random(asked.seed)
        chance.shuffle(kills)
        done = 0
        for kill in kills:
            if not daemon.is_at_work_for(chance.uniform(0, LONGEST_SECONDS)):
                break
            say("kill", f"{kill}, {done + 1} of {len(kills)}")
            {
                "node": cluster.kill_node,
                "head": cluster.kill_head,
                "lone head": cluster.kill_head_alone,
                "daemon": daemon.kill,
            }[kill]()
            done += 1
        daemon.wait()
        left = actors()
    finally:
        daemon.close()
        cluster.close()
    said = [line for line in daemon.lines if line.get("event") == "executor"]
    for line in said:
        say("told", line["message"])
    shared = sorted(shared_memory() - shared_before)
    same = history(killed) == history(calm), content(killed / "hub") == content(calm / "hub")
    say("done", f"{done} of {len(kills)} kills; daemon ended with {daemon.code}")
    say("same lineage", str(same[0]))
    say("same publications", str(same[1]))
    say("actors left", str(left))
    say("shared memory left", str(shared))
    sys.exit(not (all(same) and done == len(kills) and not daemon.code and not left + shared))


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    counts = (("seed", 0), ("nodes", 10), ("daemons", 10), ("heads", 1), ("lone-heads", 1))
    for name, default in counts:
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


class Machines:
    """A head, and a further node."""

    def __init__(self):
        self._orphans = []
        self._start()

    def kill_node(self):
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = add_node(self._cluster)

    def kill_head(self):
        """Its node goes along: it would wait a minute for a head of the same session."""
        self.close()
        time.sleep(LONGEST_SECONDS)
        self._start()

    def kill_head_alone(self):
        """Another cluster begins where the old one's node still lives, and waits."""
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        self._orphans.append(self._node)
        time.sleep(LONGEST_SECONDS)
        self._start()

    def close(self):
        for node in (*self._cluster.list_all_nodes(), *self._orphans):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        self._orphans.clear()

    def _start(self):
        self._cluster = start_head(gcs_server_port=PORT)
        self._node = add_node(self._cluster)


class Daemon:
    """Started again whenever it is killed."""

    def __init__(self, home, place):
        ray = ("executor.use=ray", f"executor.address=127.0.0.1:{PORT}")
        ray += (f"executor.node_cache={place / 'node'}",)
        settings = [word for each in ray for word in ("--set", each)]
        self._arguments = [*ARGUMENTS, *settings, "--home", home]
        self._place = place
        self.lines = []
        self.code = None
        self._start()

    def kill(self):
        self._process.kill()
        self._end()
        self._start()

    def is_at_work_for(self, seconds):
        """Waits until it is at work, and so long; whether it still is."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self._working.wait(0.2):
            if self._process.poll() is not None or time.monotonic() > end:
                return False
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def wait(self):
        """Until it has converged; where it cannot go on it says so, and is started again."""
        for _ in range(5):
            self._process.wait(PATIENCE_SECONDS)
            self._end()
            if self.code == 0:
                return
            say("ended", f"{self.code}: {self._errors()}")
            time.sleep(LONGEST_SECONDS)
            self._start()

    def close(self):
        if self._process.poll() is None:
            self._process.kill()
            self._end()

    def _start(self):
        self._working = threading.Event()
        self._process = command.start(self._arguments, self._place)
        self._errors = lambda: ""
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._hear)]
        for reader in self._readers:
            reader.start()

    def _end(self):
        for reader in self._readers:
            reader.join()
        self.code = self._process.wait()

    def _read(self):
        for line in self._process.stdout:
            found = json.loads(line)
            self.lines.append(found)
            self._working.set()

    def _hear(self):
        said = self._process.stderr.read()
        self._errors = lambda: said.strip()[-500:]


def actors():
    """Of ours that are not dead, as the cluster sees it once the daemon has gone."""
    code = (
        "import ray, time; from ray._private.state import actors\n"
        f"ray.init('127.0.0.1:{PORT}', log_to_driver=False, logging_level='error')\n"
        "alive = lambda: [a for a in actors().values() if a['State'] != 'DEAD']\n"
        "end = time.monotonic() + 60\n"
        "while alive() and time.monotonic() < end: time.sleep(0.5)\n"
        "print(len(alive()), len(actors()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    alive, seen = map(int, found.stdout.split())
    say("actors", f"{seen} seen by this head, {alive} left")
    return [alive] * bool(alive)


def shared_memory():
    return {path.name for path in Path("/dev/shm").iterdir()}


def say(kind, words):
    print(f"{time.strftime('%H:%M:%S')} {kind:>10} {words}", flush=True)


if __name__ == "__main__":
    main()
