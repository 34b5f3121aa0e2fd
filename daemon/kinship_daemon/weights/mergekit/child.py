"""
The process in which mergekit runs, so that it finds no network and leaves nothing behind in ours.

Gets one request, and says in one line what went wrong; None, where all went well. What mergekit
prints goes to standard error.
"""

import os
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kinship_daemon.child_process import settle

__all__ = ["serve"]


def serve(pipe: Connection, request: dict[str, Any], where: Path) -> None:
    """The child's life: one request, in the folder `where`."""
    settle()
    os.chdir(where)
    said: str | None = None
    try:
        _merge(request["document"], request.get("out"), request.get("options", {}))
    except Exception as error:  # mergekit raises all kinds
        said = _line(error)
    pipe.send(said)


def _merge(document: dict[str, Any], out: str | None, options: dict[str, Any]) -> None:
    """Check the document; where there is somewhere to write to, merge."""
    # Not typed, and slow to import.
    config = import_module("mergekit.config").MergeConfiguration.model_validate(document)
    known = sorted(
        m.spec.name for m in import_module("mergekit.merge_methods.registry").registered_methods()
    )
    if config.merge_method not in known:
        raise ValueError(f"no merge method {config.merge_method!r}; it has {', '.join(known)}")
    if out is None:
        return
    merge = import_module("mergekit.merge")
    settings = merge.MergeOptions(
        trust_remote_code=False,
        write_model_card=False,
        clone_tensors=True,  # a layer may be in a stack twice
        random_seed=0,
        **options,
    )
    settings.apply_global_options()
    merge.run_merge(config, out, settings)


def _line(error: Exception) -> str:
    """The message alone; what pydantic says spans several lines and ends in a link."""
    found = getattr(error, "errors", None)
    if callable(found):
        details = found(include_url=False)
        return "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in details)[:500]
    return (" ".join(str(error).split()) or type(error).__name__)[:500]
