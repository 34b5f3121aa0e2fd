"""Which device a user means."""

from __future__ import annotations

from kinship_daemon.errors import UsageError

__all__ = ["resolve_device"]


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
