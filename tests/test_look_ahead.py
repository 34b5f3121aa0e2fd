"""Candidates looked into several at a time: the same lineage, no more connections, a quick stop."""

import re
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from datetime import timedelta

import pytest

import turns
from hub_daemon import BASE, CARD, looks, online, opened, states, tuned
from hub_server import HubServer
from hub_server.cdn import Storage
from hub_server.hub import Hub
from kinship_daemon.errors import Stopped
from kinship_daemon.hub.look_ahead import LookAhead

MANY = 24


@pytest.fixture(scope="module", autouse=True)
def _online():
    with online():
        yield


@pytest.fixture
def server(tiny_base, tmp_path):
    """Fine-tunes, some of them refused or broken for what they are."""
    with HubServer() as running:
        running.add(BASE, tiny_base, {"license": "apache-2.0"})
        for number in range(MANY):
            card = {"base_model": BASE, "tags": ["merge"]} if number % 5 == 4 else CARD
            name = f"org/m{number:02}"
            folder = tuned(running, tmp_path, tiny_base, name, number, card=card)
            if number % 7 == 3:
                weights = folder / "model.safetensors"
                weights.write_bytes(weights.read_bytes()[:-1000])
                running.add(name, folder, card)
        yield running


def lay(server):
    """Faults that pass, and some that last, each bound to one repo."""
    server.fault("/api/models/org/m01/.*", "html")
    server.fault("/api/models/org/m02/.*", "truncate")
    server.fault("/api/models/org/m05/.*", n=-1)
    server.fault("/api/models/org/m06/.*", status=403, n=-1)
    server.fault("/org/m07/resolve/.*", "reset")
    server.fault("/org/m08/resolve/.*", status=500, n=-1)
    server.fault("/org/m12/resolve/.*/config.json", "html")
    server.fault("/api/models/org/m13/.*", "json", n=-1)
    server.fault("/org/m15/resolve/.*/model.safetensors", "range-ignored", n=-1)
    server.fault("/api/models/org/m16/.*", status=429, headers={"Retry-After": "1"})


def dump(home):
    """All that the lineage holds, as SQL, but for when files changed and the setting itself."""
    other = re.compile(r'INSERT INTO "(hashes"|home" VALUES\(\'settings_then)')
    with closing(sqlite3.connect(home / "lineage.db")) as opened_:
        return [line for line in opened_.iterdump() if not other.match(line)]


def lived(server, home, connections):
    """Looks until no fault lasts; the lineage after each."""
    dumps = []
    with opened(server, home, watch__connections=connections) as d:
        for turn in range(3):
            turns.take(d, "watch", "triage")
            dumps.append(dump(home))
            d.now.pass_minutes(120)
            if turn == 1:
                server.calm()
        return dumps, states(d)


def test_with_many_connections_the_lineage_is_that_of_one(server, tmp_path):
    found = []
    for connections in (1, 8):
        lay(server)
        found.append(lived(server, tmp_path / "home", connections))
        shutil.rmtree(tmp_path / "home")
    assert len(found[0][0][-1]) > MANY
    for one, many in zip(*(dumps for dumps, _ in found), strict=True):
        assert one == many
    assert found[0][1] == found[1][1]
    assert {status for status, _ in found[0][1].values()} == {"seen", "refused", "quarantined"}
    # Everyone who shows a reason shows the name before it.
    twice = [name for name, (_, why) in found[0][1].items() if (why or "").startswith(name)]
    assert twice == []


@pytest.mark.parametrize("connections", [1, 3, 8])
def test_no_more_connections_are_used_than_are_allowed(server, tmp_path, connections, monkeypatch):
    lock, busy, most = threading.Lock(), [0], []

    def admitted(_connection):
        with lock:
            busy[0] += 1
            most.append(busy[0])
        time.sleep(0.01)  # whoever asked waits for an answer meanwhile
        with lock:
            busy[0] -= 1
        return True

    for kind in (Hub, Storage):
        monkeypatch.setattr(kind, "admitted", admitted)
    with opened(server, tmp_path / "home", watch__connections=connections) as d:
        turns.take(d, "watch")
        most.clear()
        turns.take(d, "triage")
    assert max(most) <= connections
    assert connections == 1 or max(most) > 1


def test_a_wait_that_the_hub_asks_for_holds_for_everyone_looked_into(server, tmp_path):
    with opened(server, tmp_path / "home") as d:
        turns.take(d, "watch")
        server.log.clear()
        server.fault("/api/models/org/m0[5-9]/.*", status=429, headers={"Retry-After": "600"})
        turns.take(d, "triage")
        asked = len(server.log)
        # As many as were under way when it was said, each with the files of one candidate.
        assert len({request.path for request in server.asked("GET", "/api/models/.*")}) <= 16
        d.now.pass_minutes(9)
        assert turns.take(d, "triage").waiting
        assert len(server.log) == asked


def test_a_stop_ends_looks_that_hang(server, tmp_path):
    server.fault("/api/models/org/.*/revision/.*", "stall", n=-1)
    with opened(server, tmp_path / "home") as d:
        turns.take(d, "watch")
        begin = time.monotonic()
        threading.Timer(0.5, d.stop.set).start()
        with pytest.raises(Stopped):
            turns.take(d, "triage")
        assert time.monotonic() - begin < 5
        assert not [t for t in threading.enumerate() if t.name.startswith("look")]
        d.stop.clear()


def test_nobody_is_looked_into_beyond_the_days_budget(server, tmp_path):
    with opened(server, tmp_path / "home", limits__candidates_per_day=5) as d:
        turns.take(d, "watch", "triage")
        asked = {name for name in (f"org/m{n:02}" for n in range(MANY)) if looks(server, name)}
        assert len(asked) == 5


def test_who_waits_for_the_world_is_not_asked_for_before_its_time(server, tmp_path):
    fault = server.fault("/api/models/org/m05/.*", status=403, n=-1)
    with opened(server, tmp_path / "home") as d:
        turns.take(d, "watch", "triage")
        before = fault.done
        server.add("org/new", {}, CARD, modified=d.now() + timedelta(minutes=1))
        turns.take(d, "watch", "triage")
        assert (fault.done, states(d)["org/m05"][0]) == (before, "seen")


def test_results_come_in_the_order_in_which_they_are_wanted_and_nothing_is_begun_before():
    begun = []

    def look(number):
        begun.append(number)
        time.sleep(0.01 * (5 - number % 5))
        return number

    ahead = LookAhead([lambda n=n: look(n) for n in range(20)], 4)
    with closing(ahead):
        assert begun == []
        assert ahead.result(0) == 0
        assert max(begun) < 4
        assert [ahead.result(n) for n in range(1, 20)] == list(range(1, 20))
    assert sorted(begun) == list(range(20))
