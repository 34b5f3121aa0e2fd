"""What a Ray cluster is to be used as: the config's part, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["RayOptions", "Setup"]


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
