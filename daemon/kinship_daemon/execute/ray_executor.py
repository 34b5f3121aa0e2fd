"""
Workers on the machines of a Ray cluster: actors that hold a warm evaluator.

A thread of ours stands for each actor: it has one started, gives it a job, and asks for news. Jobs
and answers go through Ray; weights are had by each node itself (`node_cache.py`), and tokens stay
here. An actor whose job nobody wants any more is killed, and another takes its place.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinship_daemon.child_process import without_secrets
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import KinshipError, Lost, Stopped, Transient, UsageError
from kinship_daemon.execute.executor import Failed, Job, Progress, Source, Tell
from kinship_daemon.execute.leaf_sources import share
from kinship_daemon.execute.line import Line
from kinship_daemon.execute.node_cache import Leaf, machine
from kinship_daemon.execute.ray_worker import Place, RayWorker, versions
from kinship_daemon.execute.site import Workshop
from kinship_storage.records import File

__all__ = ["RayExecutor"]

_TICK_SECONDS = 0.2
# So long a cluster's address may take to answer.
_REACH_SECONDS = 10.0
# What a model needs beside its weights.
_BESIDE = {".json", ".model", ".txt", ".jinja"}
# Nothing large goes through Ray.
_OBJECT_STORE_BYTES = 100 * 1024 * 1024


@dataclass(frozen=True)
class _Options:
    """The config's `executor` section, as far as it is ours."""

    address: str = "auto"
    gpus_per_worker: float | None = None
    resources: Mapping[str, float] | None = None
    shared_folder: Path | None = None
    node_cache: str = "~/.cache/kinship-daemon"
    node_disk_gb: float = 100.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> _Options:
        known = {name: given[name] for name in cls.__dataclass_fields__ if name in given}
        return cls(**known)


class RayExecutor:
    """
    On each node as many device workers as fit, and one worker anywhere that needs no device.

    Args:
        workshop: On a CPU a node has as many workers as this machine would have.
    """

    def __init__(self, workshop: Workshop) -> None:
        self._options = options = _Options.of(workshop.options)
        self._ray = _imported()
        self._is_ours = _connect(self._ray, options.address)
        self._closing = threading.Event()
        try:
            on_gpu = workshop.devices[0].startswith("cuda")
            gpus = options.gpus_per_worker
            if gpus is None:
                gpus = 1.0 if on_gpu else 0.0
            if gpus and not on_gpu:
                raise UsageError(
                    f"executor.gpus_per_worker is {gpus:g}, and models are evaluated on the CPU "
                    "here: set evaluate.device: cuda where the daemon has a GPU, too, or leave it"
                )
            wanted = {"CPU": 1.0, **({"GPU": gpus} if gpus else {}), **(options.resources or {})}
            most = None if on_gpu else len(workshop.devices)
            self._places = _places(self._ray.nodes(), wanted, most, options.address)
            count = sum(self._places.values())
            device = "cuda:0" if on_gpu else "cpu"
            self._workers = [_Worker(self, device, wanted) for _ in range(count)]
            self._beside = [_Worker(self, "cpu", {"CPU": 1.0})]
            self._lines = [_line(self._workers, "device"), _line(self._beside, "process")]
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        return len(self._workers)

    def submit(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        """As `Executor.submit`."""
        self._lines[0 if job.needs.device else 1].put((job, folders, tell))

    def cancel(self, key: str, attempt: int) -> None:
        """As `Executor.cancel`."""
        if not any(line.drop(key, attempt) for line in self._lines):
            for worker in (*self._workers, *self._beside):
                worker.cancel(key, attempt)

    def describe(self) -> list[str]:
        return [f"node {node}: {count} at a time" for node, count in self._places.items()]

    def close(self) -> None:
        """As `Executor.close`; a cluster that was connected to before stays so."""
        self._closing.set()
        for line in getattr(self, "_lines", []):
            line.close()
        for worker in (*getattr(self, "_workers", []), *getattr(self, "_beside", [])):
            worker.kill()
        if self._is_ours:
            self._is_ours = False
            self._ray.shutdown()


def _line(workers: Sequence[_Worker], name: str) -> Line:
    return Line([worker.do for worker in workers], name, lambda number: workers[number].ready())


class _Worker:
    """An actor, its replacement when it is gone, and the thread of ours that speaks with it."""

    def __init__(self, executor: RayExecutor, device: str, wanted: Mapping[str, float]) -> None:
        self._ray = executor._ray
        self._options = executor._options
        self._closing = executor._closing
        self._device = device
        self._wanted = dict(wanted)
        self._actor: Any = None
        self._place: Place | None = None
        self._fault: KinshipError | None = None
        self._lock = threading.Lock()
        self._at: tuple[str, int] | None = None
        self._cancelled = False

    def ready(self) -> None:
        """Have an actor; one that has no room now waits for it, which Ray's autoscaler sees."""
        while self._actor is None and self._fault is None and not self._closing.is_set():
            try:
                self._start()
            except Stopped:
                self.kill()
            except KinshipError as error:
                self.kill()
                self._fault = error
            except self._ray.exceptions.RayError as error:
                self.kill()
                self._fault = _lost("a worker could not be started", error)

    def do(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        with self._lock:
            self._at = (job.key, job.attempt)
        try:
            fault, self._fault = self._fault, None
            if fault is not None:
                raise fault
            self._do(job, folders, tell)
        except Stopped:
            self.kill()
        except self._ray.exceptions.RayError as error:
            node = self._place.node if self._place else "?"
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

    def _start(self) -> None:
        options = self._options
        wanted = dict(self._wanted)
        cpus, gpus = wanted.pop("CPU"), wanted.pop("GPU", 0.0)
        shared = None if options.shared_folder is None else str(options.shared_folder)
        made = self._ray.remote(RayWorker).options(
            num_cpus=cpus, num_gpus=gpus, resources=wanted, scheduling_strategy="SPREAD"
        )
        self._actor = made.remote(self._device, options.node_cache, options.node_disk_gb, shared)
        place: Place = self._get(self._actor.place.remote())
        ours = versions()
        for name, found in place.versions.items():
            if found != ours[name]:
                raise UsageError(
                    f"node {place.node} has {name} {found} and the daemon {ours[name]}: their "
                    "scores could not be compared; install the same there"
                )
        self._place = place

    def _do(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        assert self._place is not None or self._closing.is_set()
        if self._actor is None or self._place is None:
            raise Stopped
        leaves = {
            weights: _leaf(weights, source, folders[weights])
            for weights, source in sorted(job.sources.items())
        }
        if self._options.shared_folder is not None and self._place.machine != machine():
            for leaf in leaves.values():
                share(leaf, self._options.shared_folder)
        self._get(self._actor.begin.remote(job, leaves))
        while True:
            for report in self._get(self._actor.news.remote()):
                tell(report)
                if not isinstance(report, Progress):
                    return

    def _get(self, asked: Any) -> Any:
        """
        What an actor answers.

        Raises:
            Stopped: Nobody wants it any more.
            RayError: It is gone.
        """
        while not (self._cancelled or self._closing.is_set()):
            if self._ray.wait([asked], timeout=_TICK_SECONDS)[0]:
                return self._ray.get(asked)
        raise Stopped


def _leaf(weights: str, source: Source, folder: Path) -> Leaf:
    # The weights are known by their hashes; the tokenizer and config beside them are small.
    files = {file.path: file for file in source.files}
    for path in sorted(folder.iterdir()):
        if path.name not in files and path.is_file() and path.suffix in _BESIDE:
            files[path.name] = File(path.name, path.stat().st_size, hash_file(path))
    listed = tuple(files[name] for name in sorted(files))
    name = source.repo or weights
    return Leaf(name, listed, folder, machine(), source.repo, source.revision)


def _imported() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError("executor.use: ray needs Ray: pip install 'kinship-daemon[ray]'") from None
    return ray


def _connect(ray: Any, address: str) -> bool:
    """Whether it was we who connected."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        _reach(address)
        with without_secrets():  # a cluster that is started here has our environment
            ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "ersion mismatch" in str(error):
            words = " ".join(str(error).split())
            raise UsageError(f"the Ray cluster at {address} has other versions: {words}") from None
        raise Transient(
            f"executor.address {address}: no Ray cluster answers there ({words}); start one with "
            "`ray start --head`, or set executor.address: local"
        ) from None
    return True


def _reach(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()


def _places(
    nodes: Sequence[Mapping[str, Any]], wanted: Mapping[str, float], most: int | None, address: str
) -> dict[str, int]:
    """How many workers that take so much each node has room for."""
    found = {}
    for node in nodes:
        there = node["Resources"]
        room = min(int(there.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items())
        room = room if most is None else min(room, most)
        if node["Alive"] and room:
            found[f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"] = room
    if not found:
        asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        raise Transient(
            f"no node of the Ray cluster {address} has {asked}, which a worker takes; see "
            "executor.gpus_per_worker and executor.resources"
        )
    return dict(sorted(found.items()))


def _lost(what: str, error: Exception) -> Lost:
    words = (str(error).strip().splitlines() or [""])[0]
    return Lost(f"{what} is gone ({type(error).__name__}: {words})")
