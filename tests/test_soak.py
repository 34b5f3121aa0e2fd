"""2,000 repos on a hub of which 30 % of the answers fail; the same, with the daemon killed."""

import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import _http

import command
import turns
import worker_kills
from hub_server import TOKEN, HubServer
from kinship_daemon import config, demo, faults, startup
from kinship_daemon.bugs import bugs_noted
from kinship_daemon.context import Context
from kinship_daemon.errors import Transient
from kinship_daemon.evaluate.evaluator import open_evaluator
from kinship_daemon.execute import site
from kinship_daemon.hub import calls, client, download
from kinship_daemon.report import JsonReporter
from kinship_storage.lineage import Lineage
from shared_worker import Shelf
from wide_world import PARENTS, Fate, Weather, World, impatient, world

SEED = 20250101
RATE = 0.3
TURNS = 60
USER = "tester"
# Tried in minutes, not with all tests: a worker killed at random beside all that the hub does.
LONG = os.environ.get("KINSHIP_SOAK") == "1"
# Ends at once when it has come: waits add up under bad luck and load.
PATIENCE_SECONDS = 900.0
# All that must have happened for the soak to mean anything.
KINDS = {
    *("500", "502", "503", "429", "reset", "reset-body", "truncate", "html", "json", "stall"),
    *("401", "403", "404", "410", "shape", "flip"),
    *("redirect", "expire", "corrupt", "range-ignored", "wrong-range", "out-of-order"),
}


@dataclass(frozen=True)
class End:
    """What a run left behind: fates by repo, and what it published, as the hub has it."""

    fates: dict[str, Fate]
    published: dict[str, dict[str, bytes]]
    commits: int


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> World:
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def hurried(shelf: Shelf) -> Iterator[None]:
    """As in the other processes of these tests; put back for the tests after them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "open_evaluator", shelf.lend)
        defaults = client.ApiHub.__init__.__kwdefaults__
        patch.setattr(calls, "_BACKOFF_SECONDS", calls._BACKOFF_SECONDS)
        patch.setattr(faults, "_LONGEST_WAIT", faults._LONGEST_WAIT)
        patch.setattr(download, "_PAUSE_SECONDS", download._PAUSE_SECONDS)
        patch.setitem(defaults, "timeout_seconds", defaults["timeout_seconds"])
        patch.setattr(_http, "time", _http.time)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", TOKEN)
        impatient()
        yield


@contextmanager
def served(wide: World) -> Iterator[HubServer]:
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        server.stall_seconds = 0.8
        wide.settle(server)
        yield server


def overrides(**more: str) -> list[str]:
    settings = {
        # Everyone is listed at every look.
        "watch.relist_hours": "0.000001",
        "policy": f"{{use: 'pair_policy:PairPolicy', parents: [{', '.join(PARENTS)}]}}",
        "evaluate.selection": "[demo_add, demo_max]",
        "evaluate.validation": "[demo_add_validation, demo_max_validation]",
        "evaluate.include_path": f"[{demo.TASKS}]",
        "evaluate.limit": "24",
        **({"evaluate.chunk": "4"} if LONG else {}),  # more moments in which a worker can be killed
        "evaluate.batch_size": "64",
        "evaluate.device": "cpu",
        "evaluate.threads": "1",
        "kinship.device": "cpu",
        "gate.min_gain": "-1",
        "limits.candidates_per_day": "1000000",
        "publish.namespace": USER,
        "publish.name": "'{base}-{hash}'",
        **more,
    }
    return [f"{key}={value}" for key, value in settings.items()]


def retried(work: Callable, *arguments: object) -> object:
    """What `work` returns, tried again while the hub is away, as the daemon's clock would."""
    for _ in range(TURNS):
        try:
            return work(*arguments)
        except Transient:
            continue
    raise AssertionError(f"{work} never went well")


@contextmanager
def opened(server: HubServer, home: Path) -> Iterator[Context]:
    loaded = config.load(base=demo.BASE, hub=server.url, home=home, overrides=overrides())
    with ExitStack() as stack:
        log = stack.enter_context(home.with_suffix(".log").open("w"))

        def once() -> Context:
            return stack.enter_context(startup.opened(loaded, JsonReporter(log)))

        yield retried(once)


def lived(d: Context, server: HubServer, wide: World) -> None:
    """Everything that the daemon does until nobody waits and nothing is left to gain."""
    retried(looked, d)
    wide.upset(server)
    retried(settled, d)
    for _ in range(TURNS):
        if retried(turns.evolve, d).stop is not None and d.lineage.publications():
            return
        d.lineage.recover()
    raise AssertionError("nothing was published")


def waiting(lineage: Lineage) -> list[str]:
    """Who may still be admitted or refused; the hub never describes a climber as it should."""
    names = (candidate.model for candidate in lineage.candidates("seen"))
    return [name for name in names if "climber" not in name]


def looked(d: Context) -> None:
    turns.raise_waiting(turns.take(d, "watch"))


def settled(d: Context) -> None:
    d.lineage.recover()  # as at a next start: what waits is tried again now
    turns.poll(d)
    if waiting(d.lineage):
        raise Transient("some wait")


def end(lineage: Lineage, server: HubServer) -> End:
    ours = {name: repo for name, repo in server.repos.items() if name.startswith(f"{USER}/")}
    return End(
        fates={m.id: Fate(m.status, m.reason or "") for m in lineage.models(kind="finetune")},
        published={
            name: {
                path: blob.whole().replace(server.url.encode(), b"HUB")
                for path, blob in repo.facts.blobs.items()
            }
            for name, repo in ours.items()
        },
        # The first commit of a repo is the hub's own, at its creation.
        commits=sum(len(repo.commits) - 1 for repo in ours.values()),
    )


@pytest.fixture(scope="module")
def calm(wide: World, tmp_path_factory) -> End:
    """The same life on a hub without faults."""
    with served(wide) as server, opened(server, tmp_path_factory.mktemp("calm") / "home") as d:
        lived(d, server, wide)
        return end(d.lineage, server)


@pytest.mark.slow
def test_on_a_hub_without_faults_everyone_gets_their_due(calm, wide):
    assert len(wide.repos) >= 2000
    assert wide.differs(calm.fates) == []
    assert len(calm.published) == 1


@pytest.mark.slow
def test_faults_refuse_nobody_and_publish_nothing_twice(calm, wide, tmp_path):
    with served(wide) as server:
        server.disorder = weather = Weather(SEED, RATE)
        landed = server.fault(f"/api/models/{USER}/.*/commit/main", "lost", method="POST")
        with opened(server, tmp_path / "home") as d:
            lived(d, server, wide)
            retried(settled, d)
            assert retried(turns.evolve, d).stop is not None
            found = end(d.lineage, server)
    assert weather.failed.total() > 0.25 * weather.asked
    assert weather.failed.keys() >= KINDS
    assert wide.differs(found.fates) == []
    assert found.published == calm.published
    assert (landed.done, found.commits) == (1, 1)
    assert server.leaks() == []


@pytest.mark.skipif(not LONG, reason="takes minutes; KINSHIP_SOAK=1 tests it")
def test_with_its_worker_killed_ten_times_it_ends_as_if_nothing_had_been(
    calm, wide, tmp_path, warm_worker, monkeypatch
):
    monkeypatch.setattr(site, "open_evaluator", open_evaluator)
    with served(wide) as server, worker_kills.killing(SEED) as tally:
        server.disorder = weather = Weather(SEED, RATE)
        with opened(server, tmp_path / "home") as d:
            lived(d, server, wide)
            retried(settled, d)
            assert retried(turns.evolve, d).stop is not None
            found = end(d.lineage, server)
            bugs = bugs_noted(d.home.bug_log)
    assert (tally.killed, bugs) == (worker_kills.KILLS, 0), tally
    assert weather.failed.keys() >= KINDS
    assert wide.differs(found.fates) == []
    assert of_any_generation(found.published) == of_any_generation(calm.published)
    assert found.commits == 1
    assert server.leaks() == []


class RestartedDaemon:
    """The daemon in a process of its own, which dies and is started again."""

    def __init__(self, server: HubServer, home: Path) -> None:
        self.server, self.home = server, home
        self.child = 0
        arguments = ["run", "--base", demo.BASE, "--hub", server.url, "--home", home, "--log-json"]
        settings = [*overrides(), "watch.poll_minutes=0.005"]
        arguments += [word for setting in settings for word in ("--set", setting)]
        self.log = home.with_suffix(".log").open("w")
        self.parent = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "restart_loop.py", *map(str, arguments)],
            env=command.environment(home.parent)
            | {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def start(self) -> None:
        self.parent.stdin.write("go\n")
        self.parent.stdin.flush()
        self.child = int(self.parent.stdout.readline())

    def end(self, number: int) -> int:
        """Send it a signal; returns its wait status."""
        os.kill(self.child, number)
        return int(self.parent.stdout.readline())

    def until(self, what: Callable[[], bool]) -> None:
        """Wait; who gives up because the hub is away at the start is started again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            assert time.monotonic() < deadline, "it never came"
            if select.select([self.parent.stdout], [], [], 0.01)[0]:
                status = int(self.parent.stdout.readline())
                assert os.waitstatus_to_exitcode(status) == 3
                self.start()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        self.parent.stdin.close()
        self.parent.stdout.close()
        self.parent.wait(60)
        self.log.close()


def requests(server: HubServer, count: int) -> Callable[[], bool]:
    """So many from now on."""
    until = len(server.log) + count
    return lambda: len(server.log) >= until


def seen(server: HubServer, method: str, path: str, name: str = "hub") -> Callable[[], bool]:
    return lambda: bool(server.asked(method, path, name))


def passed(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def have_come(home: Path) -> Callable[[], bool]:
    """The parents are admitted: they are to be scored and merged next."""

    def asked() -> bool:
        time.sleep(0.1)
        with Lineage.open(home / "lineage.db", now=None, readonly=True) as lineage:
            return all(lineage.require(name).status == "admitted" for name in PARENTS)

    return asked


def is_done(home: Path) -> Callable[[], bool]:
    def asked() -> bool:
        time.sleep(0.2)
        with Lineage.open(home / "lineage.db", now=None, readonly=True) as lineage:
            return bool(lineage.publications()) and not waiting(lineage)

    return asked


@pytest.mark.slow
def test_killed_ten_times_it_ends_as_if_nothing_had_been(calm, wide, tmp_path):
    chance = random.Random(SEED)
    home = tmp_path / "home"
    with served(wide) as server, closing(RestartedDaemon(server, home)) as daemon:
        server.disorder = weather = Weather(SEED, RATE)

        def die(moment: Callable[[], bool]) -> None:
            daemon.until(moment)
            status = daemon.end(signal.SIGKILL)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            deaths.append(len(server.log))

        deaths: list[int] = []
        daemon.start()
        die(seen(server, "GET", "/api/models/.*/revision/.*"))
        wide.upset(server)
        for _ in range(6):
            daemon.start()
            die(requests(server, chance.randrange(30, 220)))
        daemon.start()
        daemon.until(have_come(home))
        die(passed(chance.uniform(0.0, 0.5)))  # too soon for anything to be published
        daemon.start()
        die(seen(server, "PUT", "/upload/.*", "storage"))
        daemon.start()
        die(seen(server, "POST", f"/api/models/{USER}/.*/commit/main"))
        daemon.start()
        daemon.until(is_done(home))
        daemon.until(requests(server, 40))
        assert daemon.end(signal.SIGTERM) == 0
        while not is_done(home)():  # what waits for the world may have been asked again just then
            daemon.start()
            daemon.until(is_done(home))
            assert daemon.end(signal.SIGTERM) == 0
        with Lineage.open(home / "lineage.db", now=None, readonly=True) as lineage:
            found = end(lineage, server)
            publications = lineage.publications()
    assert len(deaths) == len(set(deaths)) == 10
    assert weather.failed.keys() >= KINDS
    assert wide.differs(found.fates) == []
    assert of_any_generation(found.published) == of_any_generation(calm.published)
    assert (found.commits, len(publications)) == (1, 1)
    assert server.leaks() == []


def of_any_generation(published: dict[str, dict[str, bytes]]) -> dict[str, dict[str, bytes]]:
    """The same without the generation's number: the policy may have been asked in vain before."""

    def numberless(data: bytes) -> bytes:
        return re.sub(rb"(model-|merge, )\d+", rb"\1N", data)

    return {
        name: {path: numberless(data) for path, data in files.items()}
        for name, files in published.items()
    }


@pytest.fixture
def pair(wide: World) -> Iterator[HubServer]:
    """A hub with the two parents alone."""
    with served(World(wide.base, repos={name: wide.repos[name] for name in PARENTS})) as server:
        yield server


def statuses(d: Context) -> dict[str, tuple[str, str | None]]:
    return {model.id: (model.status, model.reason) for model in d.lineage.models(kind="finetune")}


def test_a_wrong_bit_in_a_header_is_read_again_and_sets_nobody_aside(pair, tmp_path):
    with opened(pair, tmp_path / "home") as d:
        # The first request finds out where the file is.
        wrong = pair.fault("/lfs/.*", "corrupt", server="storage", skip=1)
        turns.poll(d)
        assert wrong.done == 1
        assert statuses(d) == dict.fromkeys(PARENTS, ("admitted", None))


def test_a_web_page_is_not_the_beginning_of_a_file(pair, tmp_path):
    with opened(pair, tmp_path / "home") as d:
        for skip in (0, 1):
            pair.fault("/demo/add/resolve/.*/generation_config.json", "html", skip=skip)
        turns.poll(d)
        assert pair.faults[0].done == 1
        assert statuses(d) == dict.fromkeys(PARENTS, ("admitted", None))


def test_a_file_that_moves_between_two_pieces_is_found_again(pair, tmp_path):
    with opened(pair, tmp_path / "home") as d:
        moved = pair.fault("/demo/add/resolve/.*/config.json", "redirect", skip=1)
        turns.poll(d)
        assert moved.done == 1
        assert statuses(d) == dict.fromkeys(PARENTS, ("admitted", None))
    assert pair.leaks() == []
