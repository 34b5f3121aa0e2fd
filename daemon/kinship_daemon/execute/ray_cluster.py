"""A Ray cluster: how it is joined, and who has room there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from kinship_daemon.errors import Transient, UsageError

__all__ = ["connect", "nodes_by_room", "shown"]

# So long a cluster's address may take to answer.
_REACH_SECONDS = 10.0
# Nothing large goes through Ray.
_OBJECT_STORE_BYTES = 100 * 1024 * 1024


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


def nodes_by_room(
    nodes: Sequence[Mapping[str, Any]], takes: Mapping[str, float], most: int | None
) -> dict[str, int]:
    """How many workers that take so much each node has room for; of those that have any."""
    found = {}
    for node in nodes:
        there = node["Resources"]
        room = min(int(there.get(name, 0.0) / amount + 1e-9) for name, amount in takes.items())
        room = room if most is None else min(room, most)
        if node["Alive"] and room:
            found[f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"] = room
    return dict(sorted(found.items()))


def shown(takes: Mapping[str, float]) -> str:
    """`1 CPU, 0.5 GPU`."""
    return ", ".join(f"{amount:g} {name}" for name, amount in takes.items() if amount)
