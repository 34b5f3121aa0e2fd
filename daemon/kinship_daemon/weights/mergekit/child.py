"""
The process in which mergekit runs, so that it finds no network and leaves nothing behind in ours.

Reads one request from standard input as JSON, and says on standard output in one line what went
wrong; nothing, where all went well. What mergekit prints goes to standard error.
"""

import json
import os
import sys
import threading
import time
from importlib import import_module
from typing import Any

__all__ = ["main"]


def main() -> int:
    """Answer one request; 0 where mergekit did what was asked."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    request = json.load(sys.stdin)
    try:
        _serve(request["document"], request.get("out"), request.get("options", {}))
    except Exception as error:  # mergekit raises all kinds
        print(_line(error), file=answer, flush=True)
        return 1
    return 0


def _end_with(parent: int) -> None:
    """A merge that nobody waits for any more is not worth the disk."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _serve(document: dict[str, Any], out: str | None, options: dict[str, Any]) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
