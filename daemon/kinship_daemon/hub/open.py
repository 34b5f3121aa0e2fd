"""Open a hub from what the user names: a URL or a folder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from kinship_daemon import extensions
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import UsageError
from kinship_daemon.hub.calls import AT_ONCE
from kinship_daemon.hub.folder import FolderHub
from kinship_daemon.hub.names import user_path
from kinship_daemon.hub.records import Hub

__all__ = ["GROUP", "open_hub"]

# Factories of hubs by URL scheme.
GROUP = "kinship_daemon.hubs"


def open_hub(
    where: str,
    *,
    token: str | None = None,
    sha256: Callable[[Path], str] = hash_file,
    stop: threading.Event | None = None,
    connections: int = AT_ONCE,
) -> Hub:
    """
    A hub by URL or folder.

    Args:
        token: For a URL. By default the machine's own (HF_TOKEN, `hf auth login`), if it is for
            that server.
        sha256: Of a file, hex; a folder hub hashes its repos at every look, so give one that
            remembers.
        stop: Ends every call over the network with Stopped.
        connections: To a URL at a time, at most.

    Raises:
        UsageError: neither a URL of a known kind nor an existing folder.
    """
    scheme, separator, _ = where.partition("://")
    if separator:
        # A kind of hub is imported when it is asked for: huggingface_hub takes a second.
        make = extensions.find(GROUP, "kind of hub", scheme)
        hub: Hub = make(where, token=token, sha256=sha256, stop=stop, connections=connections)
        return hub
    folder = user_path(where)
    if not folder.is_dir():
        raise UsageError(
            f"no hub at {where}; expected a URL such as https://huggingface.co, "
            "or a folder of repos org/name/"
        )
    return FolderHub(folder, sha256=sha256)
