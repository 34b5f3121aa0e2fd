"""
A second real client, npm's @huggingface/hub, against the Hub server of the tests.

The server was written to what huggingface_hub does; this client reads the same protocol through
other eyes. One session (tests/npm/session.mjs) does everything; both ends are looked at.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from hub_server import TOKEN, HubServer

FOLDER = Path(__file__).parent / "npm"
INSTALLED = Path(os.environ.get("KINSHIP_NPM", FOLDER))
WEIGHTS = save({"layer": torch.arange(1000, dtype=torch.float32)})
MADE = bytes(i % 251 for i in range(3_000_000))  # as session.mjs makes it


@pytest.fixture(scope="module")
def session():
    """The server after the session, and what the client saw."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node (apt-get install nodejs npm)")
    if not (INSTALLED / "node_modules" / "@huggingface" / "hub").is_dir():
        pytest.skip(f"needs @huggingface/hub: npm ci in {FOLDER}, or its folder in KINSHIP_NPM")
    with HubServer(page=2) as server:
        for i in range(5):
            files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/notes.txt": b"x"}
            card = {"base_model": "org/base", "base_model_relation": "finetune"}
            server.add(f"org/tuned-{i}", files, card)
        server.add("org/gated", {"config.json": b"{}"}, gated="manual")
        done = subprocess.run(
            [node, FOLDER / "session.mjs", server.url, TOKEN],
            env=os.environ | {"HUB_CLIENT": str(INSTALLED)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield server, json.loads(done.stdout)


def test_it_lists_every_page_newest_first(session):
    server, seen = session
    assert [line["name"] for line in seen["listed"]] == [f"org/tuned-{i}" for i in (4, 3, 2, 1, 0)]
    first = seen["listed"][0]
    assert first["sha"] == server.repos["org/tuned-4"].head[0]
    assert "base_model:finetune:org/base" in first["tags"]
    assert "model.safetensors" in first["filePaths"]
    assert seen["found"] == ["org/tuned-1"]
    assert seen["who"] == "tester"


def test_it_reads_a_models_page_and_tree(session):
    server, seen = session
    head = server.repos["org/tuned-1"].head[0]
    assert seen["info"]["sha"] == seen["pinned"] == head
    assert seen["info"]["cardData"]["base_model"] == "org/base"
    assert seen["commits"] == [head]
    assert {entry["path"]: entry["type"] for entry in seen["files"]} == {
        ".gitattributes": "file",
        "README.md": "file",
        "config.json": "file",
        "model.safetensors": "file",
        "sub": "directory",
        "sub/notes.txt": "file",
    }
    assert [entry["path"] for entry in seen["paths"]] == ["model.safetensors"]
    assert seen["exists"] == [True, False]


def test_it_reads_whole_files_ranges_headers_and_pointers(session):
    _, seen = session
    assert seen["size"] == len(WEIGHTS)
    assert bytes(seen["range"]) == WEIGHTS[100:164]
    assert seen["header"]["layer"]["shape"] == [1000]
    assert seen["small"] == "{}"
    assert seen["pointer"].startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
    assert seen["missing"] is None


def test_it_understands_refusals(session):
    _, seen = session
    status = {key: seen[key]["status"] for key in ("gated", "unknown", "again", "stale")}
    assert status == {"gated": 403, "unknown": 404, "again": 409, "stale": 412}
    assert "restricted" in seen["gated"]["message"]


def test_what_it_uploaded_committed_and_deleted_is_there(session):
    server, seen = session
    repo = server.repos["tester/made-by-npm"]
    assert repo.private
    shas = [sha for sha, _ in repo.commits]
    assert shas[1:] == [seen["uploaded"], seen["committed"], seen["deleted"]]
    uploaded = repo.at(seen["uploaded"])[1]
    assert uploaded["model.safetensors"] == MADE
    assert uploaded["notes/a.txt"] == b"alpha"
    assert repo.details[seen["uploaded"]].title == "by npm"
    assert (
        sorted(repo.head[1]) == seen["left"] == [".gitattributes", "README.md", "model.safetensors"]
    )
    assert seen["gone"] is False
    assert "tester/short-lived" not in server.repos


def test_its_token_stays_with_the_hub(session):
    server, _ = session
    assert server.asked("GET", "/lfs/.*", "storage")
    assert server.asked("PUT", "/upload/.*", "storage")
    assert server.leaks() == []
