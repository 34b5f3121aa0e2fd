"""Limits of the disk: who makes room for whom, who never does, and that nothing is lost by it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hub_daemon
import tiny
import turns
from hub_daemon import BASE, CARD, NOON, opened, states, statuses, told
from hub_server import HubServer
from kinship_daemon import cycle, file_cache
from kinship_daemon.durable import changed_ns
from kinship_daemon.errors import LeafGone, Stopped
from kinship_daemon.file_cache import FileCache, NoRoom
from kinship_daemon.steps import assemblies, publish
from kinship_daemon.verify import problems
from kinship_daemon.weights.recipe import Recipe
from kinship_storage.records import Gate, Generation, Model, Publication, Score
from small_lineage import open_lineage
from test_adapter import adapter

DAY = timedelta(days=1)
NAMES = ("a", "b", "c", "d", "e")
NEXT = "next"  # what room is made for; nothing of it is here
# Besides models: the lineage with its log, the ledger, logs.
_REST = 5_000_000


@pytest.fixture(autouse=True)
def _online():
    with hub_daemon.online():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and five fine-tunes of 10 MB, beside which nothing else in a home counts."""
    place = tmp_path_factory.mktemp("large")
    found = {"base": tiny.base(place / "base", hidden=512)}
    for seed, name in enumerate(NAMES):
        found[name] = tiny.finetune(found["base"], place / name, seed=seed)
    return found


@pytest.fixture(scope="module")
def size(folders):
    return sum(path.stat().st_size for path in folders["a"].iterdir())


@pytest.fixture
def server(folders):
    with HubServer() as running:
        running.add(BASE, folders["base"], {"license": "apache-2.0"})
        yield running


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def models(count, size):
    """limits.disk_gb for so many models, the base among them."""
    return {"limits__disk_gb": (count * size + _REST) / 1e9, "triage__sample": 0}


def release(server, folders, *names):
    for name in names:
        server.add(f"org/{name}", folders[name], CARD)


def grow(d):
    """A look at the hub and a read of the weights."""
    turns.poll(d)
    turns.take(d, "refetch", "ledger")


def scored(d, *names):
    """As if they had been evaluated, in this order."""
    for name in names:
        model = d.lineage.require(f"org/{name}")
        d.lineage.add_scores(
            [
                Score(
                    weights=model.weights,
                    task="t",
                    split="selection",
                    settings=d.settings.fingerprint("selection"),
                    metric="acc",
                    task_version="1",
                    score=0.5,
                    stderr=0.1,
                    n=2,
                    seed=0,
                    harness="none",
                    samples=((0, 0.0), (1, 1.0)),
                )
            ]
        )
        assemblies.assembly(d, model)


def merged(d, *parents, name="model-1-1", status="admitted"):
    recipe = Recipe("slerp", tuple(f"org/{parent}" for parent in parents), {"t": 0.5})
    weights = [d.lineage.require(parent).weights for parent in recipe.parents]
    d.lineage.add_model(
        Model(
            id=name,
            kind="merge",
            status="proposed",
            generation=1,
            weights=recipe.identity(weights),
            recipe=recipe.to_json(),
            parents=recipe.parents,
        )
    )
    if status == "admitted":
        d.lineage.move_model(name, "admit")
    if status == "quarantined":
        d.lineage.move_model(name, "quarantine", reason="odd", cause="model")
    return d.lineage.require(name)


def on_disk(d):
    """Fine-tunes whose files are here, as the lineage has it; it has to be right about that."""
    found = set()
    for name, status in statuses(d).items():
        folder = d.lineage.require(name).folder
        assert folder is None or status != "admitted" or (Path(folder) / "config.json").is_file()
        if folder is not None and Path(folder).exists():
            found.add(name.removeprefix("org/"))
    return found


@pytest.fixture
def full(server, home, folders, size):
    """Room for the base and four; a, b and c are here, and were evaluated in that order."""
    release(server, folders, "a", "b", "c")
    with opened(server, home, **models(5, size)) as d:
        grow(d)
        scored(d, "a", "b", "c")
        merged(d, "a", "b", name=NEXT, status="quarantined")
        yield d


def test_without_a_need_for_room_nobody_goes(full, size):
    full.files.make_room(size // 2, "org/a")
    assert on_disk(full) == {"a", "b", "c"}


def test_the_least_recently_needed_goes_first(full, size):
    scored(full, "a")  # needed once more
    full.files.make_room(2 * size, NEXT)
    assert on_disk(full) == {"a", "c"}
    assert told(full, "evict") == ["org/b makes room; fetched again if needed"]
    assert statuses(full) == {"org/a": "admitted", "org/b": "admitted", "org/c": "admitted"}
    assert full.base_folder.exists()


def test_a_look_whether_everyone_is_unchanged_is_no_need(full, size):
    scored(full, "a")
    turns.take(full, "refetch", "ledger")
    full.files.make_room(2 * size, NEXT)
    assert on_disk(full) == {"a", "c"}


def test_nothing_is_removed_where_it_would_not_be_enough(full, size):
    with pytest.raises(NoRoom, match=r"limits\.disk_gb"):
        full.files.make_room(6 * size, NEXT)
    assert on_disk(full) == {"a", "b", "c"}
    assert told(full, "evict") == []


def proposed(d):
    merged(d, "a", "b", status="proposed")


def of_the_top(d):
    merged(d, "a", "b")
    top = {"merges": [], "top": ["model-1-1"], "top_mean_kinship": None, "stop": "enough"}
    decision = Generation(1, None, "p", {}, 0, top, "enough", "converged")
    d.lineage.add_generation(decision, {"members": []})


def passed(d):
    merged(d, "a", "b")
    verdict = {"against": "org/a", "passed": True, "gain": 1.0, "low": 0.5, "high": 2.0, "n": 9}
    evaluation = d.settings.fingerprint("validation")
    d.lineage.add_gate(Gate(model="model-1-1", evaluation=evaluation, reason="", **verdict))


def gone(d):
    for name in ("org/a", "org/b"):
        d.lineage.update_candidate(name, gone=True)


@pytest.mark.parametrize("reason", [proposed, of_the_top, passed, gone], ids=lambda f: f.__name__)
def test_who_is_needed_stays(reason, full, size):
    reason(full)
    full.files.make_room(2 * size, NEXT)
    assert on_disk(full) == {"a", "b"}
    with pytest.raises(NoRoom):
        full.files.make_room(3 * size, NEXT)
    assert on_disk(full) == {"a", "b"}


def test_who_is_at_work_stays(full, size):
    with full.files.holding("org/a", "org/b"):
        full.files.make_room(2 * size, NEXT)
        assert on_disk(full) == {"a", "b"}


def test_who_has_no_scores_under_these_settings_stays(server, home, folders, size):
    release(server, folders, "a", "b", "c")
    with opened(server, home, **models(5, size)) as d:
        grow(d)
        scored(d, "c")
        merged(d, "a", "b", name=NEXT, status="quarantined")
        d.files.make_room(2 * size, NEXT)
        assert on_disk(d) == {"a", "b"}


def published(d):
    passed(d)
    d.lineage.add_publication(Publication(model="model-1-1", repo="us/x", revision="0", url="u"))


def blocked(d):
    passed(d)
    d.lineage.update_model("model-1-1", not_published="publish.namespace is not set")


def made_and_left(d):
    merged(d, "a", "b")


@pytest.mark.parametrize("reason", [published, blocked, made_and_left], ids=lambda f: f.__name__)
def test_who_is_needed_no_more_may_go(reason, full, size):
    reason(full)
    full.files.make_room(4 * size, NEXT)
    assert on_disk(full) == set()


def test_leftovers_go_first(full, size):
    full.lineage.move_model("org/c", "quarantine", reason="odd", cause="model")
    stale = full.home.cache / "org--nobody" / ".0123.part"
    shutil.copytree(full.home.cache / "org--c", stale / "copy")
    full.files.make_room(size // 2 + size, NEXT)
    assert not stale.exists()
    assert on_disk(full) == {"a", "b"}
    assert full.lineage.require("org/c").folder is None


def test_what_has_arrived_of_a_model_takes_no_room_twice(server, home, folders, size):
    release(server, folders, "a")
    with opened(server, home, **models(2, size)) as d:
        server.fault("/lfs/.*", "truncate", server="storage", n=-1)
        cycle.runner(d).loop(d.now(), look=True)
        d.lineage.update_candidate("org/a", triaged=True)
        turns.take(d, "admit")
        (waiting,) = d.lineage.jobs("waiting", kind="admit")
        assert "org/a" in waiting.reason
        arrived = d.files.bytes_on_disk("org/a")
        assert size / 3 < arrived < size
        assert abs(d.spent("download_bytes") - arrived) < 1000
        server.calm()
        turns.wait_a_little(d)
        grow(d)
        assert statuses(d) == {"org/a": "admitted"}
        assert d.spent("download_bytes") == d.files.bytes_on_disk("org/a")


def test_newcomers_that_find_no_room_wait_and_do_not_make_the_others_wait(
    server, home, folders, size, tmp_path
):
    release(server, folders, "a", "b", "c")
    with opened(server, home, **models(3, size)) as d:
        grow(d)
        assert sorted(statuses(d).values()) == ["admitted", "admitted", "seen"]
        assert any("limits.disk_gb" in warning for warning in told(d, "warning"))
        assert len(d.ledger.rows) == 2
        adapter(folders["base"], tmp_path / "lora", target_modules=["q_proj"])
        server.add("org/lora", tmp_path / "lora", CARD | {"base_model_relation": "adapter"})
        grow(d)
        assert statuses(d)["org/lora"] == "admitted"


def test_newcomers_leave_room_for_those_they_are_measured_against(server, home, folders, size):
    """Else three would fill the disk, never be measured, hence never evaluated, and never go."""
    release(server, folders, "a", "b")
    with opened(server, home, **models(4, size)) as d:
        grow(d)
        scored(d, "a", "b")
        release(server, folders, "c", "d", "e")
        grow(d)
        assert statuses(d) == {f"org/{n}": "seen" if n == "e" else "admitted" for n in NAMES}
        assert len(d.ledger.rows) == 4
        scored(d, "c", "d")
        grow(d)
        assert set(statuses(d).values()) == {"admitted"}
        assert len(d.ledger.rows) == 5


def kinships(d):
    return assemblies.kinship_matrix(d, d.lineage.models("finetune", "admitted"), "pcc")


def one_by_one(server, home, folders, count, size):
    """Each is evaluated before the next comes; the ledger, and who was fetched again."""
    with opened(server, home, **models(count, size)) as d:
        for number, name in enumerate(NAMES):
            release(server, folders, name)
            d.now.now = NOON + number * DAY
            grow(d)
            assert statuses(d)[f"org/{name}"] == "admitted"
            assert d.home.used_bytes() <= d.config.limits.disk_gb * 1e9
            scored(d, name)
        assert problems(d.home, d.lineage).problems == ()
        return d.home.ledger.read_bytes(), kinships(d), told(d, "evict")


@pytest.fixture
def hubs(folders):
    """Two alike, so that one home does not see what the other one's came to."""
    with HubServer() as one, HubServer() as other:
        for running in (one, other):
            running.add(BASE, folders["base"], {"license": "apache-2.0"})
        yield one, other


def test_the_ledger_is_bit_for_bit_that_of_a_home_with_a_large_disk(hubs, tmp_path, folders, size):
    small = one_by_one(hubs[0], tmp_path / "small", folders, 4, size)
    large = one_by_one(hubs[1], tmp_path / "large", folders, 40, size)
    assert small[0] == large[0]
    assert small[1] == large[1]
    assert large[2] == []
    assert len(small[2]) > 3


def test_a_ledger_that_was_removed_is_measured_again_though_not_all_fit_on_the_disk(
    server, home, folders, size
):
    before = one_by_one(server, home, folders, 4, size)
    (home / "ledger.safetensors").unlink()
    with opened(server, home, **models(4, size)) as d:
        assert d.ledger.rows == ()
        turns.take(d, "refetch", "ledger")
        assert len(d.ledger.rows) == len(NAMES)
        assert kinships(d) == before[1]


def test_a_merge_of_those_who_made_room_fetches_them_all_and_keeps_them(
    server, home, folders, size
):
    one_by_one(server, home, folders, 4, size)
    with opened(server, home, **models(4, size)) as d:
        away = [name for name in NAMES if name not in on_disk(d)]
        assert len(away) >= 2
        child = merged(d, *away[:2])
        weights = assemblies.assembly(d, child).open()
        assert set(away[:2]) <= on_disk(d)
        assert d.home.used_bytes() <= d.config.limits.disk_gb * 1e9
        norm = next(iter(weights.blocks("model.norm.weight", torch.float32, torch.device("cpu"))))
        assert torch.isfinite(norm).all()


def test_one_that_made_room_and_is_gone_takes_its_merges_with_it_and_the_others_go_on(
    server, home, folders, size
):
    one_by_one(server, home, folders, 4, size)
    with opened(server, home, **models(4, size)) as d:
        away = next(name for name in NAMES if name not in on_disk(d))
        kept = next(name for name in NAMES if name in on_disk(d))
        merged(d, away, kept)
        server.delete(f"org/{away}")
        with pytest.raises(LeafGone, match="gone"):
            d.files.folder(d.lineage.require(f"org/{away}"))
        tiny.finetune(folders["base"], home.parent / "new", seed=99)
        server.add("org/new", home.parent / "new", CARD)
        grow(d)
        found = states(d)
        assert found["org/new"] == ("admitted", None)
        assert found[f"org/{away}"][0] == "quarantined"
        assert "gone" in found[f"org/{away}"][1]
        assert d.lineage.require("model-1-1").status == "quarantined"
        assert len(d.ledger.rows) == len(NAMES)


def test_what_is_held_is_held_until_the_outermost_lets_go(full, size):
    with full.files.holding("org/a"):
        with full.files.holding("org/a", "org/b"):
            pass
        full.files.make_room(3 * size, NEXT)
        assert on_disk(full) == {"a"}
    full.files.make_room(4 * size, NEXT)
    assert on_disk(full) == set()


_KILLED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import hub_daemon
from kinship_daemon import file_cache

def half(folder):
    (folder / "model.safetensors").unlink()
    os.kill(os.getpid(), signal.SIGKILL)

file_cache.shutil.rmtree = half
server = type("Elsewhere", (), {{"url": {url!r}}})
with hub_daemon.online(), hub_daemon.opened(server, Path({home!r}), limits__disk_gb={disk}) as d:
    d.files.make_room({size}, "next")
"""


def test_a_kill_amid_an_eviction_heals(server, home, folders, size):
    release(server, folders, "a", "b", "c")
    limits = models(5, size)
    with opened(server, home, **limits) as d:
        grow(d)
        scored(d, "a", "b", "c")
        merged(d, "a", "b", name=NEXT, status="quarantined")
    script = _KILLED.format(
        tests=str(Path(__file__).parent),
        url=server.url,
        home=str(home),
        disk=limits["limits__disk_gb"],
        size=2 * size,
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with opened(server, home, **limits) as d:
        assert (home / "cache" / "org--a").exists()
        assert on_disk(d) == {"b", "c"}
        assert problems(d.home, d.lineage).problems == ()
        before = len(server.asked("GET", "/org/a/resolve/.*"))
        assemblies.assembly(d, d.lineage.require(NEXT))
        assert on_disk(d) == {"a", "b", "c"}
        # Only the file that was removed.
        assert len(server.asked("GET", "/org/a/resolve/.*")) == before + 1


def test_a_download_is_hashed_as_it_comes_and_not_once_more(
    server, home, folders, size, monkeypatch
):
    hashed = []
    real = file_cache.hash_file
    monkeypatch.setattr(
        file_cache, "hash_file", lambda path, stop=None: hashed.append(path) or real(path, stop)
    )
    release(server, folders, "a")
    with opened(server, home, **models(5, size)) as d:
        grow(d)
        assert statuses(d) == {"org/a": "admitted"}
        (weights,) = [f for f in d.lineage.files("org/a") if f.path == "model.safetensors"]
        folder = d.files.folder(d.lineage.require("org/a"))
        assert file_cache.hash_file(folder / weights.path) == weights.sha256
    assert [path for path in hashed if "org--a" in str(path)] == [folder / weights.path]


def test_a_stop_is_heard_while_a_file_is_hashed(tmp_path):
    large, stop = tmp_path / "large", threading.Event()
    os.mkfifo(large)  # it ends when somebody says so

    def feed():
        with large.open("wb") as file, suppress(BrokenPipeError):
            file.write(bytes(100_000))
            stop.set()
            file.write(bytes(10_000_000))

    with open_lineage(tmp_path / "lineage.db") as lineage:
        sha256 = file_cache.FileHashes(lineage, stop)
        writer = threading.Thread(target=feed)
        writer.start()
        with pytest.raises(Stopped):
            sha256(large)
        writer.join()
        with pytest.raises(Stopped):
            sha256(tmp_path / "small")


def test_hashes_of_small_files_are_written_down_many_at_a_time(server, home, tmp_path, monkeypatch):
    paths = [tmp_path / f"small-{number}" for number in range(250)]
    for path in paths:
        path.write_text(path.name)
    written = []
    with opened(server, home) as d:
        remember = d.lineage.remember_hashes
        monkeypatch.setattr(
            d.lineage, "remember_hashes", lambda new: written.append(1) or remember(new)
        )
        sha256 = file_cache.FileHashes(d.lineage)
        found = [sha256(path) for path in paths]
        assert len(written) == 2
        paths[0].write_text("changed")
        assert sha256(paths[0]) != found[0]
        assert [sha256(path) for path in paths[1:]] == found[1:]
    with opened(server, home) as d:
        # The last fifty were not written down, as after a kill: they are hashed again.
        monkeypatch.setattr(file_cache, "hash_file", lambda path, _stop: f"again {path.name}")
        sha256 = file_cache.FileHashes(d.lineage)
        again = [sha256(path).startswith("again") for path in paths[1:]]
    assert again == [False] * 199 + [True] * 50


@pytest.mark.parametrize("year", [1905, 1969, 2261, 2263, 2400])
def test_a_file_of_any_year_is_hashed_once(tmp_path, monkeypatch, year):
    """From 2262 on nanoseconds since 1970 are more than SQLite has bits for."""
    file = tmp_path / "file"
    file.write_bytes(b"x")
    os.utime(file, (round((year - 1970) * 365.2425 * 86400),) * 2)
    with open_lineage(tmp_path / "lineage.db") as lineage:
        monkeypatch.setattr(file_cache, "_MANY", 1)
        found = file_cache.FileHashes(lineage)(file)
        stat = file.stat()
        assert lineage.file_hash(file, stat.st_size, changed_ns(stat)) == found
        monkeypatch.setattr(file_cache, "hash_file", None)
        assert file_cache.FileHashes(lineage)(file) == found


def test_a_merge_on_its_way_to_the_hub_makes_room_and_keeps_what_it_is_made_of(
    server, home, folders, size, monkeypatch
):
    release(server, folders, *"abcd")
    monkeypatch.setattr(publish, "model_card", lambda _: "the card")
    facts = SimpleNamespace(made_file="a.yaml", made="", collapsed_file="b.yaml", collapsed="")
    facts.factors_file = "factors.csv"

    def staged(d, child, most):
        """As if limits.disk_gb were lower by now, and nobody else had to stay."""
        disk_gb = models(most, size)["limits__disk_gb"]
        shared = {"sha256": d.files.sha256, "keep": set, "day": lambda: d.today}
        files = FileCache(d.home, d.hub, d.lineage, d.report, disk_gb=disk_gb, **shared)
        stage = d.home.staging / "us" / f"merge-{most}"
        publish._prepare(replace(d, files=files), child, facts, stage)
        assert (stage / "README.md").exists()
        return d.home.used_bytes() <= disk_gb * 1e9

    with opened(server, home, **models(6, size)) as d:
        grow(d)
        scored(d, *"abcd")
        child = merged(d, "a", "b")
        with pytest.raises(NoRoom, match="no room for model-1-1"):
            staged(d, child, 3)
        assert on_disk(d) == set("abcd")
        assert staged(d, child, 4)
        assert on_disk(d) == {"a", "b"}
