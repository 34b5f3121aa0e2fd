"""The far side of the Ray executor: what runs on a node."""

from __future__ import annotations

import os
import platform
import queue
import socket
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kinship_daemon.child_process import SECRETS
from kinship_daemon.errors import Transient
from kinship_daemon.execute.executor import Done, Failed, Job, Report
from kinship_daemon.execute.leaf_sources import from_hub, from_shared_folder
from kinship_daemon.execute.node_cache import Leaf, NodeCache, machine
from kinship_daemon.execute.site import LocalSite, Workshop, outcome

__all__ = ["Place", "RayWorker", "versions"]

_PACKAGES = ("kinship-daemon", "torch", "transformers", "lm-eval", "vllm")
# So long a look for news waits for some; then it is asked again.
_LOOK_SECONDS = 1.0


def versions() -> dict[str, str]:
    """Of all that a score depends on: they must be the daemon's."""
    found = {"Python": platform.python_version().rpartition(".")[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


class Place:
    """
    What the daemon is told of a worker.

    Attributes:
        machine: As `node_cache.machine`.
        node: The host's name, for messages.
        node_id: Ray's.
        leaves: Keys of those that its cache holds.
    """

    def __init__(self, node_id: str, leaves: Sequence[str]) -> None:
        self.machine = machine()
        self.node_id = node_id
        self.node = socket.gethostname()
        self.versions = versions()
        self.leaves = tuple(leaves)


class RayWorker:
    """
    An actor: does one job at a time in a thread, and holds a warm evaluator.

    Args:
        device: `cpu` or, of those that Ray gave it, `cuda:0`.
        cache: The node's folder for leaves, and for the log; `~` is the node's.
        shared: The folder that all nodes see.
        hub: A URL, or a folder that nodes may see.
    """

    def __init__(
        self, device: str, cache: str, disk_gb: float, shared: str | None, hub: str
    ) -> None:
        for name in SECRETS:  # a cluster that the daemon has started has its environment
            os.environ.pop(name, None)
        root = Path(cache).expanduser()
        self._fault: OSError | None = None
        try:
            (root / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._fault = error
        self._site = LocalSite(Workshop(root / "logs" / f"evaluate.{os.getpid()}.log", (device,)))
        sources = [] if shared is None else [from_shared_folder(Path(shared))]
        self._cache = NodeCache(
            root / "leaves",
            disk_bytes=disk_gb * 1e9,
            sources=[*sources, from_hub(hub, root / "arriving")],
        )
        self._news: queue.Queue[Report] = queue.Queue()

    def place(self) -> Place:
        """
        Raises:
            Transient: The node's cache cannot be used.
        """
        import ray  # noqa: PLC0415 - an extra

        if self._fault is not None:
            raise Transient(
                f"node {socket.gethostname()}: {self._fault.filename}: {self._fault.strerror}; set "
                "executor.node_cache to a folder that its workers may write"
            )
        return Place(ray.get_runtime_context().get_node_id(), self._cache.keys())

    def begin(self, job: Job, leaves: Mapping[str, Leaf]) -> None:
        """
        Begin a job; the one before has ended.

        Args:
            leaves: What it reads, by weights identity.
        """
        threading.Thread(target=self._do, args=(job, leaves), daemon=True).start()

    def news(self) -> list[Report]:
        """What was told since the last look, in order; waits a while where that is nothing."""
        try:
            found = [self._news.get(timeout=_LOOK_SECONDS)]
        except queue.Empty:
            return []
        while not isinstance(found[-1], Done | Failed) and not self._news.empty():
            found.append(self._news.get())
        return found

    def _do(self, job: Job, leaves: Mapping[str, Leaf]) -> None:
        try:
            with self._cache.holding(list(leaves.values())) as held:
                folders = {weights: held[leaf.key] for weights, leaf in leaves.items()}
                with self._site.at(job, folders, self._news.put):
                    report = outcome(job, self._site)
            if report is None:
                raise RuntimeError(f"{job.key} was stopped by nobody")
        except Exception as error:  # the daemon raises it
            report = Failed(job.key, job.attempt, error)
        self._news.put(report)
