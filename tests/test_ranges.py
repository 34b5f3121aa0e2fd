"""Pieces of files from a real server on 127.0.0.1, and from one that does it wrong."""

import hashlib
import random
import re
from dataclasses import replace

import huggingface_hub
import pytest

from hub_server import TOKEN, HubServer
from kinship_daemon.errors import ModelError, Transient, Unavailable
from kinship_daemon.hub import calls
from kinship_daemon.hub.byte_ranges import cut, joined_ranges
from kinship_daemon.hub.client import ApiHub
from kinship_daemon.hub.records import RangesRefused, RepoFile, UnknownRepo

WEIGHTS = "model.safetensors"
LARGE = random.Random(0).randbytes(1 << 20)
SMALL = b'{"architectures": ["MistralForCausalLM"]}'
STORED = "/lfs/.*"
RESOLVE = "/org/a/resolve/.*"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(calls, "_BACKOFF_SECONDS", (0.02, 0.05))


@pytest.fixture
def server():
    with HubServer() as hub:
        hub.add("org/a", {WEIGHTS: LARGE, "config.json": SMALL, "empty.txt": b""})
        yield hub


@pytest.fixture
def hub(server):
    return ApiHub(server.url, token=TOKEN, timeout_seconds=5)


@pytest.fixture
def repo(hub):
    return hub.repo("org/a")


@pytest.fixture
def reader(hub, repo):
    return hub.ranges(repo)


def spread(count, length=64, seed=1):
    """Spans in no order, too far apart to be joined."""
    ranges = [(at * 8192, at * 8192 + length) for at in range(count)]
    random.Random(seed).shuffle(ranges)
    return ranges


def expected(ranges, data=LARGE):
    return [data[start:end] for start, end in ranges]


def test_ranges_come_in_the_order_asked_and_what_came_is_counted(reader):
    ranges = [*spread(100), (5, 5), (len(LARGE) - 3, len(LARGE)), (0, 64)]
    assert reader.read(WEIGHTS, ranges) == expected(ranges)
    assert reader.bytes_read == 1 + 100 * 64 + 3  # the first byte tells where the file lies


def test_one_look_up_serves_all_ranges_of_a_file(server, reader):
    for seed in (1, 2):
        reader.read(WEIGHTS, spread(30, seed=seed))
    assert len(server.asked("GET", RESOLVE)) == 1
    stored = server.asked("GET", STORED, "storage")
    assert len(stored) == 61
    assert {request.headers["accept-encoding"] for request in stored} == {"identity"}


def test_the_token_goes_to_the_hub_alone(server, reader):
    reader.read(WEIGHTS, [(0, 9)])
    reader.read("config.json", [(0, 9)])
    assert server.leaks() == []
    kept = {request.headers.get("authorization") for request in server.asked("GET", RESOLVE)}
    assert kept == {f"Bearer {TOKEN}"}


def test_connections_are_kept_and_shared_by_repos(server, hub, repo):
    server.add("org/b", {WEIGHTS: LARGE[::-1]})
    hub.ranges(repo).read(WEIGHTS, spread(50))
    assert hub.ranges(hub.repo("org/b")).read(WEIGHTS, [(0, 9)]) == [LARGE[::-1][:9]]
    assert len(server.connections) <= 12


def test_a_small_file_comes_from_the_hub_itself(server, reader):
    assert reader.read("config.json", [(3, 9), (0, len(SMALL))]) == [SMALL[3:9], SMALL]
    assert server.asked("GET", STORED, "storage") == []
    assert reader.read("empty.txt", [(0, 0)]) == [b""]


def test_near_ranges_are_asked_for_together(server, reader):
    ranges = [(at, at + 100) for at in range(0, 200_000, 2_000)]
    assert reader.read(WEIGHTS, ranges) == expected(ranges)
    assert len(server.asked("GET", STORED, "storage")) == 2


def test_joining_loses_nothing_whatever_the_spans():
    data = random.Random(2).randbytes(30_000_000)
    for seed in range(8):
        chance = random.Random(seed)
        ranges = []
        for _ in range(60):
            start = chance.randrange(len(data))
            ranges.append((start, min(start + chance.choice([0, 1, 5000, 9_000_000]), len(data))))
        wanted = joined_ranges(ranges)
        got = {each: data[slice(*each)] for each in wanted}
        starts = [start for start, _ in wanted]
        assert [cut(wanted, starts, got, each) for each in ranges] == expected(ranges, data)


def test_the_second_read_goes_on_after_the_address_expired(server, reader):
    now = server.clock()
    server.clock = lambda: now
    reader.read(WEIGHTS, [(0, 9)])
    now += 3601
    assert reader.read(WEIGHTS, spread(100)) == expected(spread(100))
    assert len(server.asked("GET", RESOLVE)) == 2


def test_an_address_that_never_works_is_given_up_on(server, reader):
    server.fault(STORED, "expire", n=-1)
    with pytest.raises(Transient, match="its storage server answered 403"):
        reader.read(WEIGHTS, spread(20))
    assert len(server.asked("GET", RESOLVE)) == 9
    server.faults.clear()
    server.log.clear()
    server.fault(STORED, "expire", n=-1, skip=1)
    with pytest.raises(Transient, match="its storage server answered 403"):
        reader.read(WEIGHTS, spread(20))
    assert len(server.log) < 60


@pytest.mark.parametrize("action", ["reset", "reset-body", "truncate", "status", "lost"])
def test_ranges_that_are_lost_are_asked_for_again(server, reader, action):
    server.fault(STORED, action, n=10, skip=1)
    assert reader.read(WEIGHTS, spread(40)) == expected(spread(40))
    server.fault(STORED, action, n=-1)
    with pytest.raises(Transient, match="org/a/resolve/"):
        reader.read(WEIGHTS, spread(40))


def test_a_silent_storage_is_given_up_on(server, hub, repo):
    impatient = ApiHub(server.url, token=TOKEN, timeout_seconds=0.2).ranges(repo)
    for action in ("stall", "stall-body"):
        server.fault(STORED, action, n=2)
        assert impatient.read(WEIGHTS, spread(10)) == expected(spread(10))
    server.fault(STORED, "stall", n=-1)
    with pytest.raises(Transient, match="cannot be reached"):
        impatient.read(WEIGHTS, spread(10))


@pytest.mark.parametrize("action", ["range-ignored", "wrong-range"])
def test_a_server_without_ranges_is_refused_unread(server, reader, action):
    server.fault(STORED, action, n=3, skip=1)
    assert reader.read(WEIGHTS, spread(20)) == expected(spread(20))
    before = reader.bytes_read
    server.fault(STORED, action, n=-1)
    with pytest.raises(RangesRefused, match=r"org/a model\.safetensors: the server sends"):
        reader.read(WEIGHTS, spread(20))
    assert reader.bytes_read == before


@pytest.mark.parametrize("header", ["bytes 0-8/99999999999999999999999", "bytes 0-8", "pages 1-2"])
def test_absurd_ranges_are_refused(server, reader, header):
    server.fault(STORED, "pass", n=-1, headers={"Content-Range": header})
    with pytest.raises(RangesRefused):
        reader.read(WEIGHTS, [(0, 9)])


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_a_file_that_changed_is_noticed(server, reader, file):
    server.fault(RESOLVE, "changed")
    with pytest.raises(Unavailable, match=f"org/a {file}: changed on the hub since it was listed"):
        reader.read(file, [(0, 9)])


def test_a_tag_of_the_storages_own_is_no_change(server, reader):
    # Xet's tags look like a sha256 and are none.
    server.fault(STORED, "changed", n=-1)
    assert reader.read(WEIGHTS, [(0, 9)]) == [LARGE[:9]]


def test_a_file_of_another_size_is_noticed(server, hub, repo):
    oid = hashlib.sha256(LARGE).hexdigest()
    whole = replace(repo, files=(RepoFile(WEIGHTS, len(LARGE), oid),))
    reader = hub.ranges(whole)
    reader.read(WEIGHTS, [(0, 9)])
    server.lfs[oid] = LARGE[:5000]
    with pytest.raises(Unavailable, match="has 5000 bytes, 1048576 when it was listed"):
        reader.read(WEIGHTS, [(0, 9)])
    with pytest.raises(Unavailable, match="ends before byte 90000"):
        reader.read(WEIGHTS, [(80_000, 90_000)])


@pytest.mark.parametrize("each", [(0, 1 << 60), (-1, 5), (9, 3), (len(LARGE), len(LARGE) + 1)])
def test_what_the_file_cannot_have_is_not_asked_for(server, reader, each):
    server.log.clear()
    with pytest.raises(ModelError, match="no bytes"):
        reader.read(WEIGHTS, [each])
    with pytest.raises(ModelError, match="has no file"):
        reader.read("../../etc/passwd", [(0, 1)])
    assert server.log == []


def test_a_repo_that_cannot_be_read_says_why(server, hub, repo):
    server.repos["org/a"].gated = "manual"
    with pytest.raises(Unavailable, match="org/a is gated: accept its terms"):
        ApiHub(server.url).ranges(repo).read(WEIGHTS, [(0, 9)])
    server.repos["org/a"].gated = False
    server.repos["org/a"].disabled = True
    with pytest.raises(Unavailable, match="has disabled org/a"):
        hub.ranges(repo).read(WEIGHTS, [(0, 9)])
    server.delete("org/a")
    with pytest.raises(UnknownRepo, match="has no model org/a"):
        hub.ranges(repo).read(WEIGHTS, [(0, 9)])


def test_a_renamed_repo_is_read_under_its_old_name(server, hub, repo):
    server.rename("org/a", "new/name")
    reader = hub.ranges(hub.repo("org/a"))
    assert reader.repo.id == "org/a"
    assert reader.read(WEIGHTS, [(0, 9)]) == [LARGE[:9]]
    assert reader.read("config.json", [(0, 9)]) == [SMALL[:9]]
    assert server.leaks() == []


def test_a_redirect_to_a_stranger_gets_no_token(server, reader):
    server.fault(RESOLVE, "redirect", n=-1, server="hub")
    assert reader.read(WEIGHTS, [(0, 9)]) == [LARGE[:9]]  # by way of the stranger
    assert [request for request in server.log if request.server == "elsewhere"]
    assert server.leaks() == []


def test_a_redirect_without_end_is_left(server, hub, repo):
    loop = f"{server.url}/org/a/resolve/{repo.revision}/{WEIGHTS}"
    server.fault(RESOLVE, "status", status=302, n=-1, headers={"Location": loop})
    with pytest.raises(Transient, match="redirected without end"):
        hub.ranges(repo).read(WEIGHTS, [(0, 9)])


def test_a_redirect_to_no_url_is_not_the_models_fault(server, hub, repo, tmp_path):
    server.fault(RESOLVE, "status", status=302, n=-1, headers={"Location": "http://[x"})
    with pytest.raises(Transient, match="redirected to no URL"):
        hub.ranges(repo).read(WEIGHTS, [(0, 9)])
    server.faults.clear()
    reader = hub.ranges(repo)
    reader.read(WEIGHTS, [(0, 9)])
    server.fault(STORED, "status", status=302, n=-1, headers={"Location": "http://[x"})
    with pytest.raises(Transient, match="redirected to no URL"):
        reader.read(WEIGHTS, [(9, 18)])
    server.faults.clear()
    server.fault(RESOLVE, "status", status=302, n=-1, headers={"Location": "http://[x"})
    with pytest.raises(Transient, match="cannot be reached"):
        hub.fetch(repo, tmp_path)


def test_no_message_shows_a_signed_address(server, reader):
    server.fault(STORED, "reset", n=-1)
    with pytest.raises(Transient) as failed:
        reader.read(WEIGHTS, [(0, 9)])
    assert not re.search("Signature|Expires|hf_", str(failed.value))


def test_a_storage_that_wants_minutes_is_not_pressed(server, reader):
    server.fault(STORED, "status", status=503, n=-1, headers={"Retry-After": "300"})
    with pytest.raises(Transient) as refused:
        reader.read(WEIGHTS, spread(100))
    assert refused.value.retry_seconds == 300
    assert len(server.asked("GET", STORED, "storage")) <= 16


def test_a_third_of_all_requests_may_fail(server, hub, repo):
    kinds = ("500", "503", "reset", "reset-body", "truncate", "expire", "range-ignored")
    chaos = server.chaos(7, 0.3, kinds)
    ranges = spread(120)
    assert hub.ranges(repo).read(WEIGHTS, ranges) == expected(ranges)
    assert chaos.failed.total() > 20
