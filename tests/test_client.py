"""The real huggingface_hub client against a real server on 127.0.0.1."""

import gzip
import hashlib
import logging
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save, save_file

import hub_server
from hub_server import TOKEN
from kinship_daemon.errors import KinshipError, ModelError, Transient, Unavailable, UsageError
from kinship_daemon.hub import calls, download, wire
from kinship_daemon.hub.client import ApiHub, machine_token, token_advice
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import Repo, RepoFile, UnknownRepo
from kinship_storage.rows import stamp

BASE = "org/base"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The other tests run with HF_HUB_OFFLINE; this server is at home."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Tries follow each other sooner than in the world."""
    monkeypatch.setattr(calls, "_BACKOFF_SECONDS", (0.02, 0.05))
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.02)


@pytest.fixture
def hub(server):
    return ApiHub(server.url, token=TOKEN, timeout_seconds=5)


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {f"layer.{i}": torch.randn(64, 64, generator=noise) for i in range(8)}


def model(seed: int = 0) -> dict[str, bytes]:
    return {
        "config.json": b'{"architectures": ["MistralForCausalLM"]}',
        "tokenizer.json": b'{"version": "1.0"}',
        "model.safetensors": save(tensors(seed)),
        "pytorch_model.bin": b"a pickle",
        "notes/thoughts.txt": b"not for us",
    }


def sharded() -> dict[str, bytes]:
    weights = tensors()
    names = sorted(weights)
    shards = {
        f"model-0000{i + 1}-of-00002.safetensors": {n: weights[n] for n in names[4 * i : 4 * i + 4]}
        for i in range(2)
    }
    where = {name: shard for shard, part in shards.items() for name in part}
    files = {shard: save(part) for shard, part in shards.items()}
    files["model.safetensors.index.json"] = f'{{"weight_map": {where}}}'.replace("'", '"').encode()
    return files | {
        "config.json": b"{}",
        "tokenizer.model": b"pieces",
        "consolidated.safetensors": b"the same weights once more",
    }


def folder(tmp_path: Path, text: str = "hello") -> Path:
    place = tmp_path / "merge"
    place.mkdir(exist_ok=True)
    save_file(tensors(7), place / "model.safetensors")
    save_file(tensors(8), place / "more.safetensors")
    (place / "config.json").write_text("{}")
    (place / "empty.txt").write_text("")
    (place / "README.md").write_text(f"---\nlicense: mit\ntags: [merge]\n---\n{text}\n")
    return place


def test_descendants_of_every_relation_are_listed_oldest_change_first(server, hub):
    server.page = 2
    server.add("org/tuned", {}, {"base_model": BASE, "base_model_relation": "finetune"})
    server.add("org/adapter", {}, {"base_model": [BASE], "base_model_relation": "adapter"})
    server.add("org/plain", {}, {"base_model": BASE})
    server.add("org/small", {}, {"base_model": BASE, "base_model_relation": "quantized"})
    server.add("org/other", {}, {"base_model": "org/another", "base_model_relation": "finetune"})
    newest = server.add("org/tuned", {"x": b"y"}, {"base_model": BASE})

    found = list(hub.descendants(BASE))

    assert [line.id for line in found] == ["org/adapter", "org/plain", "org/small", "org/tuned"]
    assert found[-1].revision == newest
    assert found[-1].modified.utcoffset().total_seconds() == 0
    assert f"base_model:quantized:{BASE}" in found[2].tags
    filters = [request.query["filter"][0] for request in server.asked("GET", "/api/models")]
    relations = ["", "", "finetune:", "adapter:"]
    assert filters == [f"base_model:{relation}{BASE}" for relation in relations]


def test_a_listing_line_that_makes_no_sense_is_passed_over(server, hub):
    server.add("org/tuned", {}, {"base_model": BASE})
    server.add("org/bad", {}, {"base_model": BASE}, extra={"id": "../../etc/passwd"})
    server.add("org/worse", {}, {"base_model": BASE}, extra={"sha": None})
    assert [line.id for line in hub.descendants(BASE)] == ["org/tuned"]


def test_a_next_page_on_another_server_is_not_followed(server, hub):
    server.fault("/api/models", "pass", headers={"Link": f'<{server.storage_url}/x>; rel="next"'})
    with pytest.raises(KinshipError, match="another server"):
        list(hub.descendants(BASE))
    assert not [request for request in server.log if request.server == "storage"]


def test_a_mirror_that_leaves_out_sizes_costs_no_model(server, hub):
    """Without them every file would be taken for empty, and fetched as such."""
    siblings = [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]
    server.add("org/a", model(), extra={"siblings": siblings})
    with pytest.raises(KinshipError, match="tells no sizes of org/a's files") as raised:
        hub.repo("org/a")
    assert not isinstance(raised.value, ModelError)


def test_a_repo_is_pinned_to_the_commit_it_was_asked_at(server, hub):
    files = model()
    sha = server.add("org/a", files, {"base_model": BASE, "license": "mit"}, gated="auto")
    server.add("org/a", {"config.json": b"{}"})

    repo = hub.repo("org/a", sha)

    assert repo.revision == sha
    assert repo.card == {"base_model": BASE, "license": "mit"}
    assert repo.gated
    assert not repo.private
    assert repo.config == {"architectures": ["MistralForCausalLM"]}
    by_path = {file.path: file for file in repo.files}
    assert list(by_path) == sorted(by_path)
    weights = by_path["model.safetensors"]
    assert weights.sha256 == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert weights.size == len(files["model.safetensors"])
    assert hub.repo("org/a").revision != sha


def test_fetch_brings_what_a_model_needs_and_no_pickle(server, hub, tmp_path):
    sha = server.add("org/a", model())
    told = []

    place = hub.fetch(hub.repo("org/a"), tmp_path, told.append)

    names = {path.name for path in place.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    assert place == tmp_path / "org--a" / sha
    assert torch.equal(load_file(place / "model.safetensors")["layer.3"], tensors()["layer.3"])
    assert sum(told) == sum(path.stat().st_size for path in place.iterdir())
    assert server.asked("GET", "/lfs/.*", "storage")
    assert all(sha in request.path for request in server.asked("GET", "/org/a/resolve/.*"))


def test_the_token_goes_to_the_hub_and_to_no_other_server(server, hub, tmp_path):
    server.add("org/a", model())
    hub.fetch(hub.repo("org/a"), tmp_path)
    hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    hubs = [r.headers.get("authorization") for r in server.log if r.server == "hub"]
    stores = [r.headers.get("authorization") for r in server.log if r.server == "storage"]
    assert set(hubs) == {f"Bearer {TOKEN}"}
    assert set(stores) == {None}


def test_chat_templates_in_their_folder_are_fetched_too(server, hub, tmp_path):
    name = "additional_chat_templates/tool.jinja"
    server.add("org/x", model() | {name: b"{{ messages }}"})
    repo = hub.repo("org/x")
    for _ in range(2):
        place = hub.fetch(repo, tmp_path)
        assert (place / name).read_bytes() == b"{{ messages }}"
        assert [path.name for path in (place / name).parent.iterdir()] == ["tool.jinja"]
        (place / name).unlink()  # the next call brings it again


def test_fetching_again_asks_for_nothing(server, hub, tmp_path):
    server.add("org/a", model())
    repo = hub.repo("org/a")
    first = hub.fetch(repo, tmp_path)
    server.log.clear()
    assert hub.fetch(repo, tmp_path) == first
    assert server.log == []


def test_a_file_missing_from_the_cache_is_fetched_again_alone(server, hub, tmp_path):
    server.add("org/a", model())
    repo = hub.repo("org/a")
    place = hub.fetch(repo, tmp_path)
    (place / "tokenizer.json").unlink()
    server.log.clear()
    assert hub.fetch(repo, tmp_path) == place
    assert (place / "tokenizer.json").is_file()
    assert [request.path.rpartition("/")[2] for request in server.log] == ["tokenizer.json"]


def test_shards_are_those_that_the_index_names(server, hub, tmp_path):
    server.add("org/big", sharded())
    place = hub.fetch(hub.repo("org/big"), tmp_path)
    shards = sorted(path.name for path in place.glob("*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize("name", ["../../evil.safetensors", "absent.safetensors", "model.bin"])
def test_an_index_that_names_what_it_should_not_is_refused(server, hub, tmp_path, name):
    files = sharded()
    files["model.safetensors.index.json"] = f'{{"weight_map": {{"a": "{name}"}}}}'.encode()
    server.add("org/big", files)
    with pytest.raises(ModelError, match=r"index\.json"):
        hub.fetch(hub.repo("org/big"), tmp_path)


@pytest.mark.parametrize("path", ["/lfs/.*", "/org/a/resolve/.*/tokenizer.json"])
def test_a_corrupt_download_never_gets_its_final_name(server, hub, tmp_path, path):
    server.add("org/a", model())
    server.fault(path, "corrupt", n=2)
    repo = hub.repo("org/a")
    with pytest.raises(Unavailable, match=r"org/a (model|tokenizer)\.\w+: its hash is"):
        hub.fetch(repo, tmp_path)
    assert [path.name[0] for path in (tmp_path / "org--a").iterdir()] == ["."]
    assert hub.fetch(repo, tmp_path).name == repo.revision


def test_bytes_that_were_wrong_once_are_fetched_once_more(server, hub, tmp_path):
    server.add("org/a", model())
    server.fault("/lfs/.*", "corrupt")
    place = hub.fetch(hub.repo("org/a"), tmp_path)
    assert (place / "model.safetensors").read_bytes() == model()["model.safetensors"]


def test_a_download_that_broke_off_goes_on_where_it_stopped(server, hub, tmp_path):
    sha = server.add("org/a", model())
    server.fault("/lfs/.*", "truncate")

    place = hub.fetch(hub.repo("org/a"), tmp_path)

    assert place.name == sha
    ranges = [r.headers.get("range") for r in server.asked("GET", "/lfs/.*", "storage")]
    assert ranges[0] is None
    assert ranges[1].startswith("bytes=")
    assert int(ranges[1][6:-1]) > 0
    assert torch.equal(load_file(place / "model.safetensors")["layer.0"], tensors()["layer.0"])


def test_a_leftover_with_wrong_bytes_does_not_condemn_the_model(server, hub, tmp_path):
    sha = server.add("org/a", model())
    stage = tmp_path / "org--a" / f".{sha}.part"
    stage.mkdir(parents=True)
    (stage / ".model.safetensors.part").write_bytes(b"\0" * 1000)
    (stage / "config.json").write_bytes(b"half of it")
    place = hub.fetch(hub.repo("org/a"), tmp_path)
    assert (place / "config.json").read_bytes() == model()["config.json"]
    assert torch.equal(load_file(place / "model.safetensors")["layer.0"], tensors()["layer.0"])


def test_errors_say_what_and_what_would_work(server, hub, tmp_path):
    sha = server.add("org/gated", model(), gated="manual")
    server.add("org/secret", model(), private=True)
    anonymous = ApiHub(server.url, timeout_seconds=5)

    with pytest.raises(UnknownRepo, match="has no model org/none"):
        hub.repo("org/none")
    with pytest.raises(
        UnknownRepo, match="has no model org/secret; if it is private, set HF_TOKEN"
    ):
        anonymous.repo("org/secret")
    with pytest.raises(UnknownRepo, match="has no revision v9"):
        hub.repo("org/gated", "v9")
    with pytest.raises(Unavailable, match="is gated: accept its terms at"):
        anonymous.fetch(anonymous.repo("org/gated"), tmp_path)
    with pytest.raises(UsageError, match="is not a repo id"):
        hub.repo("../../etc")
    with pytest.raises(UsageError, match="is not a revision"):
        hub.repo("org/gated", "../main")
    assert sha


def test_a_server_in_trouble_is_transient_and_named(server, hub):
    server.add("org/a", model())
    for status in (500, 502, 429):
        server.fault("/api/models/org/a", status=status, n=3)
        with pytest.raises(Transient, match=rf"/api/models/org/a answered {status}"):
            hub.repo("org/a")
    server.fault("/api/models", status=503, n=3)
    with pytest.raises(Transient, match="/api/models answered 503"):
        list(hub.descendants(BASE))


def test_an_unreachable_hub_is_transient():
    nowhere = ApiHub("http://127.0.0.1:9", timeout_seconds=5)
    for ask in (
        lambda: nowhere.repo("org/a"),
        lambda: list(nowhere.descendants(BASE)),
        nowhere.about,
    ):
        with pytest.raises(
            Transient, match=r"http://127\.0\.0\.1:9/api/models.* cannot be reached"
        ):
            ask()


def test_a_silent_server_is_given_up_on(server, tmp_path, monkeypatch):
    # Calls for which huggingface_hub takes no timeout are bounded too.
    monkeypatch.setattr(wire, "_BOUND_SECONDS", 0.3)
    impatient = ApiHub(server.url, token=TOKEN, timeout_seconds=0.3)
    server.add("org/a", model())
    repo = impatient.repo("org/a")
    calls = {
        "GET /api/models": lambda: list(impatient.descendants(BASE)),
        "GET /api/models/org/a": lambda: impatient.repo("org/a"),
        "GET /lfs/.*": lambda: impatient.fetch(repo, tmp_path),
        "POST /api/repos/create": lambda: impatient.publish("me/m", folder(tmp_path), "m", True),
    }
    for asked, call in calls.items():
        method, path = asked.split()
        server.fault(path, "stall", method=method, n=3)
        begin = time.monotonic()
        with pytest.raises(Transient, match="cannot be reached"):
            call()
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize("path", ["/api/models", "/api/models/org/a", "/api/whoami-v2"])
def test_a_page_that_says_back_soon_is_transient(server, hub, path):
    server.add("org/a", model())
    server.fault(path, "html", n=3)
    with pytest.raises(Transient, match=f"{path} does not answer with JSON"):
        list(hub.descendants(BASE)), hub.repo("org/a"), hub.about()


def test_an_answer_that_is_not_the_hubs_is_no_crash(server, hub):
    server.add("org/a", model(), extra={"siblings": [{"size": 3}]})
    with pytest.raises(Unavailable, match="in a way that cannot be read"):
        hub.repo("org/a")
    server.add("org/b", model(), extra={"sha": "../../up"})
    with pytest.raises(Unavailable, match="in a way that cannot be read"):
        hub.repo("org/b")


def test_publish_is_one_verified_commit_and_repeating_it_changes_nothing(server, hub, tmp_path):
    place = folder(tmp_path)
    (place / ".cache").mkdir()
    (place / ".cache" / "junk").write_text("hidden")

    first = revision, url = hub.publish("tester/merge", place, "a merge", private=True)

    stored = server.repos["tester/merge"]
    assert stored.private
    assert len(stored.commits) == 2  # the Hub's own first one, and ours
    assert revision == stored.head[0]
    assert url == f"{server.url}/tester/merge"
    ours = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    assert {k: v for k, v in stored.head[1].items() if k != ".gitattributes"} == ours

    server.log.clear()
    assert hub.publish("tester/merge", place, "a merge", private=True) == first
    assert {request.method for request in server.log} == {"GET"}
    assert len(stored.commits) == 2


def test_publish_goes_on_after_a_run_that_only_created_the_repo(server, hub, tmp_path):
    server.add("tester/merge", {})
    revision, _ = hub.publish("tester/merge", folder(tmp_path), "a merge", private=False)
    assert revision == server.repos["tester/merge"].head[0]


def test_publish_never_touches_a_repo_with_other_content(server, hub, tmp_path):
    sha = server.add("tester/merge", {"config.json": b"someone else's"})
    with pytest.raises(KinshipError, match=r"exists with other content.*publish\.name"):
        hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    hub.publish("tester/other", folder(tmp_path), "a merge", private=True)
    with pytest.raises(KinshipError, match="exists with other content"):
        hub.publish("tester/other", folder(tmp_path, "changed"), "a merge", private=True)
    assert server.repos["tester/merge"].head[0] == sha


def test_a_commit_whose_answer_was_lost_counts_as_done(server, hub, tmp_path):
    server.fault("/api/models/tester/merge/commit/main", "lost", method="POST", status=500)
    revision, _ = hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    assert len(server.repos["tester/merge"].commits) == 2
    assert revision == server.repos["tester/merge"].head[0]


def test_an_upload_that_failed_is_named_by_its_own_error(server, hub, tmp_path):
    server.fault("/upload/.*", method="PUT", status=403, n=3)
    with pytest.raises(Transient, match="its storage server answered 403"):
        hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    assert len(server.repos["tester/merge"].commits) == 1


def test_a_commit_that_failed_is_transient_and_can_be_repeated(server, hub, tmp_path):
    server.fault("/api/models/tester/merge/commit/main", method="POST", status=500, n=3)
    with pytest.raises(Transient, match="answered 500"):
        hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    assert hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)


def test_a_commit_on_a_head_that_moved_is_not_made(server, hub, tmp_path, monkeypatch):
    real = hub_server._Hub.preupload

    def someone_is_faster(handler, repo_id, revision):
        server.add(repo_id, {"config.json": b"theirs"})
        real(handler, repo_id, revision)

    monkeypatch.setattr(hub_server._Hub, "preupload", someone_is_faster)
    with pytest.raises(Transient, match="someone else committed"):
        hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    assert server.repos["tester/merge"].head[1]["config.json"] == b"theirs"
    with pytest.raises(KinshipError, match="exists with other content"):
        hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)


def test_what_landed_is_compared_with_what_was_sent(server, hub, tmp_path, monkeypatch):
    real = server.commit

    def tampering(repo_id, content):
        return real(repo_id, content | ({"config.json": b"{ }"} if "README.md" in content else {}))

    monkeypatch.setattr(server, "commit", tampering)
    with pytest.raises(KinshipError, match="does not hold what was sent"):
        hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)


def test_publishing_without_the_right_to_says_so(server, hub, tmp_path):
    place = folder(tmp_path)
    with pytest.raises(UsageError, match="needs a token that may write"):
        ApiHub(server.url).publish("tester/merge", place, "a merge", private=True)
    with pytest.raises(KinshipError, match=r"answered 403 .*use a token that may"):
        hub.publish("forbidden/merge", place, "a merge", private=True)
    (place / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(KinshipError, match="does not take tester/merge: Invalid metadata"):
        hub.publish("tester/merge", place, "a merge", private=True)


def test_the_token_is_in_no_message_and_no_log(server, hub, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    wrong = "hf_notaknowntoken"
    with pytest.raises(KinshipError) as refused:
        ApiHub(server.url, token=wrong).publish("tester/m", folder(tmp_path), "m", private=True)
    server.fault("/api/models/org/a", status=500, n=3, headers={"X-Error-Message": f"bad {TOKEN}"})
    with pytest.raises(Transient) as failed:
        hub.repo("org/a")
    with pytest.raises(UsageError) as unsendable:
        ApiHub(server.url, token="hf_two\nlines")
    for error in (refused, failed, unsendable):
        assert "hf_" not in str(error.value)
    assert wrong not in caplog.text
    assert TOKEN not in caplog.text


def test_the_machines_token_is_for_its_own_server_only(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ofthismachine")
    assert machine_token("https://huggingface.co/") == "hf_ofthismachine"
    assert machine_token(server.url) is None
    open_hub(server.url).about()
    server.add("org/a", model())
    anonymous = ApiHub(server.url)
    anonymous.about()
    anonymous.fetch(anonymous.repo("org/a"), tmp_path)
    assert all("authorization" not in request.headers for request in server.log)


def test_a_token_for_another_server_says_what_would_work(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ofthismachine")
    assert f"set HF_ENDPOINT={server.url}" in token_advice(server.url)
    assert "hf_" not in token_advice(server.url)


def test_about_says_who_we_are(server, hub):
    assert hub.about() == f"{server.url} answers; the token is tester's"
    assert ApiHub(server.url).about() == f"{server.url} answers (no token)"
    with pytest.raises(KinshipError, match="answered 401"):
        ApiHub(server.url, token="hf_wrong").about()


def test_offline_mode_is_named(server, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        hub.repo("org/a")
    assert server.log == []


@pytest.mark.parametrize("url", ["ftp://hub", "https://", "https://me:pass@hub", "https://h?x=1"])
def test_what_is_not_a_hubs_url_is_refused(url):
    with pytest.raises(UsageError) as error:
        open_hub(url)
    assert "pass" not in str(error.value).replace("password", "")


def test_our_server_answers_the_real_client_in_full(server, tmp_path):
    """The endpoints that ApiHub does not use today are real too."""
    sha = server.add("org/a", model())
    api = huggingface_hub.HfApi(server.url, token=TOKEN)
    ApiHub(server.url)  # sets the client up
    assert {entry.path for entry in api.list_repo_tree("org/a", recursive=True)} >= set(model())
    assert [m.id for m in api.list_models(search="a", limit=5)] == ["org/a"]
    path = api.hf_hub_download("org/a", "model.safetensors", local_dir=tmp_path)
    assert Path(path).read_bytes() == model()["model.safetensors"]
    assert api.model_info("org/a").sha == sha


def fine_tunes(server, count: int) -> None:
    for number in range(count):
        card = {"base_model": BASE, "base_model_relation": "finetune"}
        server.add(f"org/m{number:05}", {}, card)


def test_a_poll_with_nothing_new_is_one_request(server, hub):
    fine_tunes(server, 250)
    last = server.repos["org/m00249"].modified
    server.log.clear()

    assert [line.id for line in hub.descendants(BASE, since=last)] == ["org/m00249"]
    assert [request.query["limit"] for request in server.log] == [["100"]]

    server.add("org/new", {}, {"base_model": BASE})
    server.log.clear()
    found = [line.id for line in hub.descendants(BASE, since=last)]
    assert found == ["org/m00249", "org/new"]
    assert len(server.log) == 1


def test_a_poll_reads_as_far_as_there_is_something_new(server, hub):
    fine_tunes(server, 250)
    since = server.repos["org/m00050"].modified
    assert len(list(hub.descendants(BASE, since=since))) == 200
    assert len(server.log) == 3


def test_a_few_lines_out_of_place_hide_nothing(server, hub):
    fine_tunes(server, 100)
    # An old time on three of the newest hundred: such lines must not end the reading.
    since = server.repos["org/m00010"].modified
    server.page = 20

    def misplaced(rows):
        rows[7]["lastModified"] = "2020-01-01T00:00:00.000Z"
        return rows

    server.fault("/api/models", "edit", n=3, edit=misplaced)
    assert len(list(hub.descendants(BASE, since=since))) == 90 - 3


def test_a_listing_in_no_order_is_read_to_its_end(server, hub):
    fine_tunes(server, 250)
    since = server.repos["org/m00247"].modified
    server.fault("/api/models", "out-of-order")
    found = [line.id for line in hub.descendants(BASE, since=since)]
    assert found == ["org/m00247", "org/m00248", "org/m00249"]
    assert len(server.log) == 3


def test_lines_without_tags_or_with_odd_numbers_are_lines(server, hub):
    odd = {"downloads": 2**70, "likes": "many", "gated": "manual", "private": None}
    server.add("org/a", {}, {"base_model": BASE}, extra=odd)
    server.fault("/api/models", "tags-null", n=3)
    (line,) = hub.descendants(BASE)
    assert (line.tags, line.downloads, line.likes, line.gated) == ((), 0, 0, True)


def test_a_listing_without_end_is_left(server, hub, monkeypatch):
    monkeypatch.setattr(wire, "_MOST_PAGES", 5)
    server.fault(
        "/api/models", "pass", n=-1, headers={"Link": f'<{server.url}/api/models>; rel="next"'}
    )
    with pytest.raises(Transient, match="more than 5 pages"):
        list(hub.descendants(BASE))


def test_an_answer_longer_than_anything_is_not_read_to_its_end(server, hub, monkeypatch):
    server.add("org/a", model())
    monkeypatch.setattr(wire, "_MOST_BYTES", 1000)
    with pytest.raises(Transient, match="longer than 1000 bytes"):
        hub.repo("org/a")


@pytest.mark.parametrize("path", ["../../x", "/etc/passwd", "a/./b", "a//b", "a\\b", "a\nb", ""])
def test_a_file_that_would_lead_out_of_its_folder_is_refused(server, hub, path):
    entry = {"rfilename": path, "size": 3, "blobId": "0" * 40}
    server.add("org/a", model(), extra={"siblings": [entry]})
    with pytest.raises(Unavailable, match=r"org/a has a file named .* not a path in a repo"):
        hub.repo("org/a")


@pytest.mark.parametrize("size", [-1, 2**60, "12", 1.5, True, [3]])
def test_an_absurd_size_is_refused(server, hub, size):
    plain = {"rfilename": "config.json", "size": size, "blobId": "0" * 40}
    large = {"rfilename": "x", "lfs": {"size": size, "sha256": "0" * 64, "pointerSize": 1}}
    for entry in (plain, large):
        server.add("org/a", model(), extra={"siblings": [entry]})
        with pytest.raises(Unavailable, match=r"org/a (config\.json|x): its size is said to be"):
            hub.repo("org/a")


def test_sizes_that_are_absurd_together_are_refused(server, hub):
    shard = {"size": 1 << 49, "sha256": "0" * 64, "pointerSize": 1}
    entries = [{"rfilename": f"model-0000{n}-of-00002.safetensors", "lfs": shard} for n in (1, 2)]
    server.add("org/a", model(), extra={"siblings": entries})
    with pytest.raises(Unavailable, match="in a way that cannot be read"):
        hub.repo("org/a")


@pytest.mark.parametrize(
    "extra",
    [
        {"siblings": [{"rfilename": "x", "size": 1, "lfs": {"size": 1, "sha256": "../up"}}]},
        {"siblings": "many"},
        {"lastModified": "yesterday"},
        {"lastModified": 7},
        {"lastModified": "0001-01-01T00:00:00+14:00"},
    ],
)
def test_a_description_that_makes_no_sense_condemns_one_model(server, hub, extra):
    server.add("org/a", model(), extra=extra)
    with pytest.raises(Unavailable, match="org/a in a way that cannot be read"):
        hub.repo("org/a")


def test_a_moment_that_nobody_knows_is_one_that_can_be_written_down(server, hub):
    server.add("org/a", model(), extra={"lastModified": "0001-01-01T00:00:00Z"})
    assert stamp(hub.repo("org/a").modified) == "1970-01-01T00:00:00Z"


def test_a_next_page_that_is_no_url_is_refused(server, hub):
    server.add("org/a", model(), extra={"tags": [f"base_model:{BASE}"]})
    server.fault("/api/models", "pass", headers={"Link": '<http://[x>; rel="next"'})
    with pytest.raises(Transient, match="sends its next page to another server"):
        list(hub.descendants(BASE))


def test_json_that_no_one_could_read_condemns_one_model(server, hub, monkeypatch):
    server.add("org/a", model())
    monkeypatch.setattr(wire, "_all_of", lambda _: b"[" * 100_000)
    with pytest.raises(Unavailable, match="JSON that cannot be read"):
        hub.repo("org/a")


def test_a_card_that_is_none_is_a_problem_of_the_repo(server, hub):
    server.add("org/a", model())
    server.fault("/api/models/org/a", "card")
    repo = hub.repo("org/a")
    assert (repo.card, repo.config) == ({}, {})
    assert repo.problem == "README.md's front matter is not a mapping"
    odd = {"ignore_metadata_errors": 3, "model-index": ["?"], "self": 1, "tags": None}
    server.add("org/b", model(), extra={"cardData": odd})
    assert hub.repo("org/b").card == {"ignore_metadata_errors": 3, "self": 1}


def test_a_renamed_repo_keeps_the_name_we_know_it_by(server, hub, tmp_path):
    sha = server.add("org/a", model())
    server.rename("org/a", "new/name")
    repo = hub.repo("org/a", sha)
    assert repo.id == "org/a"
    assert hub.fetch(repo, tmp_path) == tmp_path / "org--a" / sha


def test_a_repo_that_is_disabled_or_forbidden_condemns_itself_alone(server, hub, tmp_path):
    server.add("org/a", model())
    repo = hub.repo("org/a")
    server.repos["org/a"].disabled = True
    assert hub.repo("org/a").disabled
    with pytest.raises(Unavailable, match="has disabled org/a"):
        hub.fetch(repo, tmp_path)
    server.fault("/api/models/org/a", status=403)
    with pytest.raises(Unavailable, match="answered 403"):
        hub.repo("org/a")
    server.delete("org/a")
    with pytest.raises(UnknownRepo, match="has no model org/a"):
        hub.repo("org/a")


@pytest.mark.parametrize("action", ["expire", "truncate", "reset-body", "status", "reset"])
def test_a_download_survives_a_few_breaks(server, hub, tmp_path, action):
    server.add("org/a", model())
    server.fault("/lfs/.*", action, n=2, server="storage")
    place = hub.fetch(hub.repo("org/a"), tmp_path)
    assert (place / "model.safetensors").read_bytes() == model()["model.safetensors"]


def test_a_download_that_gets_nowhere_is_given_up_on(server, hub, tmp_path):
    server.add("org/a", model())
    server.fault("/lfs/.*", "reset", n=-1)
    with pytest.raises(Transient, match="cannot be reached"):
        hub.fetch(hub.repo("org/a"), tmp_path)
    assert len(server.asked("GET", "/lfs/.*", "storage")) == 3


def test_a_file_that_changes_under_its_download_is_noticed(server, hub, tmp_path):
    server.add("org/a", model())
    server.fault("/lfs/.*", "truncate")
    server.fault("/org/a/resolve/.*/model.safetensors", "changed", skip=1)
    with pytest.raises(Unavailable, match="changed on the hub since it was listed"):
        hub.fetch(hub.repo("org/a"), tmp_path)


def test_a_redirect_to_a_stranger_gets_no_token(server, hub, tmp_path):
    server.add("org/a", model())
    repo = hub.repo("org/a")
    server.fault("/org/a/resolve/.*|/api/models.*", "redirect", n=-1, server="hub")
    place = hub.fetch(repo, tmp_path)
    assert (place / "model.safetensors").read_bytes() == model()["model.safetensors"]
    # Files have hashes that they are checked by. What the API says has none.
    with pytest.raises(Transient, match=r"redirects .*/api/models to another server \(http"):
        list(hub.descendants(BASE))
    with pytest.raises(Transient, match=r"redirects .*/org/a to another server"):
        hub.repo("org/a")
    others = {request.path for request in server.log if request.server == "elsewhere"}
    assert others
    assert not [path for path in others if path.startswith("/api/")]
    assert server.leaks() == []


@pytest.mark.parametrize("status", [302, 307, 308])
@pytest.mark.parametrize(
    "step",
    [
        *("/api/whoami-v2", "/api/models/tester/merge", "/api/repos/create"),
        *("/api/models/.*/preupload/main", "/.*/info/lfs/objects/batch", "/api/validate-yaml"),
        *("/api/models/.*/commit/main", "/api/models/.*/revision/.*"),
    ],
)
def test_no_step_of_publishing_leaves_the_hub_for_another_server(
    server, hub, tmp_path, step, status
):
    place = folder(tmp_path)
    away = server.fault(step, "redirect", method="GET|POST", n=-1, status=status)

    def go_through():
        hub.may_write("tester")
        hub.publish("tester/merge", place, "a merge", private=True)

    with pytest.raises(Transient, match="to another server"):
        go_through()
    # Neither the token nor what is private goes there, and no answer from there is believed.
    assert away.done
    assert not [request for request in server.log if request.server == "elsewhere"]
    away.n = 0
    go_through()
    assert len(server.repos["tester/merge"].commits) == 2


@pytest.mark.parametrize("is_redirected", [True, False])
def test_an_upload_is_confirmed_to_no_other_server(server, hub, tmp_path, is_redirected):
    def lead_away(answer):
        answer["objects"][0]["actions"]["verify"]["href"] = f"{server.elsewhere_url}/verify"
        return answer

    if is_redirected:
        server.fault("/.*/info/lfs/verify", "redirect", method="POST", n=-1, status=307)
    else:
        server.fault("/.*/info/lfs/objects/batch", "edit", method="POST", edit=lead_away)
    # What was uploaded is there: at the next try nothing is left to be confirmed.
    hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    assert server.faults[0].done
    assert not [request for request in server.log if request.server == "elsewhere"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 407, 409, 410, 418, 451])
def test_a_refusal_without_the_hubs_code_is_never_the_models_fault(server, tmp_path, status):
    server.add("org/a", model())
    for token in (TOKEN, None):
        hub = ApiHub(server.url, token=token)
        repo = hub.repo("org/a")
        fault = server.fault(".*", status=status, n=-1)
        for ask in (
            lambda: hub.repo("org/a"),  # noqa: B023 - asked at once
            lambda: hub.repo("org/a", repo.revision),  # noqa: B023
            lambda: hub.fetch(repo, tmp_path / str(token)),  # noqa: B023
            lambda: hub.ranges(repo).read("config.json", [(0, 1)]),  # noqa: B023
        ):
            with pytest.raises(Transient, match=f"answered {status}"):
                ask()
        fault.n = 0
        hub.fetch(repo, tmp_path / str(token))


@pytest.mark.parametrize("action", ["html", "json", "shape", "truncate", "reset-body"])
def test_an_odd_answer_is_asked_again_later(server, hub, action):
    server.add("org/a", model())
    fault = server.fault("/api/models.*", action, n=-1)
    for ask in (lambda: hub.repo("org/a"), lambda: list(hub.descendants(BASE))):
        with pytest.raises(Transient):
            ask()
    fault.n = 0
    assert hub.repo("org/a").id == "org/a"


def test_a_description_of_another_commit_is_not_believed(server, hub):
    first = server.add("org/a", model())
    second = server.add("org/a", {"more": b"x"})
    server.fault("/api/models/org/a/.*", "edit", edit=lambda info: info | {"sha": second})
    with pytest.raises(Unavailable, match="at another commit than was asked for"):
        hub.repo("org/a", first)
    assert hub.repo("org/a", first).revision == first


def test_a_repo_that_was_created_public_is_not_filled_in_private(server, hub, tmp_path):
    server.add("tester/merge", {})
    with pytest.raises(KinshipError, match=r"is public, but publish\.public is false"):
        hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    assert len(server.repos["tester/merge"].commits) == 1


def test_a_target_that_was_renamed_or_disabled_is_named(server, hub, tmp_path):
    place = folder(tmp_path)
    server.add("tester/merge", {}, private=True)
    server.rename("tester/merge", "tester/other")
    with pytest.raises(KinshipError, match="tester/merge was renamed to tester/other"):
        hub.publish("tester/merge", place, "a merge", private=True)
    server.repos["tester/other"].disabled = True
    with pytest.raises(KinshipError, match="tester/other is disabled"):
        hub.publish("tester/other", place, "a merge", private=True)


def test_what_the_hub_gives_no_hash_of_is_not_taken_for_ours(server, hub, tmp_path):
    place = folder(tmp_path)
    hub.publish("tester/merge", place, "a merge", private=True)
    server.fault(
        "/api/models/tester/merge",
        "edit",
        edit=lambda info: info | {"siblings": [s | {"blobId": None} for s in info["siblings"]]},
    )
    with pytest.raises(KinshipError, match="exists with other content"):
        hub.publish("tester/merge", place, "a merge", private=True)


def test_under_faults_at_random_a_publication_lands_exactly_once(server, hub, tmp_path):
    place = folder(tmp_path)
    kinds = ("500", "502", "503", "reset", "truncate", "html", "lost")
    server.chaos(5, 0.3, kinds, streak=1)
    for _ in range(30):
        try:
            revision, _ = hub.publish("tester/merge", place, "a merge", private=True)
            break
        except Transient:
            continue
    assert len(server.repos["tester/merge"].commits) == 2
    assert revision == server.repos["tester/merge"].head[0]


@pytest.mark.parametrize(
    ("namespace", "token", "says"),
    [
        ("tester", {}, "under tester/ as tester"),
        ("Tester", {}, "under Tester/ as tester"),
        ("lab", {"orgs": {"lab": "contributor"}}, "under lab/ as tester, a member of lab"),
        (
            "lab",
            {"role": "fineGrained", "orgs": {"lab": "write"}, "scopes": {"lab": ["repo.write"]}},
            "under lab/ as tester, a member of lab",
        ),
    ],
)
def test_a_token_that_may_write_says_as_whom(server, namespace, token, says):
    assert ApiHub(server.url, token=server.token(**token)).may_write(namespace) == says


@pytest.mark.parametrize(
    ("namespace", "token", "says"),
    [
        ("tester", {"role": "read"}, "may only read; make one of role write"),
        ("lab", {}, "lab is neither tester nor an organisation of theirs"),
        ("lab", {"orgs": {"lab": "read"}}, "role read in lab, which may not write"),
        (
            "lab",
            {"role": "fineGrained", "orgs": {"lab": "admin"}, "scopes": {"tester": ["repo.write"]}},
            "no repo.write for lab",
        ),
        (
            "tester",
            {"role": "fineGrained", "scopes": {"tester": ["repo.content.read"]}},
            "no repo.write for tester",
        ),
    ],
)
def test_a_token_that_may_not_write_says_what_would_work(server, namespace, token, says):
    with pytest.raises(UsageError, match=says):
        ApiHub(server.url, token=server.token(**token)).may_write(namespace)


def test_an_answer_about_a_token_ends_a_start_only_when_it_is_told_twice(server, hub):
    path = "/api/whoami-v2"
    server.fault(path, "edit", edit=lambda answer: answer | {"name": "testes"})
    with pytest.raises(Transient, match="says each time otherwise"):
        hub.may_write("lab")
    server.fault(path, "edit", edit=lambda answer: answer | {"name": "testes"})
    assert hub.may_write("tester") == "under tester/ as tester"
    for action in ("shape", "html", "json"):
        fault = server.fault(path, action, n=-1)
        with pytest.raises(Transient):
            hub.may_write("tester")
        fault.n = 0


def test_names_that_a_hub_gives_are_shown_short_and_escaped(server):
    token = server.token("\x1b[2J" + "n" * 5000, orgs={"\u202eorg\n" * 400: "read"})
    with pytest.raises(UsageError) as error:
        ApiHub(server.url, token=token).may_write("tester")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800


def test_who_may_write_is_not_asked_without_a_token(server):
    with pytest.raises(UsageError, match="needs a token that may write"):
        ApiHub(server.url).may_write("tester")
    assert server.log == []


WHOLE = b'{"architectures": ["MistralForCausalLM"]}' * 1000


class Proxy(BaseHTTPRequestHandler):
    """What may stand between us and a hub: ends answers without a word, or packs them."""

    longest, packs = len(WHOLE), False

    def do_GET(self):
        if not self.path.endswith("/config.json"):
            self.send_response(404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>no such page</html>")
            return
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        body = WHOLE[begin : begin + self.longest]
        # HTTP/1.0 without a length: the end of the connection is the end of the answer.
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(WHOLE) - 1}/{len(WHOLE)}")
        if self.packs:
            self.send_header("Content-Encoding", "gzip")
            body = gzip.compress(body)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def proxy(**settings):
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Proxy,), settings)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield ApiHub(f"http://127.0.0.1:{server.server_port}", token=TOKEN, timeout_seconds=5)
        server.shutdown()


def one_file():
    sha256 = hashlib.sha256(WHOLE).hexdigest()
    file = RepoFile("config.json", len(WHOLE), sha256)
    return Repo("org/a", "0" * 40, datetime.now(UTC), {}, (file,))


def test_an_answer_that_just_ends_is_gone_on_from(tmp_path):
    with proxy(longest=10_000) as hub, pytest.raises(ModelError, match="no safetensors weights"):
        hub.fetch(one_file(), tmp_path)
    assert next(tmp_path.rglob("config.json")).read_bytes() == WHOLE


def test_answers_that_always_end_at_once_are_not_the_models_fault(tmp_path):
    with proxy(longest=10) as hub, pytest.raises(Transient, match="ends too early"):
        hub.fetch(one_file(), tmp_path)


def test_a_file_packed_on_the_way_is_not_the_models_fault(tmp_path):
    with proxy(packs=True) as hub, pytest.raises(KinshipError, match="compressed") as refused:
        hub.fetch(one_file(), tmp_path)
    assert not isinstance(refused.value, ModelError)


def test_a_404_that_does_not_say_of_what_is_no_repo_that_is_gone():
    with proxy() as hub, pytest.raises(Transient, match=r"answered 404 .*is http.* a Hub\?"):
        hub.repo("org/a")
