"""Which device a user means."""

from __future__ import annotations

import os

from kinship_daemon.errors import UsageError

__all__ = ["only_device", "resolve_device"]


def only_device(device: str | None) -> dict[str, str]:
    """What a process needs in its environment to see one CUDA device, of those that we see."""
    if device is None or not device.startswith("cuda:"):
        return {}
    number = int(device.removeprefix("cuda:"))
    ours = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    return {"CUDA_VISIBLE_DEVICES": ours[number] if ours else str(number)}


def resolve_device(name: str) -> str:
    """
    `cpu` or `cuda`; `auto` is CUDA where there is a device.

    Raises:
        UsageError: `cuda`, and there is none.
    """
    # Slow to import; commands that only read do without.
    import torch  # noqa: PLC0415

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("no CUDA device that torch can use; choose auto or cpu")
    return "cuda" if there and name != "cpu" else "cpu"
