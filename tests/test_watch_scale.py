"""Ten thousand fine-tunes watched, and large ones looked into: memory, requests and bytes."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import huggingface_hub
import pytest

import demo_hub
import large
import turns
from hub_server import START, HubServer
from kinship_daemon.durable import hash_file
from poll_memory import opened

pytestmark = pytest.mark.slow

BASE = "org/base"
DESCENT = {"base_model": BASE, "base_model_relation": "finetune", "license": "apache-2.0"}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MANY = 10_000
OPEN = 20  # one of so many is not refused at a glance
A_DAY = 3


@pytest.fixture(scope="module", autouse=True)
def _online():
    """The other tests run with HF_HUB_OFFLINE; these servers are at home."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield


@pytest.fixture(scope="module")
def server(tiny_base):
    """Quantised copies mostly, as it is. Only the base has files."""
    with HubServer() as running:
        running.add(BASE, tiny_base, {"license": "apache-2.0"})
        for number in range(MANY):
            word = "Instruct" if number % OPEN == 0 else "GGUF"
            card = DESCENT | {"tags": ["text-generation", f"dataset-{number % 700}"]}
            name = f"maker{number % 900}/Model-{word}-{number:05d}"
            running.add(name, {}, card, downloads=number % 1000)
        yield running


@contextmanager
def watched(server, home, *overrides, now=NOON):
    a_day = f"limits.candidates_per_day={A_DAY}"
    with opened(server.url, home, BASE, a_day, *overrides, now=lambda: now) as d:
        yield d


def polled(d, server):
    """What one poll asks."""
    server.log.clear()
    turns.poll(d)
    return list(server.log)


@dataclass
class First:
    """What the first poll did: the home it left, what it asked, and how many are in each state."""

    home: Path
    log: list
    counts: dict


@pytest.fixture(scope="module")
def first(server, tmp_path_factory):
    home = tmp_path_factory.mktemp("watch") / "home"
    with watched(server, home) as d:
        log = polled(d, server)
        counts = {
            "all": len(d.lineage.candidates()),
            "refused": len(d.lineage.candidates("refused")),
            "waiting": len(d.lineage.candidates("seen", triaged=False)),
        }
    return First(home, log, counts)


@pytest.fixture
def home(first, tmp_path):
    """As the first poll left it, for one test to go on with."""
    return shutil.copytree(first.home, tmp_path / "home")


@contextmanager
def visitor(server, name, files, **attributes):
    """One more repo, for a while."""
    server.add(name, files, DESCENT, **attributes)
    try:
        yield name
    finally:
        server.delete(name)


def split(log):
    """Requests for listings, and the others."""
    listings = [request for request in log if request.path == "/api/models"]
    return listings, [request for request in log if request.path != "/api/models"]


def test_everyone_is_written_down_and_most_are_refused_at_a_glance(first):
    open_ = MANY // OPEN
    # Those that a day allows were looked into; they have no weights.
    assert first.counts == {"all": MANY, "refused": MANY - open_ + A_DAY, "waiting": open_ - A_DAY}
    listings, looks = split(first.log)
    assert len(listings) == 2 * MANY // 1000 + 1
    # Whoever is refused is looked at twice, in case the hub was wrong.
    assert len({request.path for request in looks}) == A_DAY
    assert len(looks) == 2 * A_DAY


def test_a_first_poll_of_ten_thousand_takes_less_than_300_mb(server, tmp_path):
    script = Path(__file__).with_name("poll_memory.py")
    done = subprocess.run(
        [sys.executable, script, server.url, tmp_path / "home", BASE],
        env=demo_hub.environment(tmp_path, server),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["seen"] == MANY
    assert measured["peak"] - measured["before"] < 300


def test_a_poll_with_nothing_new_is_one_request_also_after_a_restart(server, home):
    for _ in range(2):
        with watched(server, home) as d:
            for _ in range(2):
                (request,) = polled(d, server)
                assert (request.method, request.path) == ("GET", "/api/models")
                assert request.query["filter"] == [f"base_model:{BASE}"]
                assert int(request.query["limit"][0]) <= 100
            assert len(d.lineage.candidates()) == MANY


def test_after_one_change_only_that_candidate_is_asked_for(server, home, tiny_finetunes):
    tomorrow = NOON + timedelta(days=1)
    budget = ("limits.candidates_per_day=1", "watch.relist_hours=48")
    popular = visitor(server, "new/comer", tiny_finetunes[0], downloads=10**6)
    with popular as name, watched(server, home, *budget, now=tomorrow) as d:
        log = polled(d, server)
        assert d.lineage.require(name).status == "admitted"
    listings, others = split(log)
    assert len(listings) == 1
    weights = f"/lfs/{hash_file(tiny_finetunes[0] / 'model.safetensors')}"
    assert {request.path for request in others if request.server == "storage"} == {weights}
    assert all(name in request.path for request in others if request.server == "hub")


def test_a_change_that_the_listing_shows_late_is_noticed(server, home):
    with watched(server, home) as d:
        newest = datetime.fromisoformat(d.lineage.get("watch")["modified"])
        lagging = newest - timedelta(minutes=d.config.watch.overlap_minutes / 2)
        with visitor(server, "late/lagging", {}, modified=lagging) as name:
            assert len(polled(d, server)) == 1
            assert d.lineage.require(name).status == "seen"
            assert len(polled(d, server)) == 1
        assert datetime.fromisoformat(d.lineage.get("watch")["modified"]) == newest


def test_who_was_tagged_late_and_who_is_gone_shows_when_everyone_is_listed_again(server, home):
    gone = f"maker0/Model-Instruct-{900 * OPEN // 20:05d}"
    stored = server.repos[gone]
    with visitor(server, "late/tagged", {}, modified=START) as name:
        server.delete(gone)
        try:
            with watched(server, home) as d:
                assert len(polled(d, server)) == 1
                assert d.lineage.model(name) is None
                assert d.lineage.require(gone).status == "seen"
            later = NOON + timedelta(hours=7)
            with watched(server, home, "watch.relist_hours=6", now=later) as d:
                listings, others = split(polled(d, server))
                assert len(listings) > 2 * MANY // 1000
                assert [gone in request.path for request in others] == [True]
                assert d.lineage.require(name).status == "seen"
                assert d.lineage.require(gone).status == "refused"
                assert "gone" in d.lineage.require(gone).reason
                assert d.lineage.candidate(gone).gone
                # And the next look is one page again.
                assert len(polled(d, server)) == 1
        finally:
            server.repos[gone] = stored


SHARE = 0.005  # of a candidate's size, read for triage at most
ADMITTED = "org/admitted"


@dataclass
class Large:
    """A hub of large models, a home that has looked into them, and their folders by name."""

    server: HubServer
    home: Path
    folders: dict
    log: list

    @contextmanager
    def daemon(self):
        """One admission a day."""
        limit = "limits.download_gb_per_day=0.2"
        with opened(self.server.url, self.home, BASE, limit, now=lambda: NOON) as d:
            yield d

    def files(self, name):
        return self.server.repos[name].facts.blobs

    def weights(self, name):
        return {f"/lfs/{b.sha256}": b.size for p, b in self.files(name).items() if b.lfs}

    def read(self, name):
        """Bytes that were sent of a repo's files."""
        places = self.weights(name).keys()
        sent = [r for r in self.log if r.path in places or r.path.startswith(f"/{name}/")]
        assert sent
        assert all("range" in request.headers for request in sent)
        return sum(map(demo_hub.bytes_sent, sent))


@pytest.fixture(scope="module")
def bulky(tmp_path_factory):
    """One is admitted, the day's downloads are spent, the others wait with what a sample told."""
    scratch = tmp_path_factory.mktemp("large")
    folders = {name: scratch / name for name in ("base", "admitted", "near", "far", "foreign")}
    origin = large.base(folders["base"])
    common = large.shared(1)
    for seed, (name, part) in enumerate((("admitted", 0.9), ("near", 0.9), ("foreign", 0.7)), 2):
        large.finetune(folders[name], origin, common, part, seed)
    large.finetune(folders["far"], origin, common, 0.3, 9, shards=2)
    for name, folder in folders.items():
        word = "other" if name == "foreign" else "token"
        chat = "{{ messages }}" * 3000 if name == "far" else None
        large.tokenizer(folder, word, chat_template=chat)
    with HubServer() as server:
        for name, folder in folders.items():
            card = DESCENT if name != "base" else {"license": "apache-2.0"}
            server.add(f"org/{name}", folder, card, downloads=10**6 if name == "admitted" else 0)
        found = Large(server, scratch / "home", folders, [])
        with found.daemon() as d:
            turns.take(d, "watch")
            server.log.clear()
            turns.take(d, "triage")
            found.log = list(server.log)
            turns.take(d, "admit")
        yield found


@pytest.mark.parametrize("name", ["admitted", "near", "far", "foreign"])
def test_triage_reads_at_most_half_a_percent_of_a_large_candidate(name, bulky):
    name = f"org/{name}"
    size = sum(bulky.weights(name).values())
    assert 100e6 < size < 110e6
    assert bulky.files(name)["tokenizer.json"].size > 2e6
    read = bulky.read(name)
    assert 0 < read <= SHARE * size
    with bulky.daemon() as d:
        candidate = d.lineage.candidate(name)
    assert candidate.bytes == size
    assert read <= candidate.read_bytes <= SHARE * size


@pytest.mark.parametrize(("name", "expected"), [("near", 0.81), ("far", 0.27), ("foreign", 0.63)])
def test_the_novelty_of_a_large_candidate_is_close_to_the_truth(name, expected, bulky):
    truth = large.pearson(*(bulky.folders[other] for other in ("base", "admitted", name)))
    assert truth == pytest.approx(expected, abs=0.01)
    with bulky.daemon() as d:
        assert d.lineage.require(ADMITTED).status == "admitted"
        assert d.lineage.require(f"org/{name}").status == "seen"
        candidate = d.lineage.candidate(f"org/{name}")
    assert candidate.novelty == pytest.approx(1 - truth, abs=4 * candidate.novelty_error)
    assert 0 < candidate.novelty_error < 0.03


def test_a_copy_of_an_admitted_model_is_refused_without_a_range(bulky):
    with bulky.daemon() as d:
        bulky.server.add("org/copy", bulky.folders["admitted"], DESCENT | {"tags": ["mine"]})
        log = polled(d, bulky.server)
        model = d.lineage.require("org/copy")
        candidate = d.lineage.candidate("org/copy")
    assert (model.status, model.reason) == ("refused", f"the same weights as {ADMITTED}")
    assert candidate.read_bytes == 0
    _, others = split(log)
    own = [request for request in others if "org/copy" in request.path]
    assert [request.path.split("/")[1] for request in own] == ["api"]
    assert not [r for r in log if r.server == "storage" or "range" in r.headers]


def chatty(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    text = json.dumps(settings | {"chat_template": "x" * 3_000_000})
    (folder / "tokenizer_config.json").write_text(text)


def terse(folder):
    large.tokenizer(folder, "token", 1500)


@pytest.mark.parametrize(("change", "is_read"), [(chatty, False), (terse, True)])
def test_a_tokenizer_of_its_own_is_read_only_if_it_is_short(change, is_read, bulky, tmp_path):
    folder = shutil.copytree(bulky.folders["near"], tmp_path / "copy")
    change(folder)
    name = f"org/{change.__name__}"
    bulky.server.add(name, folder, DESCENT)
    with bulky.daemon() as d:
        log = polled(d, bulky.server)
        candidate = d.lineage.candidate(name)
    read = sum(map(demo_hub.bytes_sent, log))
    assert candidate.triaged
    assert read <= candidate.read_bytes <= SHARE * candidate.bytes
    assert is_read == any("tokenizer" in r.path and demo_hub.bytes_sent(r) > 1 for r in log)
