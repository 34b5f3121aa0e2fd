"""
A hub on which most repos are hostile: the good ones are admitted, and nothing else happens.

Here is one of each kind. `python -m tests.hostile_run` runs the real command over 200 good and 300
hostile ones, in a folder and over HTTP, and measures its memory.
"""

import json
from collections.abc import Collection
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest

import hub_daemon
import turns
from hostile_hubs import SECRET, in_folder, uploaded
from hostile_world import BASE, HARMLESS, KINDS, Link, Pipe, Stranger, base_folder, hostile_repos
from hub_server import HubServer
from kinship_daemon import config, startup
from kinship_daemon.bugs import bugs_noted
from kinship_daemon.hub.folder import FolderHub
from kinship_daemon.report import JsonReporter

GOOD = 4
OWNED = Path("/tmp/owned")  # what a pickle or code of theirs would leave


@pytest.fixture(autouse=True)
def _online():
    with hub_daemon.online():
        yield


@contextmanager
def opened(hub: object, home: Path):
    log = StringIO()
    settings = ["evaluate.device=cpu", "kinship.device=cpu", "limits.candidates_per_day=1000000"]
    chosen = config.load(base=BASE, hub=str(hub), home=home, overrides=settings)
    with startup.opened(chosen, JsonReporter(log), now=hub_daemon.Clock(hub_daemon.NOON)) as d:
        yield d, log


def check(d, log, repos, plain: Collection[str] = ()):
    """Everyone got their due, and every line may be shown anywhere."""
    found = {model.repo: model for model in d.lineage.models(kind="finetune")}
    for repo in repos:
        model = found.get(repo.repo_id)
        if repo.kind == "good":
            assert model.status == "admitted", (repo.repo_id, model.reason)
        elif repo.kind not in HARMLESS and repo.repo_id not in plain:
            assert model is None or model.status != "admitted", repo.repo_id
    assert bugs_noted(d.home.bug_log) == 0, d.home.bug_log.read_text()
    lines = log.getvalue().splitlines()
    assert len(lines) > len(repos)
    for line in lines:
        assert len(line) < 2000, line
        assert json.loads(line)["message"].isprintable(), line
        assert SECRET not in line
    assert not OWNED.exists()


def test_in_a_folder_nobody_is_cheated_or_kept_waiting(tmp_path):
    repos = list(hostile_repos(GOOD, len(KINDS), folder=True))
    assert {repo.kind for repo in repos} == {"good", *KINDS}
    hub = in_folder(tmp_path, repos)
    with opened(hub, tmp_path / "home") as (d, log):
        turns.poll(d)
        check(d, log, repos)


def test_over_http_nobody_is_cheated(tmp_path):
    repos = list(hostile_repos(GOOD, len(KINDS), folder=False, seed=1))
    with HubServer() as server:
        plain = uploaded(server, repos)
        with opened(server.url, tmp_path / "home") as (d, log):
            turns.poll(d)
            check(d, log, repos, plain)
        assert server.leaks() == []


CARD = f"---\nbase_model: {BASE}\nlicense: mit\n---\n".encode()
NAMES = ("model.safetensors", "config.json", "tokenizer.json", "README.md", "notes.txt")
AWAY = ("{root}/../outside/secret.json", "/etc/passwd", "/proc/self/environ", "/dev/zero")


@pytest.mark.parametrize("name", NAMES)
def test_what_leads_out_of_a_folder_hub_does_not_exist_for_it(tmp_path, name):
    """Links out of it, links to themselves, pipes: nothing of them is listed, read or kept."""
    whole = {path.name: path.read_bytes() for path in base_folder().iterdir()}
    entries = [*map(Link, AWAY), Link(name), Link("{root}/../outside"), Pipe()]
    repos = [
        Stranger(f"org/m{number}", "bad", {**whole, "README.md": CARD, name: entry})
        for number, entry in enumerate(entries)
    ]
    # A folder of another's, too, and a repo that lies elsewhere.
    repos.append(Stranger("org/sub", "bad", {**whole, "README.md": CARD, "d": Link(AWAY[0][:18])}))
    root = in_folder(tmp_path, repos)
    (root / "org" / "whole").symlink_to(tmp_path / "outside")
    (root / "away").symlink_to(tmp_path)
    hub = FolderHub(root)
    assert {line.id for line in hub.descendants(BASE)} <= {repo.repo_id for repo in repos}
    for repo in repos:
        seen = hub.repo(repo.repo_id)
        assert {file.path for file in seen.files} == {*whole} - (
            {name} if repo is not repos[-1] else set()
        )
        assert seen.problem is None
        assert SECRET not in str(seen)
        hub.publish(f"copies/{repo.repo_id[4:]}", root / repo.repo_id, "a copy", private=False)
    copies = [path for path in (root / "copies").rglob("*") if path.is_file()]
    assert copies
    assert not [path for path in copies if path.is_symlink()]
    assert not [path for path in copies if SECRET.encode() in path.read_bytes()]
