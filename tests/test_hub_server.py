"""The Hub server of the tests, asked by the real huggingface_hub client and by plain HTTP."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_hf_file_metadata
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_server import TOKEN, HubServer
from hub_server.cdn import signed

DATA = bytes(range(256)) * 40
LARGE = {"model.safetensors": DATA}
GOOD = (200, "application/json; charset=utf-8")
TUNED = "base_model:finetune:org/base"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def api(server):
    return HfApi(server.url, token=TOKEN)


def ask(url: str, method: str = "GET", timeout: float = 10, body=None, **headers: str):
    """One plain request that follows nothing."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, f"{parts.path}?{parts.query}", body, named)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return SimpleNamespace(
        status=answer.status, data=data, headers=answer.headers, reason=answer.reason
    )


def located(server: HubServer, repo: str = "org/a", path: str = "model.safetensors") -> str:
    """The signed URL of a large file."""
    return ask(f"{server.url}/{repo}/resolve/main/{path}").headers["Location"]


def family(server: HubServer, count: int) -> list[str]:
    card = {"base_model": "org/base", "base_model_relation": "finetune", "license": "mit"}
    for i in range(count):
        server.add(f"org/m{i}", {}, card)
    return [f"org/m{i}" for i in reversed(range(count))]


# Who asks


def test_whoami_names_the_role_and_the_orgs(server):
    token = server.token("ann", "read", orgs={"acme": "admin", "guests": "read"})
    said = HfApi(server.url, token=token).whoami()
    assert said["name"] == "ann"
    assert said["auth"]["accessToken"]["role"] == "read"
    assert {org["name"]: org["roleInOrg"] for org in said["orgs"]} == {
        "acme": "admin",
        "guests": "read",
    }
    assert ask(f"{server.url}/api/whoami-v2", Authorization="Bearer hf_no").status == 401
    assert json.loads(ask(f"{server.url}/api/agent-harnesses").data)["harnesses"] == {}


@pytest.mark.parametrize(
    ("user", "role", "orgs", "scopes", "allowed"),
    [
        ("acme", "write", {}, {}, True),
        ("ann", "write", {"acme": "write"}, {}, True),
        ("ann", "write", {"acme": "read"}, {}, False),
        ("ann", "write", {}, {}, False),
        ("acme", "read", {}, {}, False),
        ("acme", "fineGrained", {}, {"acme": ["repo.write"]}, True),
        ("acme", "fineGrained", {}, {"acme": ["repo.content.read"]}, False),
    ],
)
def test_only_who_may_write_creates_commits_and_deletes(server, user, role, orgs, scopes, allowed):
    api = HfApi(server.url, token=server.token(user, role, orgs=orgs, scopes=scopes))
    server.add("acme/there", {"a.txt": b"a"})
    commit = [CommitOperationAdd("b.txt", b"b")]
    calls = (
        lambda: api.create_repo("acme/new"),
        lambda: api.create_commit("acme/there", commit, commit_message="more"),
        lambda: api.delete_repo("acme/there"),
    )
    for call in calls:
        if allowed:
            call()
        else:
            with pytest.raises(HfHubHTTPError, match="403"):
                call()
    assert ("acme/new" in server.repos, "acme/there" in server.repos) == (allowed, not allowed)


def test_private_repos_are_there_for_their_owners_only(server, api):
    server.add("tester/mine", LARGE, private=True)
    server.add("org/theirs", LARGE, private=True)
    assert api.model_info("tester/mine").private
    assert [model.id for model in api.list_models()] == ["tester/mine"]
    for name, who in (("org/theirs", api), ("tester/mine", HfApi(server.url, token=False))):
        with pytest.raises(RepositoryNotFoundError):
            who.model_info(name)


def test_a_gated_repo_shows_its_page_and_keeps_its_files(server, api, tmp_path):
    server.add("org/gated", LARGE, gated="manual")
    assert api.model_info("org/gated").gated == "manual"
    for who, status in ((api, 403), (HfApi(server.url, token=False), 401)):
        with pytest.raises(GatedRepoError) as refused:
            who.hf_hub_download("org/gated", "model.safetensors", local_dir=tmp_path)
        assert refused.value.response.status_code == status
    server.repos["org/gated"].allowed.add("tester")
    assert api.hf_hub_download("org/gated", "model.safetensors", local_dir=tmp_path)


def test_a_disabled_repo_gives_no_files(server, api):
    server.add("org/a", LARGE, disabled=True)
    assert api.model_info("org/a").disabled
    with pytest.raises(DisabledRepoError):
        get_hf_file_metadata(f"{server.url}/org/a/resolve/main/model.safetensors", token=TOKEN)


def test_a_renamed_repo_answers_under_its_old_name_until_that_is_taken(server, api, tmp_path):
    sha = server.add("org/old", LARGE)
    server.rename("org/old", "org/new")
    server.rename("org/new", "org/newest")
    assert api.model_info("org/old").id == "org/newest"
    place = api.hf_hub_download("org/old", "model.safetensors", local_dir=tmp_path)
    assert Path(place).read_bytes() == DATA
    assert api.model_info("org/new", revision=sha).sha == sha
    server.add("org/old", {})
    assert api.model_info("org/old").id == "org/old"


# Listing


def test_the_listing_is_filtered_by_everything_at_once(server, api):
    server.add("org/a", {}, {"tags": ["x", "y"], "pipeline_tag": "text-generation"}, gated="auto")
    server.add("org/ab", {}, {"tags": ["x"], "library_name": "transformers"})
    server.add("else/ab", {}, {"tags": ["x", "y"], "license": "mit"})

    def names(**asked):
        return {model.id for model in api.list_models(**asked)}

    assert names(filter=["x", "y"]) == {"org/a", "else/ab"}
    assert names(filter=["x", "y"], author="org") == {"org/a"}
    assert names(filter="license:mit") == {"else/ab"}
    assert names(filter="transformers") == {"org/ab"}
    assert names(search="AB") == {"org/ab", "else/ab"}
    assert names(gated=True) == {"org/a"}
    assert names(gated=False, author="org") == {"org/ab"}
    assert names(pipeline_tag="text-generation") == {"org/a"}
    assert names(filter="none") == set()


@pytest.mark.parametrize(
    ("sort", "field"),
    [
        ("downloads", "downloads"),
        ("likes", "likes"),
        ("trending_score", "trending"),
        ("last_modified", "modified"),
        ("created_at", "created"),
    ],
)
def test_every_order_is_descending_through_all_pages(server, api, sort, field):
    server.page = 2
    values = [3, 1, 5, 2, 5]
    for i, value in enumerate(values):
        moment = datetime(2025, 3, value, tzinfo=UTC)
        given = moment if field in {"modified", "created"} else value
        server.add(f"org/m{i}", {}, **{field: given})
    found = [model.id for model in api.list_models(sort=sort)]
    assert found == ["org/m4", "org/m2", "org/m0", "org/m3", "org/m1"]
    assert len(server.asked("GET", "/api/models")) == 3


def test_a_repo_that_changes_while_we_page_shifts_nobody_else(server, api):
    server.page = 2
    names = family(server, 6)
    pages = api.list_models(sort="last_modified", filter=TUNED)
    seen = [next(pages).id, next(pages).id]
    server.add("org/m0", {"x": b"y"}, {"base_model": "org/base"})
    seen += [model.id for model in pages]
    assert seen == names[:-1]  # m0 is on a page that has gone by


def test_out_of_order_pages_hold_everybody_once(server, api):
    server.page = 3
    names = family(server, 10)
    server.fault("/api/models", "out-of-order")
    seen = [model.id for model in api.list_models(sort="last_modified", filter=TUNED)]
    assert sorted(seen) == sorted(names)
    assert seen != names


def test_a_line_has_what_was_asked_for_and_no_more(server, api):
    card = {"base_model": ["org/x", "org/y"], "base_model_relation": "merge", "license": "mit"}
    sha = server.add("org/a", {"config.json": b'{"model_type": "mistral"}'}, card, downloads=7)
    brief, full = (next(iter(api.list_models(full=full))) for full in (False, True))
    assert (brief.sha, brief.downloads, full.sha) == (None, 7, sha)
    assert {sibling.rfilename for sibling in full.siblings} >= {"config.json"}
    more = next(iter(api.list_models(cardData=True, fetch_config=True)))
    assert more.card_data.base_model == ["org/x", "org/y"]
    assert more.config == {"model_type": "mistral"}
    lines = ask(f"{server.url}/api/models?expand=sha&expand=baseModels").data
    assert json.loads(lines)[0].keys() == {"_id", "id", "modelId", "sha", "baseModels"}
    bases = json.loads(lines)[0]["baseModels"]
    assert (bases["relation"], [base["id"] for base in bases["models"]]) == (
        "merge",
        ["org/x", "org/y"],
    )
    assert ask(f"{server.url}/api/models?expand=nonsense").status == 400
    assert ask(f"{server.url}/api/models?sort=nonsense").status == 400


def test_ten_thousand_repos_are_listed_quickly(server):
    family(server, 10_000)
    url = f"{server.url}/api/models?filter={TUNED}&sort=lastModified&limit=1000&full=true"
    took = []
    for _ in range(5):
        begin = time.monotonic()
        page = ask(url)
        took.append(time.monotonic() - begin)
    assert len(json.loads(page.data)) == 1000
    assert min(took) < 0.25  # 0.04 s on an idle core


# Reading one repo


def test_a_models_page_has_hashes_parameters_and_expansions(server, api):
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(12)
    sha = server.add("org/a", {"model.safetensors": weights, "config.json": b"{}"}, {"tags": ["t"]})
    info = api.model_info("org/a", files_metadata=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    stored = files["model.safetensors"]
    assert stored.lfs.sha256 == hashlib.sha256(weights).hexdigest()
    assert (stored.size, stored.lfs.size) == (len(weights), len(weights))
    assert files["config.json"].blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert info.safetensors.parameters == {"BF16": 6}
    assert (info.sha, info.author, info.tags) == (sha, "org", ["safetensors", "t"])
    assert api.model_info("org/a", expand=["sha"]).sha == sha


def test_old_commits_tags_and_heads_are_revisions(server, api):
    first = server.add("org/a", {"a.txt": b"1"})
    second = server.add("org/a", {"a.txt": b"2"})
    server.tag("org/a", "v1/stable", first)
    assert api.model_info("org/a", revision=first).sha == first
    assert api.model_info("org/a", revision="v1/stable").sha == first
    assert ask(f"{server.url}/org/a/resolve/v1%2Fstable/a.txt").data == b"1"
    assert json.loads(ask(f"{server.url}/api/models/org/a/revision/HEAD").data)["sha"] == second
    refs = api.list_repo_refs("org/a")
    assert [(ref.name, ref.target_commit) for ref in refs.branches] == [("main", second)]
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1/stable", first)]
    assert [commit.commit_id for commit in api.list_repo_commits("org/a")] == [second, first]
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/a", revision="0" * 40)


def test_the_tree_is_walked_by_folders_and_pages(server, api):
    server.tree_page = 2
    files = {f"deep/er/{i}.txt": b"x" for i in range(3)} | LARGE | {"deep/a.txt": b"a"}
    server.add("org/a", files)

    def paths(**asked):
        return [entry.path for entry in api.list_repo_tree("org/a", **asked)]

    assert paths() == [".gitattributes", "deep", "model.safetensors"]
    assert paths(path_in_repo="deep") == ["deep/a.txt", "deep/er"]
    assert set(paths(recursive=True)) == {*files, ".gitattributes", "deep", "deep/er"}
    assert len(server.asked("GET", "/api/models/org/a/tree/main/?")) == 2 + 4
    found = {entry.path: entry for entry in api.list_repo_tree("org/a", expand=True)}
    assert found["model.safetensors"].lfs.sha256 == hashlib.sha256(DATA).hexdigest()
    assert found["model.safetensors"].last_commit.oid == server.repos["org/a"].head[0]
    with pytest.raises(EntryNotFoundError):
        paths(path_in_repo="none")
    some = api.get_paths_info("org/a", ["deep", "deep/a.txt", "none"])
    assert {entry.path for entry in some} == {"deep", "deep/a.txt"}


def test_file_metadata_comes_with_the_commit_even_where_there_is_no_file(server):
    sha = server.add("org/a", LARGE | {"a.txt": b"a"})
    url = f"{server.url}/org/a/resolve/main"
    large = get_hf_file_metadata(f"{url}/model.safetensors")
    assert (large.commit_hash, large.size) == (sha, len(DATA))
    assert large.etag == hashlib.sha256(DATA).hexdigest()
    assert large.location.startswith(server.storage_url)
    assert get_hf_file_metadata(f"{url}/a.txt").etag == hashlib.sha1(b"blob 1\0a").hexdigest()
    missing = ask(f"{url}/none.txt")
    assert (missing.status, missing.headers["X-Repo-Commit"]) == (404, sha)
    assert missing.headers["X-Error-Code"] == "EntryNotFound"
    pointer = ask(f"{server.url}/org/a/raw/main/model.safetensors").data
    assert hashlib.sha256(DATA).hexdigest().encode() in pointer


@pytest.mark.parametrize("path", ["model.safetensors", "small.txt"])
@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        ("bytes=0-0", 206, (0, 1)),
        ("bytes=100-199", 206, (100, 200)),
        ("bytes=10000-", 206, (10000, len(DATA))),
        ("bytes=-7", 206, (len(DATA) - 7, len(DATA))),
        ("bytes=0-999999", 206, (0, len(DATA))),
        ("bytes=0-1,5-6", 200, (0, len(DATA))),
        ("bytes=5-2", 200, (0, len(DATA))),
        (f"bytes={len(DATA)}-", 416, None),
    ],
)
def test_ranges(server, path, asked, status, span):
    server.add("org/a", LARGE | {"small.txt": DATA})
    url = located(server) if path in LARGE else f"{server.url}/org/a/resolve/main/{path}"
    answer = ask(url, Range=asked, Accept_Encoding="identity")
    assert answer.status == status
    if span is None:
        assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"
    else:
        assert answer.data == DATA[slice(*span)]
        wanted = f"bytes {span[0]}-{span[1] - 1}/{len(DATA)}" if status == 206 else None
        assert answer.headers["Content-Range"] == wanted


def test_conditions_on_the_etag_hold(server):
    server.add("org/a", LARGE)
    url = located(server)
    etag = ask(url).headers["ETag"]
    assert ask(url, If_None_Match=etag).status == 304
    whole = ask(url, Range="bytes=0-1", If_Range='"other"', Accept_Encoding="identity")
    assert (whole.status, whole.data) == (200, DATA)


def test_storage_that_may_compress_gives_the_whole_file(server):
    server.add("org/a", LARGE)
    url = located(server)
    assert ask(url, Range="bytes=0-1", Accept_Encoding="gzip, deflate").status == 200
    assert ask(url, Range="bytes=0-1", Accept_Encoding="gzip;q=0, identity").status == 206
    server.gzip_ignores_range = False
    assert ask(url, Range="bytes=0-1", Accept_Encoding="gzip").status == 206


def test_a_signed_url_expires_and_cannot_be_made_up(server):
    server.add("org/a", LARGE)
    url = located(server)
    assert ask(url).data == DATA
    assert ask(url.replace("Signature=", "Signature=0")).status == 403
    assert ask(url.replace("Expires=", "Expires=9")).status == 403
    server.clock = lambda: time.time() + 3601
    expired = ask(url)
    assert (expired.status, b"expired" in expired.data) == (403, True)
    assert "X-Error-Code" not in expired.headers
    assert ask(located(server)).status == 200
    server.signed_seconds = -1
    assert ask(located(server)).status == 403


def test_a_token_that_reaches_the_storage_is_seen(server):
    server.add("org/a", LARGE)
    url = located(server)
    assert server.leaks() == []
    ask(url, Authorization=f"Bearer {TOKEN}")
    assert [leak.path for leak in server.leaks()] == [urlsplit(url).path]


def test_a_file_on_disk_is_served_by_pieces(server, tmp_path):
    place = tmp_path / "weights"
    with place.open("wb") as file:
        file.seek(3_000_000_000)
        file.write(b"the end")
    oid = "0" * 64  # not hashed: that alone would take seconds
    server.keep(oid, place)
    url = signed(server.storage_url, f"/lfs/{oid}", int(time.time()) + 60)
    begin = time.process_time()
    assert ask(url, Range="bytes=3000000000-", Accept_Encoding="identity").data == b"the end"
    assert time.process_time() - begin < 1


def test_files_on_disk_are_repos_like_others(server, api, tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "model.safetensors").write_bytes(os.urandom(9 << 20))
    (repo / "config.json").write_bytes(b"{}")
    server.add("org/a", repo)
    held = server.repos["org/a"].head[1]
    assert held["model.safetensors"] == repo / "model.safetensors"
    assert held["config.json"] == b"{}"
    there = api.hf_hub_download("org/a", "model.safetensors", local_dir=tmp_path / "got")
    assert Path(there).read_bytes() == (repo / "model.safetensors").read_bytes()


def test_a_thousand_small_ranges_are_a_matter_of_a_second(server):
    server.add("org/a", LARGE)
    parts = urlsplit(located(server))
    connection = http.client.HTTPConnection(parts.netloc)
    begin = time.monotonic()
    for i in range(1000):
        headers = {"Range": f"bytes={i}-{i + 63}", "Accept-Encoding": "identity"}
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        assert connection.getresponse().read() == DATA[i : i + 64]
    assert time.monotonic() - begin < 20  # 0.3 s on an idle core; 44 s with Nagle's algorithm


# Writing


def test_a_commit_adds_replaces_and_deletes(server, api):
    api.create_repo("tester/made", private=True)
    first = api.create_commit(
        "tester/made",
        [
            CommitOperationAdd("model.safetensors", DATA),
            CommitOperationAdd("README.md", b"---\nlicense: mit\n---\nhello\n"),
            *(CommitOperationAdd(f"notes/{i}.txt", b"n") for i in range(3)),
        ],
        commit_message="all of it",
        commit_description="in one",
    )
    repo = server.repos["tester/made"]
    assert repo.private
    assert repo.head[0] == first.oid
    assert repo.head[1]["model.safetensors"] == DATA
    assert (repo.details[first.oid].title, repo.details[first.oid].message) == (
        "all of it",
        "in one",
    )
    gone = [
        CommitOperationDelete("notes/", is_folder=True),
        CommitOperationDelete("model.safetensors"),
    ]
    second = api.create_commit("tester/made", gone, commit_message="m", parent_commit=first.oid)
    assert set(repo.head[1]) == {".gitattributes", "README.md"}
    again = [CommitOperationAdd("model.safetensors", DATA)]
    server.log.clear()
    api.create_commit("tester/made", again, commit_message="m", parent_commit=second.oid)
    assert not server.asked("PUT", ".*", "storage")  # the object is still there
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("tester/made", gone, commit_message="m", parent_commit=first.oid)
    with pytest.raises(EntryNotFoundError):
        api.create_commit("tester/made", gone, commit_message="m")


def test_repos_are_created_once_and_deleted(server, api):
    url = api.create_repo("tester/made")
    assert url.repo_id == "tester/made"
    assert api.create_repo("tester/made", exist_ok=True).repo_id == "tester/made"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("tester/made")
    api.delete_repo("tester/made")
    assert not api.repo_exists("tester/made")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("tester/made")
    for name in ("tester/a--b", "tester/.hidden"):
        named = json.dumps({"name": name}).encode()
        url = f"{server.url}/api/repos/create"
        assert ask(url, "POST", body=named, Authorization=f"Bearer {TOKEN}").status == 400


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("license: mit", None),
        ("license: other\ntags: [merge]\nbase_model: [org/a, org/b]", None),
        ("license: my-own", "license"),
        ("base_model: not an id", "base_model"),
        ("base_model: [org/a, 3]", "base_model"),
        ("base_model_relation: cousin", "base_model_relation"),
        ("tags: merge: no", "mapping values"),
        ("- a list", "object"),
        ("model-index: {}", "model-index"),
        ("model-index: [{name: x}]", r"model-index\[0\].results"),
        ("model-index: [{name: x, results: [{task: {type: t}}]}]", "dataset.name"),
        (
            "model-index: [{name: x, results: [{task: {type: t}, dataset: {name: d, type: d},"
            " metrics: [{type: acc, value: 0.5}]}]}]",
            None,
        ),
    ],
)
def test_cards_that_the_hub_rejects_are_rejected(server, api, card, said):
    server.add("tester/a", {})
    readme = [CommitOperationAdd("README.md", f"---\n{card}\n---\ntext\n".encode())]
    if said is None:
        api.create_commit("tester/a", readme, commit_message="m")
    else:
        with pytest.raises((ValueError, BadRequestError), match=said):
            api.create_commit("tester/a", readme, commit_message="m")
    assert len(server.repos["tester/a"].commits) == (2 if said is None else 1)


# What goes wrong


def test_quotas_are_announced_and_held(server):
    server.add("org/a", {"a.txt": b"a"})
    now = [1000.0]
    server.clock = lambda: now[0]
    server.quota(api=2, resolvers=1)
    url = f"{server.url}/api/models/org/a"
    first, second, third = ask(url), ask(url), ask(url)
    assert [answer.status for answer in (first, second, third)] == [200, 200, 429]
    assert first.headers["RateLimit"] == '"api";r=1;t=300'
    assert first.headers["RateLimit-Policy"] == '"fixed window";"api";q=2;w=300'
    assert third.headers["RateLimit"] == '"api";r=0;t=300'
    assert ask(url, Authorization=f"Bearer {TOKEN}").status == 200
    assert ask(f"{server.url}/org/a/resolve/main/a.txt").headers["RateLimit"].startswith('"resol')
    now[0] += 301
    assert ask(url).status == 200


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("truncate", http.client.IncompleteRead),
        ("stall", TimeoutError),
        ("stall-body", TimeoutError),
        ("reset", ConnectionResetError),
        ("reset-body", ConnectionResetError),
        ("trickle", (206, None)),
        ("range-ignored", (200, DATA)),
        ("wrong-range", (206, DATA[10:20])),
        ("expire", (403, None)),
        ("html", (200, b"<html>back soon</html>")),
        ("status", (503, None)),
        ("redirect", (302, b"")),
        ("pass", (206, DATA[10:20])),
        ("changed", (206, DATA[10:20])),
        ("corrupt", (206, DATA[10:15] + bytes([DATA[15] ^ 1]) + DATA[16:20])),
    ],
)
def test_a_fault_does_what_it_says_once(server, action, seen):
    server.add("org/a", LARGE)
    url = located(server)
    fault = server.fault("/lfs/.*", action, headers={"X-Laid": "yes"})

    def read():
        return ask(url, timeout=30, Range="bytes=10-19", Accept_Encoding="identity")

    if isinstance(seen, tuple):
        answer = read()
        assert answer.status == seen[0]
        assert seen[1] is None or answer.data == seen[1]
        span = "bytes 11-20/10240" if action == "wrong-range" else "bytes 10-19/10240"
        assert answer.headers["Content-Range"] == (span if seen[0] == 206 else None)
        assert ("e" * 64 in answer.headers["ETag"] if action == "changed" else True) is True
        assert answer.headers["X-Laid"] == "yes"
    else:
        with pytest.raises(seen):
            ask(url, timeout=1, Range="bytes=10-19", Accept_Encoding="identity")
    assert fault.done == 1
    assert read().data == DATA[10:20]


def test_a_redirect_to_another_origin_leads_to_a_server_that_sees_who_comes(server):
    server.add("org/a", LARGE)
    server.fault("/api/models/org/a", "redirect")
    target = ask(f"{server.url}/api/models/org/a").headers["Location"]
    assert target.startswith(server.elsewhere_url)
    assert json.loads(ask(target, Authorization=f"Bearer {TOKEN}").data)["id"] == "org/a"
    assert [(leak.server, leak.path) for leak in server.leaks()] == [
        ("elsewhere", "/api/models/org/a")
    ]


def test_answers_can_be_made_malformed(server):
    server.add("org/a", {}, {"tags": ["t"]})
    url = f"{server.url}/api/models/org/a"
    server.fault("/api/models/org/a", "json")
    with pytest.raises(json.JSONDecodeError):
        json.loads(ask(url).data)
    server.fault("/api/models/org/a", "tags-null")
    assert json.loads(ask(url).data)["tags"] is None
    server.fault("/api/models/org/a", "card")
    assert json.loads(ask(url).data)["cardData"] == "not an object"
    server.fault("/api/models/org/a", "edit", edit=lambda row: row | {"sha": 3})
    assert json.loads(ask(url).data)["sha"] == 3
    assert json.loads(ask(url).data)["tags"] == ["t"]
    with pytest.raises(ValueError, match="no fault 'explode'"):
        server.fault(".*", "explode")


def test_faults_can_wait_for_their_request_and_last(server):
    server.add("org/a", {})
    server.fault("/api/.*", status=500, skip=2, n=-1)
    url = f"{server.url}/api/models/org/a"
    assert [ask(url).status for _ in range(5)] == [200, 200, 500, 500, 500]
    server.calm()
    assert ask(url).status == 200


def outcomes(seed: int, workers: int, **asked) -> Counter:
    """What became of 120 requests that threads sent in any order."""
    with HubServer() as server:
        family(server, 12)
        server.chaos(seed, 0.3, ("500", "429", "html"), **asked)
        urls = [f"{server.url}/api/models/org/m{i % 12}" for i in range(120)]
        with ThreadPoolExecutor(workers) as pool:
            answers = list(pool.map(ask, urls))
        kinds = [(a.status, a.headers["Content-Type"]) for a in answers]
        paths = [urlsplit(url).path for url in urls]
        return Counter(zip(paths, kinds, strict=True))


def test_chaos_is_the_same_whoever_comes_first():
    one = outcomes(7, workers=1)
    failed = sum(count for (_, kind), count in one.items() if kind != GOOD)
    assert 18 <= failed <= 54  # 36 expected, three standard deviations
    assert outcomes(7, workers=6) == one
    assert outcomes(8, workers=1) != one


def test_chaos_can_spare_those_who_try_again(server):
    server.add("org/a", {})
    chaos = server.chaos(1, 1.0, ("500",), streak=2)
    url = f"{server.url}/api/models/org/a"
    assert [ask(url).status for _ in range(6)] == [500, 500, 200, 500, 500, 200]
    assert chaos.failed == {"500": 4}


def test_a_lost_answer_is_of_a_request_that_was_done(server, api):
    server.add("tester/a", {})
    server.fault(".*/commit/main", "lost", method="POST", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        api.create_commit("tester/a", [CommitOperationAdd("a", b"a")], commit_message="m")
    assert server.repos["tester/a"].head[1]["a"] == b"a"


def test_a_server_that_has_ended_answers_nobody(server):
    server_url = server.url
    connection = http.client.HTTPConnection(urlsplit(server_url).netloc, timeout=60)
    connection.request("GET", "/api/models")
    connection.getresponse().read()
    server.__exit__()
    for ask_again in (lambda: connection.request("GET", "/"), lambda: ask(server_url)):
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask_again(), connection.getresponse()


def test_it_runs_by_hand(tmp_path):
    place = tmp_path / "repos" / "org" / "a"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    words = [sys.executable, "-m", "hub_server", str(tmp_path / "repos")]
    with subprocess.Popen(
        words, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            settings = dict(word.split("=", 1) for word in process.stdout.readline().split())
            assert "1 repos" in process.stdout.readline()
            api = HfApi(settings["HF_ENDPOINT"], token=settings["HF_TOKEN"])
            assert [model.id for model in api.list_models()] == ["org/a"]
            assert api.whoami()["name"] == "tester"
        finally:
            process.terminate()


def test_times_of_repos_are_settable(server, api):
    moment = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    server.add("org/a", {}, modified=moment)
    assert api.model_info("org/a").last_modified == moment
