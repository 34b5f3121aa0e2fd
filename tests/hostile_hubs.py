"""Strangers' repos put into a folder hub, and uploaded to a server by huggingface_hub's client."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars

from hostile_world import BASE, Dated, Hole, Link, Pipe, Stranger, base_folder
from hub_server import HubServer

__all__ = ["in_folder", "uploaded"]

SECRET = "a secret that lies outside of every repo"


def in_folder(root: Path, repos: Iterable[Stranger]) -> Path:
    """A folder hub below `root`; beside it lies what no repo may lead to."""
    hub, outside = root / "hub", root / "outside"
    shutil.copytree(base_folder(), hub / BASE)
    outside.mkdir()
    (outside / "secret.json").write_text(f'{{"secret": "{SECRET}"}}')
    shutil.copy(base_folder() / "model.safetensors", outside)
    for repo in repos:
        for path, entry in repo.files.items():
            place = hub / repo.repo_id / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(entry, bytes):
                place.write_bytes(entry)
            elif isinstance(entry, Link):
                place.symlink_to(entry.target.format(root=hub))
            elif isinstance(entry, Pipe):
                os.mkfifo(place)
            elif isinstance(entry, Hole):
                place.touch()
                os.truncate(place, entry.nbytes)
            elif isinstance(entry, Dated):
                place.write_bytes(entry.data)
                os.utime(place, (entry.seconds, entry.seconds))
    return hub


def uploaded(server: HubServer, repos: Iterable[Stranger]) -> list[str]:
    """
    Everyone in the names of their owners, as they would do it.

    Returns:
        Repos whose card the hub refused, as the real one does: they have a plain one.
    """
    server.add(BASE, base_folder())
    constants.HF_HUB_DISABLE_XET = True  # as ApiHub sets it
    disable_progress_bars()
    refused = []
    clients: dict[str, HfApi] = {}
    for repo in repos:
        owner = repo.repo_id.partition("/")[0]
        if owner not in clients:
            clients[owner] = HfApi(server.url, token=server.token(owner))
        api = clients[owner]
        api.create_repo(repo.repo_id)
        files = {path: data for path, data in repo.files.items() if isinstance(data, bytes)}
        try:
            _commit(api, repo.repo_id, files)
        except (HfHubHTTPError, ValueError):
            refused.append(repo.repo_id)
            plain = f"---\nbase_model: {BASE}\nlicense: mit\n---\n".encode()
            _commit(api, repo.repo_id, {**files, "README.md": plain})
    return refused


def _commit(api: HfApi, repo_id: str, files: dict[str, bytes]) -> None:
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    api.create_commit(repo_id, operations, commit_message="mine")
