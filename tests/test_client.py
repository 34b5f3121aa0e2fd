"""The real huggingface_hub client against a real server on 127.0.0.1."""

import hashlib
import logging
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save, save_file

import hub_server
from hub_server import TOKEN, HubServer
from kinship_daemon.errors import KinshipError, ModelError, Transient, UsageError
from kinship_daemon.hub import client as client_module
from kinship_daemon.hub.client import ApiHub, machine_token
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import UnknownRepo

BASE = "org/base"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The other tests run with HF_HUB_OFFLINE; this server is at home."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def server():
    with HubServer() as hub:
        yield hub


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

    assert [line.id for line in found] == ["org/adapter", "org/plain", "org/tuned"]
    assert found[-1].revision == newest
    assert found[-1].modified.utcoffset().total_seconds() == 0
    assert len(server.asked("GET", "/api/models")) == 2


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
    with pytest.raises(ModelError, match=r"org/a (model|tokenizer)\.\w+: its hash is"):
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
    repo = hub.repo("org/a")
    with pytest.raises(Transient):
        hub.fetch(repo, tmp_path)
    assert not (tmp_path / "org--a" / sha).exists()

    place = hub.fetch(repo, tmp_path)

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
    with pytest.raises(ModelError, match="is gated: accept its terms at"):
        anonymous.fetch(anonymous.repo("org/gated"), tmp_path)
    with pytest.raises(UsageError, match="is not a repo id"):
        hub.repo("../../etc")
    with pytest.raises(UsageError, match="is not a revision"):
        hub.repo("org/gated", "../main")
    assert sha


def test_a_server_in_trouble_is_transient_and_named(server, hub):
    server.add("org/a", model())
    for status in (500, 502, 429):
        server.fault("/api/models/org/a", status=status)
        with pytest.raises(Transient, match=rf"/api/models/org/a answered {status}"):
            hub.repo("org/a")
    server.fault("/api/models", status=503)
    with pytest.raises(Transient, match="/api/models answered 503"):
        list(hub.descendants(BASE))


def test_an_unreachable_hub_is_transient_at_once():
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
    monkeypatch.setattr(client_module, "_BOUND_SECONDS", 0.3)
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
        server.fault(path, "stall", method=method)
        begin = time.monotonic()
        with pytest.raises(Transient, match="cannot be reached"):
            call()
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize("path", ["/api/models", "/api/models/org/a", "/api/whoami-v2"])
def test_a_page_that_says_back_soon_is_transient(server, hub, path):
    server.add("org/a", model())
    server.fault(path, "html")
    with pytest.raises(Transient, match=f"{path} does not answer with JSON"):
        list(hub.descendants(BASE)), hub.repo("org/a"), hub.about()


def test_an_answer_that_is_not_the_hubs_is_no_crash(server, hub):
    server.add("org/a", model(), extra={"siblings": [{"size": 3}]})
    with pytest.raises(ModelError, match="in a way that cannot be read"):
        hub.repo("org/a")
    server.add("org/b", model(), extra={"sha": "../../up"})
    with pytest.raises(ModelError, match="in a way that cannot be read"):
        hub.repo("org/b")


def test_publish_is_one_verified_commit_and_repeating_it_changes_nothing(server, hub, tmp_path):
    place = folder(tmp_path)
    (place / ".cache").mkdir()
    (place / ".cache" / "junk").write_text("hidden")

    first = hub.publish("tester/merge", place, "a merge", private=True)

    stored = server.repos["tester/merge"]
    assert stored.private
    assert len(stored.commits) == 2  # the Hub's own first one, and ours
    assert first.revision == stored.head[0]
    assert first.url == f"{server.url}/tester/merge"
    ours = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    assert {k: v for k, v in stored.head[1].items() if k != ".gitattributes"} == ours

    server.log.clear()
    assert hub.publish("tester/merge", place, "a merge", private=True) == first
    assert {request.method for request in server.log} == {"GET"}
    assert len(stored.commits) == 2


def test_publish_goes_on_after_a_run_that_only_created_the_repo(server, hub, tmp_path):
    server.add("tester/merge", {})
    published = hub.publish("tester/merge", folder(tmp_path), "a merge", private=False)
    assert published.revision == server.repos["tester/merge"].head[0]


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
    published = hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    assert len(server.repos["tester/merge"].commits) == 2
    assert published.revision == server.repos["tester/merge"].head[0]


def test_an_upload_that_failed_is_named_by_its_own_error(server, hub, tmp_path):
    server.fault("/upload/.*", method="PUT", status=403, n=2)
    with pytest.raises(KinshipError, match="answered 403 laid fault"):
        hub.publish("tester/merge", folder(tmp_path), "a merge", private=True)
    assert len(server.repos["tester/merge"].commits) == 1


def test_a_commit_that_failed_is_transient_and_can_be_repeated(server, hub, tmp_path):
    server.fault("/api/models/tester/merge/commit/main", method="POST", status=500)
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
    server.fault("/api/models/org/a", status=500, headers={"X-Error-Message": f"bad {TOKEN}"})
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
