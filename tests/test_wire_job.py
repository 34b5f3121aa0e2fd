"""The main job over HTTP: the real command in a process of its own, the demo's models on a Hub."""

import hashlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import demo_hub
import warm_workers
from hub_server import HubServer
from kinship_daemon import demo

pytestmark = pytest.mark.slow

RUN = ["run", "--base", demo.BASE, "--until-converged", "--log-json"]
READ_BY_TRANSFORMERS = """
import json, sys
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer
repo = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(repo)
tokens = AutoTokenizer.from_pretrained(repo)(sys.argv[2], return_tensors="pt")["input_ids"]
text = model.generate(tokens, max_new_tokens=1, do_sample=False).tolist()[0]
weights = hf_hub_download(repo, "model.safetensors")
print(json.dumps({"dtype": str(model.dtype), "tokens": len(text), "weights": weights}))
"""


@pytest.fixture(scope="module")
def server():
    with HubServer() as running:
        demo_hub.stock(running)
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("wire-job")


@pytest.fixture(scope="module")
def config(place, server):
    return demo_hub.settings(place / "config.yaml", server)


@pytest.fixture(scope="module")
def first(place, server, config):
    """The run, and what the server was asked in it."""
    result = demo_hub.run([*RUN, "--hub", server.url, "--config", config], place, server)
    assert result.code == 0, result.err
    return result, list(server.log)


def again(arguments, place, server):
    """As the first run, without its imports."""
    return warm_workers.run(arguments, place, environment=demo_hub.environment(place, server))


@pytest.fixture(scope="module")
def home(place):
    return place / ".local" / "state" / "kinship-daemon" / "demo--base"


@pytest.fixture(scope="module")
def published(first):
    """Repo ids by model."""
    events = [event for event in first[0].events if event["event"] == "publish"]
    assert events
    return {event["model"]: event["url"].split("/", 3)[3] for event in events}


def asked(log, method, path, server="hub"):
    return [
        request
        for request in log
        if (request.server, request.method) == (server, method) and re.fullmatch(path, request.path)
    ]


def weights_of(server, repo_id):
    """The path of a repo's weights on the storage server."""
    return f"/lfs/{server.repos[repo_id].facts.blobs['model.safetensors'].sha256}"


def test_every_stage_goes_over_the_wire(first, server, published):
    log = first[1]
    assert asked(log, "GET", "/api/whoami-v2")
    listings = asked(log, "GET", "/api/models")
    assert {"base_model:demo/base"} <= {tag for q in listings for tag in q.query["filter"]}
    leaves = sorted(path.name for path in (demo.HUB / "demo").iterdir() if path.name != "base")
    for leaf in leaves:
        pinned = f"/demo/{leaf}/resolve/{server.repos[f'demo/{leaf}'].head[0]}/.*"
        assert asked(log, "GET", f"/api/models/demo/{leaf}/revision/[0-9a-f]{{40}}")
        stored = asked(log, "GET", weights_of(server, f"demo/{leaf}"), "storage")
        in_ranges = ["range" in request.headers for request in stored]
        # The sample by ranges, then the whole.
        assert in_ranges == sorted(in_ranges, reverse=True)
        assert in_ranges.count(False) == 1
        assert in_ranges.count(True) >= 2
        files = asked(log, "GET", f"/demo/{leaf}/.*")
        assert files == asked(log, "GET", pinned)
        assert {request.path.rpartition("/")[2] for request in files} >= {
            *("config.json", "generation_config.json", "model.safetensors"),
            *("tokenizer.json", "tokenizer_config.json"),
        }
    for repo in published.values():
        assert len(asked(log, "POST", f"/api/models/{repo}/preupload/main")) > 0
        assert len(asked(log, "POST", f"/{repo}.git/info/lfs/objects/batch")) == 1
        assert asked(log, "PUT", weights_of(server, repo).replace("lfs", "upload"), "storage")
        assert len(asked(log, "POST", f"/api/models/{repo}/commit/main")) == 1
    assert len(asked(log, "POST", "/api/repos/create")) == len(published)
    assert all(request.status < 400 or request.status == 404 for request in log)


def test_a_publication_is_one_commit_on_top_of_the_empty_repo_and_private(first, server, published):
    for model, repo_id in published.items():
        repo = server.repos[repo_id]
        assert repo.private
        assert len(repo.commits) == 2  # that of its creation, and ours
        (sent,) = asked(first[1], "POST", f"/api/models/{repo_id}/commit/main")
        lines = [json.loads(line) for line in sent.body.splitlines()]
        assert lines[0]["key"] == "header"
        assert lines[0]["value"]["parentCommit"] == repo.commits[0][0]
        assert model in lines[0]["value"]["summary"]
        paths = {line["value"]["path"] for line in lines[1:]}
        assert paths == set(repo.head[1]) - {".gitattributes"}
        assert {"README.md", "config.json", "mergekit_config.yml", "model.safetensors"} <= paths


def test_the_lineage_has_the_commit_and_every_hash_of_what_the_hub_holds(
    published, server, home, first
):
    database = sqlite3.connect(f"file:{home / 'lineage.db'}?mode=ro", uri=True)
    rows = database.execute(
        "SELECT id, p.repo, p.revision, files FROM publications AS p JOIN models ON number = model"
    ).fetchall()
    assert {model: repo for model, repo, *_ in rows} == published
    for _, repo_id, revision, files in rows:
        sha, content = server.repos[repo_id].head
        assert revision == sha
        theirs = {
            path: hashlib.sha256(data if isinstance(data, bytes) else data.read_bytes()).hexdigest()
            for path, data in content.items()
            if path != ".gitattributes"
        }
        assert json.loads(files) == theirs


def test_only_what_passed_the_gate_is_published(first, published):
    verdicts = {e["model"]: e["message"] for e in first[0].events if e["event"] == "gate"}
    assert set(published) == {m for m, text in verdicts.items() if text.startswith(f"{m} passed")}
    assert set(published) < set(verdicts)


@pytest.fixture(scope="module")
def loaded(published, place, server):
    """What transformers makes of a published repo by way of the real client."""
    repo = next(iter(published.values()))
    done = subprocess.run(
        [sys.executable, "-c", READ_BY_TRANSFORMERS, repo, "add"],
        env=demo_hub.environment(place, server),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return repo, json.loads(done.stdout)


def test_the_published_repo_loads_through_the_real_client(loaded, server):
    repo, said = loaded
    assert said["dtype"] == "torch.bfloat16"
    assert said["tokens"] == len("add") + 1
    assert hashlib.sha256(Path(said["weights"]).read_bytes()).hexdigest() in weights_of(
        server, repo
    )


def test_the_published_repo_scores_exactly_what_its_card_says(published, place, server, config):
    repo = next(iter(published.values()))
    evaluate = ["evaluate", repo, "--config", config, "--split", "validation", "--format", "json"]
    result = again(evaluate, place, server)
    assert result.code == 0, result.err
    measured = {row["task"]: row["score"] for row in json.loads(result.out)["tasks"]}
    card = yaml.safe_load(server.repos[repo].head[1]["README.md"].decode().split("---")[1])
    declared = {
        entry["dataset"]["name"]: entry["metrics"][0]["value"]
        for entry in card["model-index"][0]["results"]
        if entry["dataset"]["split"] == "validation"
    }
    assert declared == pytest.approx(measured, abs=1e-6)
    assert set(declared) == set(demo.VALIDATION)


def test_a_second_run_asks_once_and_publishes_nothing(first, published, place, server, config):
    heads = {name: repo.head[0] for name, repo in server.repos.items()}
    before = len(server.log)
    result = again([*RUN, "--hub", server.url, "--config", config], place, server)
    assert result.code == 0, result.err
    assert not {"publish", "merge", "score", "admit"} & {e["event"] for e in result.events}
    assert {name: repo.head[0] for name, repo in server.repos.items()} == heads
    paths = [(request.method, request.path) for request in server.log[before:]]
    # Whose token it is, and one page.
    assert paths == [("GET", "/api/whoami-v2"), ("GET", "/api/models")]


def test_kinship_is_estimated_against_the_server_without_a_download(place, server):
    before = len(server.log)
    names = ["demo/add", "demo/max"]
    arguments = ["--base", demo.BASE, "--hub", server.url, "--sample", "0.01", "--format", "json"]
    result = demo_hub.run(["kinship", *names, *arguments], place, server)
    assert result.code == 0, result.err
    estimated = json.loads(result.out)
    exact = demo_hub.run(["kinship", *names, "--base", "demo", "--format", "json"], place, server)
    truth = json.loads(exact.out)["matrix"][0][1]
    # So small a model is read whole, in another order of summation.
    assert estimated["matrix"][0][1] == pytest.approx(truth, abs=1e-6)
    log = server.log[before:]
    files = [request for request in log if "/api/" not in request.path]
    assert files
    assert all("range" in request.headers for request in files)
    read = sum(map(demo_hub.bytes_sent, files))
    assert estimated["bytes_read"] == pytest.approx(read, abs=len(log))
    assert not list((place / ".cache").rglob("demo--*/*/model.safetensors"))


def test_the_token_goes_to_the_hub_alone(first, loaded, server, home):
    assert server.leaks() == []
    token = demo_hub.TOKEN.encode()
    written = [path for path in home.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if token in path.read_bytes()]
    assert token.decode() not in first[0].out + first[0].err
    for repo in server.repos.values():
        assert not [name for name, data in repo.head[1].items() if token in demo_hub.content(data)]


def test_a_token_that_may_only_read_is_refused_before_anything_is_done(tmp_path, server, config):
    reading = server.token("tester", "read")
    before = len(server.log)
    result = demo_hub.run([*RUN, "--config", config], tmp_path, server, reading)
    assert result.code == 2
    assert "may only read" in result.err
    assert result.err.count("\n") == 1
    assert {request.path for request in server.log[before:]} == {"/api/whoami-v2"}


def test_a_namespace_of_others_is_refused_before_anything_is_done(tmp_path, server, config):
    stranger = server.token("stranger")
    result = demo_hub.run([*RUN, "--config", config], tmp_path, server, stranger)
    assert result.code == 2
    assert "neither stranger nor an organisation of theirs" in result.err
    assert result.err.count("\n") == 1


def test_without_a_token_a_run_that_is_to_publish_does_not_start(tmp_path, server, config):
    before = len(server.log)
    result = demo_hub.run([*RUN, "--config", config], tmp_path, server, token=None)
    assert result.code == 2
    assert "HF_TOKEN" in result.err
    assert len(server.log) == before


def await_true(what, holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("repo_id", "skipped", "flags", "code"),
    [
        # Before anything else is there.
        ("demo/base", 0, ["--until-converged"], 130),
        # After the ranges of its sample; at work in the scheduler's thread. As a service is ended.
        ("demo/add", 3, [], 0),
    ],
)
def test_a_stop_does_not_wait_for_a_stalled_download_which_goes_on_at_the_next_start(
    repo_id, skipped, flags, code, tmp_path
):
    with HubServer() as server:
        demo_hub.stock(server)
        server.stall_seconds = 120
        config = demo_hub.settings(tmp_path / "config.yaml", server)
        run = ["run", *flags, "--log-json", "--config", config]
        path = weights_of(server, repo_id)
        fault = server.fault(path, "stall-body", skip=skipped, server="storage")
        revision = server.repos[repo_id].head[0]
        home = tmp_path / ".local" / "state" / "kinship-daemon" / "demo--base"
        cache = home / "cache" / repo_id.replace("/", "--")
        part = cache / f".{revision}.part" / ".model.safetensors.part"
        process = demo_hub.start(run, tmp_path, server)
        try:
            await_true("the stalled download", lambda: fault.done and part.is_file())
            assert "range" not in server.asked("GET", path, "storage")[-1].headers
            time.sleep(0.5)  # it hangs
            process.send_signal(signal.SIGTERM)
            asked_at = time.monotonic()
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert time.monotonic() - asked_at < 5
        assert process.returncode == code, err
        size = part.stat().st_size
        assert 0 < size < server.repos[repo_id].facts.blobs["model.safetensors"].size
        before = len(server.asked("GET", path, "storage"))
        process = demo_hub.start(run, tmp_path, server)
        try:
            await_true("the whole model", (cache / revision).is_dir)
        finally:
            process.kill()
            process.communicate(timeout=30)
        again = server.asked("GET", path, "storage")[before:]
        assert [request.headers["range"] for request in again] == [f"bytes={size}-"]
        assert server.leaks() == []


@dataclass
class Contested:
    """Two runs whose first three publications each meet something else, by model."""

    server: HubServer
    results: list
    taken: str
    lost: str
    raced: str


@pytest.fixture(scope="module")
def contested(tmp_path_factory, published):
    place = tmp_path_factory.mktemp("contested")
    taken, lost, raced = list(published)[:3]  # as there, so here
    with HubServer() as server:
        demo_hub.stock(server)
        config = demo_hub.settings(place / "config.yaml", server, publish={"name": "{model}"})
        theirs = {"README.md": b"# somebody's own\n", "model.safetensors": b"theirs"}
        server.add(f"tester/{taken}", theirs)
        commit = f"/api/models/tester/{lost}/commit/main"
        server.fault(commit, "status", method="POST", status=412)
        server.fault(commit, "lost", method="POST", status=500)

        def intrude(answer):
            """Somebody commits while the large files are sent."""
            server.commit(f"tester/{raced}", {"README.md": b"# I was here first\n"})
            return answer

        upload = rf"/tester/{raced}\.git/info/lfs/objects/batch"
        server.fault(upload, "edit", method="POST", edit=intrude)
        run = [*RUN, "--config", config]
        results = [again(run, place, server), again(run, place, server)]
        yield Contested(server, results, taken, lost, raced)


def said(result, kind, model):
    return [e["message"] for e in result.events if (e["event"], e.get("model")) == (kind, model)]


def test_a_name_that_is_taken_is_said_and_left_alone_and_the_daemon_goes_on(contested):
    server, (first, second), name = contested.server, contested.results, contested.taken
    repo = server.repos[f"tester/{name}"]
    assert len(repo.commits) == 1
    assert repo.head[1]["model.safetensors"] == b"theirs"
    assert not server.asked("POST", f"/api/models/tester/{name}/(preupload|commit)/.*")
    (message,) = said(first, "unpublished", name)
    assert "exists with other content" in message
    assert "publish.name" in message
    assert said(second, "unpublished", name) == []  # once is enough
    assert said(first, "publish", contested.lost)


def test_a_refused_parent_and_a_commit_whose_answer_was_lost_make_one_commit(contested):
    server, (first, second), name = contested.server, contested.results, contested.lost
    commits = server.asked("POST", f"/api/models/tester/{name}/commit/main")
    assert [request.status for request in commits] == [412, 500]
    assert len(server.repos[f"tester/{name}"].commits) == 2
    assert len(said(first, "publish", name)) == 1
    assert said(second, "publish", name) == []


def test_somebody_elses_commit_in_between_is_never_overwritten(contested):
    server, (first, second), name = contested.server, contested.results, contested.raced
    # Three if it converged before the next try, which finds somebody else's content.
    assert first.code in {0, 3}, first.err
    assert second.code == 0, second.err
    assert any("someone else committed in between" in e["message"] for e in first.events)
    # Said once, by whichever of the two runs tried again.
    told = said(first, "unpublished", name) + said(second, "unpublished", name)
    assert any("exists with other content" in text for text in told)
    repo = server.repos[f"tester/{name}"]
    assert [set(content) for _, content in repo.commits] == [{".gitattributes"}, {"README.md"}]
    commits = server.asked("POST", f"/api/models/tester/{name}/commit/main")
    assert [request.status for request in commits] == [412]
