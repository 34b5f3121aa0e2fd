"""
The process that is connected to a Ray cluster: it has actors started, and speaks with them.

A thread stands for each actor: it has one started, gives it a job, and asks for news. An actor
whose job nobody wants any more is killed, and another takes its place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kinship_daemon.child_process import settle
from kinship_daemon.errors import KinshipError
from kinship_daemon.execute.executor import Job, Report, Source
from kinship_daemon.execute.line import Line
from kinship_daemon.execute.node_cache import leaf_key, machine
from kinship_daemon.execute.ray_actor import DeviceActor, TaskActor
from kinship_daemon.execute.ray_cluster import Node, connect, living_nodes, shown
from kinship_daemon.execute.ray_setup import Setup
from kinship_daemon.execute.ray_worker import Place

__all__ = ["Cluster", "serve"]

# So often a look at who is in the cluster.
_LOOK_SECONDS = 5.0
# A worker that had nothing to do for so long gives its device back; to start one takes seconds.
_IDLE_SECONDS = 600.0


@dataclass(frozen=True)
class Cluster:
    """
    As the daemon is told of it.

    Attributes:
        slots: How many device jobs are done at a time.
        lines: One for each node, and what is done where.
    """

    slots: int
    lines: tuple[str, ...]


def serve(pipe: Connection, log: Path, setup: Setup) -> None:
    """The process's life: it joins the cluster, does what it is told, and leaves."""
    log.parent.mkdir(parents=True, exist_ok=True)
    settle(log)
    # Blocked since our birth, and ignored from here on; a cluster that is started here is neither.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        ray = connect(setup.options.address)
        driver = _Driver(ray, pipe, setup)
    except KinshipError as error:
        pipe.send(("failed", error))
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray has a handler of its own
    try:
        driver.run()
    finally:
        ray.shutdown()


class _Driver:
    """Knows the nodes, and gives jobs to workers."""

    def __init__(self, ray: Any, pipe: Connection, setup: Setup) -> None:
        self.ray = ray
        self.setup = setup
        self.ending = threading.Event()
        self.held: dict[str, set[str]] = {}
        self._ours: set[str] = set()  # nodes of the daemon's own machine, which has all leaves
        if machine() == setup.machine and not setup.options.address.startswith("ray://"):
            self._ours.add(ray.get_runtime_context().get_node_id())
        self._resources: dict[str, Mapping[str, float]] = {}  # of living nodes
        self._pipe = pipe
        self._sending = threading.Lock()
        self._nodes: tuple[Node, ...] = ()
        self._said_waiting = False
        self._workers: list[DeviceActor] = []
        self._beside = [TaskActor(self) for _ in range(setup.processes)]
        self._lines = [
            Line(
                [],
                "device",
                lambda number: self._workers[number].ready(),
                self._nearest,
                lambda number: self._workers[number].kill(),
                _IDLE_SECONDS,
                lambda number, job: self._workers[number].take(job),
            ),
            Line(
                [worker.do for worker in self._beside],
                "process",
                rest=lambda number: self._beside[number].kill(),
                idle_seconds=_IDLE_SECONDS,
                take=lambda number, job: self._beside[number].take(job),
            ),
        ]
        self._look()

    def run(self) -> None:
        watch = threading.Thread(target=self._keep_looking, name="nodes", daemon=True)
        watch.start()
        while True:
            try:
                kind, *given = self._pipe.recv()
            except EOFError:
                break
            if kind == "end":
                break
            if kind == "do":
                job, folders = given
                self._lines[0 if job.needs.device else 1].put((job, folders, self._tell))
            elif not any(line.drop(*given) for line in self._lines):
                for worker in (*self._workers, *self._beside):
                    worker.cancel(*given)
        self.ending.set()
        for line in self._lines:
            line.close()
        for worker in (*self._workers, *self._beside):
            worker.kill()

    def say(self, words: str) -> None:
        self._send("say", words)

    def met(self, place: Place) -> None:
        """As `Owner.met`."""
        self.held[place.node_id] = set(place.leaves)
        if place.machine == self.setup.machine:
            self._ours.add(place.node_id)

    def node_for(self, job: Job) -> str | None:
        """As `Owner.node_for`: the one that must fetch the least, where not all must fetch all."""
        whole = sum(map(_nbytes, job.sources.values()))
        missing = {
            node: self._missing(node, job)
            for node, there in sorted(self._resources.items())
            if there.get("CPU", 0) >= 1 and there.get("memory", 0) >= job.needs.memory_bytes
        }
        node = min(missing, key=lambda each: missing[each], default=None)
        return None if node is None or missing[node] == whole else node

    def wait_for_room(self, takes: Mapping[str, float], *, has_device: bool) -> None:
        """As `Owner.wait_for_room`: those of the other kind who have nothing to do make room."""
        self._lines[1 if has_device else 0].rest()
        # Once until something changes: the others wait for the same.
        if not self._said_waiting:
            self._said_waiting = True
            self.say(f"a worker waits for room on the Ray cluster: it takes {shown(takes)}")

    def _tell(self, report: Report) -> None:
        self._send("told", report)

    def _send(self, kind: str, content: Any) -> None:
        with self._sending, contextlib.suppress(OSError):  # nobody is left to hear it
            self._pipe.send((kind, content))

    def _keep_looking(self) -> None:
        while not self.ending.wait(_LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:  # whatever Ray raises where there is no cluster any more
                print(f"the cluster is gone: {error!r}", flush=True)
                os._exit(1)  # the daemon starts another

    def _look(self) -> None:
        """See who is there; what has room for more workers gets them."""
        setup, before = self.setup, self._nodes
        most = setup.options.workers
        nodes = self.ray.nodes()
        self._resources = {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}
        found = living_nodes(nodes, setup.takes, setup.most_per_node)
        if found == before and self._workers:
            return
        slots = max(1, sum(node.workers for node in found) if most is None else most)
        while len(self._workers) < slots:
            worker = DeviceActor(self, setup.device, setup.takes)
            self._workers.append(worker)
            self._lines[0].add(worker.do)
        self._nodes, self._said_waiting = found, False
        self._send("cluster", Cluster(slots, (*map(_shown, found), self._plan(found))))
        if before:
            names = {node.name for node in found}, {node.name for node in before}
            for node in before:
                if node.name not in names[0]:
                    self.say(f"node {node.name} is gone; what it was at is done elsewhere")
            for node in found:
                if node.name not in names[1]:
                    self.say(f"new {_shown(node)}")

    def _plan(self, found: Sequence[Node]) -> str:
        takes, most = shown(self.setup.takes), self.setup.options.workers
        room = sum(node.workers for node in found)
        if room == 0:
            return f"no node has room for a worker, which takes {takes}: work waits for one"
        where = f"evaluation there, {most or room} at a time, each takes {takes}"
        return f"{where}; kinship passes as tasks, all else on the daemon's machine"

    def _nearest(self, number: int, jobs: Sequence[Job]) -> int:
        """The job for which a worker's node must fetch the least."""
        place = self._workers[number].place
        if place is None:
            return 0
        return min(range(len(jobs)), key=lambda at: (self._missing(place.node_id, jobs[at]), at))

    def _missing(self, node: str, job: Job) -> int:
        """Bytes of what a job reads that a node would have to fetch, as far as we know."""
        if node in self._ours:
            return 0
        held = self.held.get(node, set())
        return sum(_nbytes(s) for s in job.sources.values() if leaf_key(s.files) not in held)


def _shown(node: Node) -> str:
    return f"node {node.name}: {node.workers} at a time on {node.device}"


def _nbytes(source: Source) -> int:
    return sum(file.size for file in source.files)
