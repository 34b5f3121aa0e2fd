"""A Ray cluster: how it is joined, and who has room there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinship_daemon.errors import Transient, UsageError

__all__ = ["Node", "connect", "living_nodes", "shown"]

# So long a cluster's address may take to answer.
_REACH_SECONDS = 10.0
# Nothing large goes through Ray.
_OBJECT_STORE_BYTES = 100 * 1024 * 1024
# How Ray names what kind of GPU a node has.
_KIND = "accelerator_type:"


def connect(address: str) -> Any:
    """
    Ray, connected to the cluster; a cluster of its own for `local`.

    Raises:
        UsageError: It has another Ray or Python.
        Transient: There is none.
    """
    # Nobody was asked whether it may be told what runs here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415 - an extra

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        _reach(address)
        ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        if "ersion" in words and ("ismatch" in words or "differ" in words):
            raise UsageError(f"the Ray cluster {address} has other versions: {words}") from None
        raise Transient(
            f"executor.address {address}: no Ray cluster answers there "
            f"({words[:200]}); start one with `ray start --head`, or set executor.address: local"
        ) from None
    return ray


def _reach(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()


@dataclass(frozen=True)
class Node:
    """
    A machine of the cluster.

    Attributes:
        name: The host's, and the beginning of Ray's id.
        workers: How many have room there.
        device: What they evaluate on, for people: `A10G`, `CPU`.
    """

    name: str
    workers: int
    device: str


def living_nodes(
    nodes: Sequence[Mapping[str, Any]], takes: Mapping[str, float], most: int | None
) -> tuple[Node, ...]:
    """
    By name.

    Args:
        nodes: As `ray.nodes()`.
        takes: What a worker takes of a node.
        most: Workers of a node, however much room it has.
    """
    found = []
    for node in nodes:
        there = node["Resources"]
        room = min(int(there.get(name, 0.0) / amount + 1e-9) for name, amount in takes.items())
        if node["Alive"]:
            name = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
            kinds = (name.removeprefix(_KIND) for name in there if name.startswith(_KIND))
            device = next(kinds, "GPU") if "GPU" in takes else "CPU"
            found.append(Node(name, room if most is None else min(room, most), device))
    return tuple(sorted(found, key=lambda node: node.name))


def shown(takes: Mapping[str, float]) -> str:
    """`1 CPU, 0.5 GPU, 1 GB of memory`."""
    words = (
        f"{amount / 1e9:g} GB of memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in takes.items()
        if amount
    )
    return ", ".join(words)
