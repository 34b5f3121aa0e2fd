"""Actors on a Ray cluster, each with the thread of ours that has it started and speaks with it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kinship_daemon.errors import KinshipError, Lost, Stopped, UsageError
from kinship_daemon.execute.executor import Failed, Job, Progress, Tell
from kinship_daemon.execute.leaf_sources import share
from kinship_daemon.execute.node_cache import Leaf
from kinship_daemon.execute.ray_setup import Setup
from kinship_daemon.execute.ray_worker import Place, RayWorker

__all__ = ["DeviceActor", "Owner", "TaskActor"]

_TICK_SECONDS = 0.2
# So long an actor may take to start before it is said what it waits for, and others make room.
_PATIENCE_SECONDS = 20.0


class Owner(Protocol):
    """
    Whose actors they are.

    Attributes:
        held: Keys of leaves by node, as far as we have seen them arrive.
        ending: Set when all is to end.
    """

    ray: Any
    setup: Setup
    ending: threading.Event
    held: dict[str, set[str]]

    def met(self, place: Place) -> None:
        """An actor has started there."""

    def node_for(self, job: Job) -> str | None:
        """Ray's id of the node where a job had best be done; None where any will do."""

    def wait_for_room(self, takes: Mapping[str, float], *, has_device: bool) -> None:
        """Called every so often for an actor that has no room."""


class DeviceActor:
    """
    An actor that has a device, its replacement when it is gone, and our thread that speaks with it.

    Args:
        takes: What it takes of a node, by Ray's names.
    """

    _has_device = True

    def __init__(self, owner: Owner, device: str, takes: Mapping[str, float]) -> None:
        self._owner = owner
        self._ray = owner.ray
        self._device = device
        self._takes = takes
        self._node: str | None = None  # Ray's id of the one that it had best be on
        self._actor: Any = None
        self.place: Place | None = None
        self._fault: Exception | None = None
        self._lock = threading.Lock()
        self._at: tuple[str, int] | None = None
        self._cancelled = False

    def ready(self) -> None:
        """Have an actor; one that has no room now waits for it, which Ray's autoscaler sees."""
        ending = self._owner.ending
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
            self._prepare(job)
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

    def _prepare(self, job: Job) -> None:
        """Before each job."""

    def kill(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:
            with contextlib.suppress(Exception):  # it is gone already, or its cluster is
                self._ray.kill(actor)

    @property
    def _gone(self) -> tuple[type[Exception], ...]:
        return self._ray.exceptions.RayError, ConnectionError

    def _start(self) -> None:
        setup, options = self._owner.setup, self._owner.setup.options
        takes = dict(self._takes)
        named = {"num_cpus": takes.pop("CPU", 0.0), "num_gpus": takes.pop("GPU", 0.0)}
        memory = takes.pop("memory", None)
        if memory is not None:
            named["memory"] = memory
        strategy: Any = "SPREAD"
        if self._node is not None:
            affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            strategy = affinity(self._node, soft=True)
        made = self._ray.remote(RayWorker).options(
            resources=takes, scheduling_strategy=strategy, **named
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
        self._owner.met(place)

    def _do(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        place, setup = self.place, self._owner.setup
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
                    self._owner.held[place.node_id].update(leaf.key for leaf in leaves.values())
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
        patience = round(_PATIENCE_SECONDS / _TICK_SECONDS)
        ticks = 0
        while not (self._cancelled or self._owner.ending.is_set()):
            if self._ray.wait([asked], timeout=_TICK_SECONDS)[0]:
                return self._given(asked)
            ticks += 1
            if waits and ticks % patience == 0:
                self._owner.wait_for_room(self._takes, has_device=self._has_device)
        raise Stopped

    def _given(self, asked: Any) -> Any:
        try:
            return self._ray.get(asked)
        except self._ray.exceptions.RayTaskError as error:  # the worker is well
            cause = error.cause
            if isinstance(cause, KinshipError):
                raise cause from None
            raise RuntimeError(f"a Ray worker cannot be used: {cause}") from None


class TaskActor(DeviceActor):
    """One without a device: for each job on the best node, with the memory that the job needs."""

    _has_device = False

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner, "cpu", {"CPU": 1.0})

    def _prepare(self, job: Job) -> None:
        memory = float(job.needs.memory_bytes)
        takes = {"CPU": 1.0, **({"memory": memory} if memory else {})}
        node = self._owner.node_for(job)
        is_there = self.place is not None and node in (None, self.place.node_id)
        if takes != self._takes or not is_there:
            self.kill()
            self._takes, self._node = takes, node
        if self._actor is None:
            self._start()


def _lost(what: str, error: Exception) -> Lost:
    words = (str(error).strip().splitlines() or [""])[0]
    return Lost(f"{what} is gone ({type(error).__name__}: {words})")
