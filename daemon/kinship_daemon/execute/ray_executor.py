"""
Workers on the machines of a Ray cluster, by way of a process of its own that speaks with it.

Ray ends the process that is connected to a cluster where the cluster's head is gone for a minute,
or the machine's own node. That must not be the daemon: it starts another, and what was out is done
again. Jobs and answers go through Ray; weights are had by each node itself (`node_cache.py`), and
tokens stay here.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinship_daemon.child_process import ChildProcess, last_line
from kinship_daemon.errors import KinshipError, Lost, Stopped, Transient, UsageError
from kinship_daemon.execute.executor import Done, Failed, Job, Report, Tell
from kinship_daemon.execute.node_cache import machine
from kinship_daemon.execute.ray_driver import Cluster, serve
from kinship_daemon.execute.ray_setup import RayOptions, Setup
from kinship_daemon.execute.ray_worker import versions
from kinship_daemon.execute.site import Workshop

__all__ = ["RayExecutor"]

_TICK_SECONDS = 0.2
# So long a cluster may take to let us in; one that is started here takes half a minute.
_CONNECT_SECONDS = 180.0
# A cluster that was there is tried so often; so long jobs wait for it, then they are told.
_AGAIN_SECONDS = 3.0
_AWAY_SECONDS = 60.0
# So long our process may take to leave the cluster by itself.
_LEAVE_SECONDS = 10.0

_Out = tuple[Job, Mapping[str, Path], Tell]


class RayExecutor:
    """
    On each node as many device workers as fit, and anywhere as many as wanted without a device.

    Args:
        workshop: On a CPU a node has as many workers as this machine would have.
    """

    has_machines = True

    def __init__(self, workshop: Workshop) -> None:
        if importlib.util.find_spec("ray") is None:
            words = "executor.use: ray needs Ray: pip install 'kinship-daemon[ray]'"
            raise UsageError(words)
        self._workshop = workshop
        self._options = RayOptions.of(workshop.options)
        self._setup = _setup(workshop, self._options)
        self._log = workshop.log.with_name("ray.log")
        self._lock = threading.Lock()
        self._out: dict[tuple[str, int], _Out] = {}
        self._cluster = Cluster(0, ())
        self._closing = threading.Event()
        self._driver: ChildProcess | None = self._connected()
        self._ear = threading.Thread(target=self._listen, name="ray", daemon=True)
        self._ear.start()

    @property
    def slots(self) -> int:
        return max(1, self._cluster.slots)

    def submit(self, job: Job, folders: Mapping[str, Path], tell: Tell) -> None:
        """As `Executor.submit`."""
        with self._lock:
            self._out[job.key, job.attempt] = (job, folders, tell)
            fault = self._send(("do", job, dict(folders)))
            if fault is not None:
                del self._out[job.key, job.attempt]
        if fault is not None:
            tell(Failed(job.key, job.attempt, fault))

    def cancel(self, key: str, attempt: int) -> None:
        """As `Executor.cancel`."""
        with self._lock:
            if self._out.pop((key, attempt), None) is not None:
                self._send(("cancel", key, attempt))

    def describe(self) -> list[str]:
        return list(self._cluster.lines)

    def close(self) -> None:
        """As `Executor.close`; a cluster that was there before stays."""
        self._closing.set()
        self._ear.join()
        with self._lock:
            self._out.clear()
            self._send(("end",))
            if self._driver is not None:
                self._driver.ending(_LEAVE_SECONDS)
                self._driver.close()
                self._driver = None

    def _send(self, message: tuple[Any, ...]) -> Exception | None:
        """Tell the driver; what it cannot be told is returned."""
        if self._driver is None:
            return None  # what is out is sent when there is one
        try:
            self._driver.pipe.send(message)
        except OSError:
            return None  # it is gone, which the ear hears
        except Exception as error:  # a call that cannot be pickled
            return error
        return None

    def _connected(self) -> ChildProcess:
        """
        A driver that the cluster has let in.

        Raises:
            UsageError: It never will, as things are set.
            Transient: No cluster answers.
            Stopped: While it waited.
        """
        driver = ChildProcess("kinship-ray", serve, self._log, self._setup)
        try:
            end = time.monotonic() + _CONNECT_SECONDS
            while not driver.pipe.poll(_TICK_SECONDS):
                if self._closing.is_set() or self._workshop.stop.is_set():
                    raise Stopped
                if time.monotonic() > end:
                    raise Transient(f"{self._where} does not let us in; {self._log} may say why")
            kind, content = driver.pipe.recv()
            if kind == "failed":
                raise content
            self._cluster = content
        except BaseException as error:
            driver.close()
            if isinstance(error, EOFError | OSError):
                said = last_line(self._log)
                raise Transient(f"{self._where} cannot be joined: {said}") from error
            raise
        return driver

    def _listen(self) -> None:
        while not self._closing.is_set():
            driver = self._driver
            assert driver is not None
            try:
                if driver.pipe.poll(_TICK_SECONDS):
                    self._hear(*driver.pipe.recv())
            except (EOFError, OSError):
                self._reconnect(driver)

    def _hear(self, kind: str, content: Any) -> None:
        if kind == "cluster":
            self._cluster = content
        elif kind == "say":
            self._workshop.say(content)
        else:
            self._tell(content)

    def _tell(self, report: Report) -> None:
        key = report.key, report.attempt
        with self._lock:
            ends = isinstance(report, Done | Failed)
            out = self._out.pop(key, None) if ends else self._out.get(key)
        if out is not None and not self._closing.is_set():
            out[2](report)

    def _reconnect(self, driver: ChildProcess) -> None:
        """The driver is gone; until there is another, what is submitted waits, but not for ever."""
        with self._lock:
            self._driver = None
        driver.close()
        self._workshop.say(f"{self._where} is gone; what it was at is done again when it is back")
        self._fail_all(Lost(f"{self._where} is gone"))
        began = time.monotonic()
        while not self._closing.wait(_AGAIN_SECONDS):
            try:
                driver = self._connected()
            except Stopped:
                continue
            except KinshipError as error:
                if time.monotonic() - began > _AWAY_SECONDS or not isinstance(error, Transient):
                    self._fail_all(error)
                continue
            self._workshop.say(f"{self._where} is back: {'; '.join(self._cluster.lines)}")
            with self._lock:
                self._driver = driver
                for job, folders, _ in self._out.values():
                    self._send(("do", job, dict(folders)))
            return

    def _fail_all(self, error: KinshipError) -> None:
        with self._lock:
            keys = list(self._out)
        for key, attempt in keys:
            self._tell(Failed(key, attempt, error))

    @property
    def _where(self) -> str:
        return f"the Ray cluster {self._options.address}"


def _setup(workshop: Workshop, options: RayOptions) -> Setup:
    on_gpu = any(device.startswith("cuda") for device in workshop.devices)
    gpus = options.gpus_per_worker
    if gpus and not on_gpu:
        raise UsageError(
            f"executor.gpus_per_worker is {gpus:g}, and models are evaluated on the CPU: "
            "set evaluate.device: cuda, or leave it"
        )
    if gpus is None:
        gpus = 1.0 if on_gpu else 0.0
    return Setup(
        options=options,
        device="cuda:0" if on_gpu else "cpu",
        takes={"CPU": 1.0, **({"GPU": gpus} if gpus else {}), **options.resources},
        most_per_node=None if on_gpu else len(workshop.devices),
        processes=workshop.processes,
        machine=machine(),
        versions=versions(),
        hub=workshop.hub,
    )
