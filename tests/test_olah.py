"""
PyPI's olah, a caching mirror of the Hub, between the real client and the Hub server of the tests.

Somebody else's reading of the protocol stands in front of the server: it probes with HEAD, pins
revisions, fetches in blocks and answers ranges out of its own cache. Its pins are not ours, so it
lives in a virtual environment of its own, whose python KINSHIP_OLAH names.
"""

import http.client
import os
import socket
import subprocess
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save

from hub_server import TOKEN, HubServer

WEIGHTS = save({"layer": torch.arange(300_000, dtype=torch.float32)})
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/notes.txt": b"x"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(server: HubServer, port: int, scratch: Path) -> subprocess.Popen:
    python = os.environ.get("KINSHIP_OLAH")
    if not python or not Path(python).is_file():
        pytest.skip(
            "needs olah: python -m venv V; V/bin/pip install olah; KINSHIP_OLAH=V/bin/python"
        )
    here, hub = f"127.0.0.1:{port}", server.url.removeprefix("http://")
    storage = server.storage_url.removeprefix("http://")
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--hf-scheme": "http",
        "--hf-netloc": hub,
        "--hf-lfs-netloc": storage,
        "--mirror-netloc": here,
        "--mirror-lfs-netloc": here,
        "--repos-path": str(scratch / "repos"),
        "--log-path": str(scratch / "logs"),
    }
    words = [word for pair in options.items() for word in pair]
    with (scratch / "said").open("w") as said:
        return subprocess.Popen(
            [python, "-m", "olah.server", *words], cwd=scratch, stdout=said, stderr=said
        )


def await_answer(process: subprocess.Popen, port: int, scratch: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, (scratch / "said").read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError((scratch / "said").read_text())


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """The server, and the port of the mirror in front of it."""
    scratch = tmp_path_factory.mktemp("olah")
    with HubServer() as server:
        server.add("org/tuned", FILES, {"base_model": "org/base", "license": "mit"})
        port = free_port()
        process = started(server, port, scratch)
        try:
            await_answer(process, port, scratch)
            yield server, port
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def api(mirrored, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return huggingface_hub.HfApi(f"http://127.0.0.1:{mirrored[1]}", token=TOKEN)


def test_a_repo_is_read_through_the_mirror(mirrored, api, tmp_path):
    server, _ = mirrored
    place = Path(api.snapshot_download("org/tuned", local_dir=tmp_path))
    assert {name: (place / name).read_bytes() for name in FILES} == FILES
    assert server.asked("GET", "/lfs/.*", "storage")


def test_the_mirror_says_of_a_repo_what_the_server_says(mirrored, api):
    server, _ = mirrored
    direct = huggingface_hub.HfApi(server.url, token=TOKEN)
    for ask in (
        lambda api: api.model_info("org/tuned").sha,
        lambda api: api.model_info("org/tuned").card_data.to_dict(),
        lambda api: list(api.list_repo_tree("org/tuned", recursive=True)),
        lambda api: api.list_repo_refs("org/tuned"),
        lambda api: api.list_repo_commits("org/tuned"),
        lambda api: api.get_paths_info("org/tuned", ["config.json", "model.safetensors"]),
    ):
        assert ask(api) == ask(direct)


def test_a_range_through_the_mirror_is_that_range(mirrored, api):
    server, port = mirrored
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    sha = server.repos["org/tuned"].head[0]
    headers = {"Range": "bytes=100-163", "Accept-Encoding": "identity"}
    connection.request("GET", f"/org/tuned/resolve/{sha}/model.safetensors", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (206, WEIGHTS[100:164])
    assert answer.getheader("Content-Range") == f"bytes 100-163/{len(WEIGHTS)}"


def test_what_is_not_there_is_not_there_through_the_mirror_either(api, tmp_path):
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("org/tuned", "none.json", local_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/none")
