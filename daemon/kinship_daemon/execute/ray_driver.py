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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kinship_daemon.child_process import settle
from kinship_daemon.errors import KinshipError, Lost, Stopped, UsageError
from kinship_daemon.execute.executor import Failed, Job, Progress, Report, Tell
from kinship_daemon.execute.leaf_sources import share
from kinship_daemon.execute.line import Line
from kinship_daemon.execute.node_cache import Leaf, leaf_key
from kinship_daemon.execute.ray_cluster import Node, connect, living_nodes, shown
from kinship_daemon.execute.ray_worker import Place, RayWorker

__all__ = ["Cluster", "RayOptions", "Setup", "serve"]

_TICK_SECONDS = 0.2
# So often a look at who is in the cluster.
_LOOK_SECONDS = 5.0
# A worker that had nothing to do for so long gives its device back; to start one takes seconds.
_IDLE_SECONDS = 600.0
# So long a worker may take to start before it is said what it waits for.
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class RayOptions:
    """The config's `executor` section, as far as it is Ray's."""

    address: str = "auto"
    workers: int | None = None
    gpus_per_worker: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    shared_folder: Path | None = None
    node_cache: str = "~/.cache/kinship-daemon"
    node_disk_gb: float = 100.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RayOptions:
        known = {name: given[name] for name in cls.__dataclass_fields__ if name in given}
        return cls(**known)


@dataclass(frozen=True)
class Setup:
    """
    Attributes:
        takes: What a device worker takes of a node, by Ray's names.
        most_per_node: Device workers, however much room there is.
        processes: Workers without a device.
        machine: The daemon's.
        versions: The daemon's, which a worker's must be.
        hub: Where models come from.
    """

    options: RayOptions
    device: str
    takes: Mapping[str, float]
    most_per_node: int | None
    processes: int
    machine: str
    versions: Mapping[str, str]
    hub: str


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
        # Keys of leaves by node, as far as we have seen them arrive.
        self.held: dict[str, set[str]] = {}
        self._pipe = pipe
        self._sending = threading.Lock()
        self._nodes: tuple[Node, ...] = ()
        self._said_waiting = False
        self._workers: list[_Worker] = []
        self._beside = [_Worker(self, "cpu", {"CPU": 1.0}) for _ in range(setup.processes)]
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
                lambda number: self._beside[number].ready(),
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

    def say_waiting(self, takes: Mapping[str, float]) -> None:
        """Once until something changes: the others wait for the same."""
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
        found = living_nodes(self.ray.nodes(), setup.takes, setup.most_per_node)
        if found == before and self._workers:
            return
        slots = max(1, sum(node.workers for node in found) if most is None else most)
        while len(self._workers) < slots:
            worker = _Worker(self, setup.device, setup.takes)
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
        return f"{where}; all else on the daemon's machine"

    def _nearest(self, number: int, jobs: Sequence[Job]) -> int:
        """The job for which a worker's node must fetch the least."""
        place = self._workers[number].place
        if place is None or place.machine == self.setup.machine:
            return 0
        held = self.held.get(place.node_id, set())

        def missing(at: int) -> int:
            files = [source.files for source in jobs[at].sources.values()]
            return sum(sum(f.size for f in each) for each in files if leaf_key(each) not in held)

        return min(range(len(jobs)), key=lambda at: (missing(at), at))


class _Worker:
    """An actor, its replacement when it is gone, and the thread of ours that speaks with it."""

    def __init__(self, driver: _Driver, device: str, takes: Mapping[str, float]) -> None:
        self._driver = driver
        self._ray = driver.ray
        self._device = device
        self._takes = takes
        self._actor: Any = None
        self.place: Place | None = None
        self._fault: Exception | None = None
        self._lock = threading.Lock()
        self._at: tuple[str, int] | None = None
        self._cancelled = False

    def ready(self) -> None:
        """Have an actor; one that has no room now waits for it, which Ray's autoscaler sees."""
        ending = self._driver.ending
        while self._actor is None and self._fault is None and not ending.is_set():
            try:
                self._start()
            except Stopped:
                self.kill()
            except self._gone as error:
                self.kill()
                self._fault = _lost("a worker could not be started", error)
            except Exception as error:  # whoever is to do with it next raises it
                self.kill()
                self._fault = error

    def take(self, job: Job) -> None:
        """From now on it can be cancelled."""
        with self._lock:
            self._at = (job.key, job.attempt)

    def do(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        try:
            fault, self._fault = self._fault, None
            if fault is not None:
                raise fault
            self._do(job, folders, tell)
        except Stopped:
            self.kill()
        except self._gone as error:
            node = self.place.node if self.place else "?"
            self.kill()
            tell(Failed(job.key, job.attempt, _lost(f"{job.key}: the worker on {node}", error)))
        except Exception as error:  # whoever waits for it raises it
            tell(Failed(job.key, job.attempt, error))
        finally:
            with self._lock:
                self._at, self._cancelled = None, False

    def cancel(self, key: str, attempt: int) -> None:
        with self._lock:
            self._cancelled |= self._at == (key, attempt)

    def kill(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:
            with contextlib.suppress(Exception):  # it is gone already, or its cluster is
                self._ray.kill(actor)

    @property
    def _gone(self) -> tuple[type[Exception], ...]:
        return self._ray.exceptions.RayError, ConnectionError

    def _start(self) -> None:
        setup, options = self._driver.setup, self._driver.setup.options
        takes = dict(self._takes)
        named = {"num_cpus": takes.pop("CPU", 0.0), "num_gpus": takes.pop("GPU", 0.0)}
        memory = takes.pop("memory", None)
        if memory is not None:
            named["memory"] = memory
        made = self._ray.remote(RayWorker).options(
            resources=takes, scheduling_strategy="SPREAD", **named
        )
        shared = None if options.shared_folder is None else str(options.shared_folder)
        self._actor = made.remote(
            self._device, options.node_cache, options.node_disk_gb, shared, setup.hub
        )
        place: Place = self._get(self._actor.place.remote(), waits=True)
        for name, found in place.versions.items():
            if found != setup.versions[name]:
                raise UsageError(
                    f"node {place.node} has {name} {found} and the daemon {setup.versions[name]}: "
                    "their scores could not be compared; install the same there"
                )
        self.place = place
        self._driver.held[place.node_id] = set(place.leaves)

    def _do(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        place, setup = self.place, self._driver.setup
        if self._actor is None or place is None:
            raise Stopped
        leaves = {
            weights: Leaf(
                source.repo or weights,
                source.files,
                folders[weights],
                setup.machine,
                source.repo,
                source.revision,
            )
            for weights, source in sorted(job.sources.items())
        }
        if setup.options.shared_folder is not None and place.machine != setup.machine:
            for leaf in leaves.values():
                share(leaf, setup.options.shared_folder)
        self._get(self._actor.begin.remote(job, leaves))
        while True:
            for report in self._get(self._actor.news.remote()):
                tell(report)
                if not isinstance(report, Progress):
                    self._driver.held[place.node_id].update(leaf.key for leaf in leaves.values())
                    return

    def _get(self, asked: Any, *, waits: bool = False) -> Any:
        """
        What an actor answers.

        Args:
            waits: It may have to wait for room, which is then said.

        Raises:
            Stopped: Nobody wants it any more.
            RayError, ConnectionError: It is gone.
            KinshipError, RuntimeError: What it raised, which only a bug makes the latter.
        """
        ticks = round(_PATIENCE_SECONDS / _TICK_SECONDS)
        while not (self._cancelled or self._driver.ending.is_set()):
            if self._ray.wait([asked], timeout=_TICK_SECONDS)[0]:
                return self._given(asked)
            ticks -= 1
            if waits and ticks == 0:
                self._driver.say_waiting(self._takes)
        raise Stopped

    def _given(self, asked: Any) -> Any:
        try:
            return self._ray.get(asked)
        except self._ray.exceptions.RayTaskError as error:  # the worker is well
            cause = error.cause
            if isinstance(cause, KinshipError):
                raise cause from None
            raise RuntimeError(f"a Ray worker cannot be used: {cause}") from None


def _shown(node: Node) -> str:
    return f"node {node.name}: {node.workers} at a time on {node.device}"


def _lost(what: str, error: Exception) -> Lost:
    words = (str(error).strip().splitlines() or [""])[0]
    return Lost(f"{what} is gone ({type(error).__name__}: {words})")
