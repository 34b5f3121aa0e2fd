"""
The Ray executor on real clusters of this machine: as inline, also when a node is killed.

Clusters take minutes on two cores: KINSHIP_RAY=1 tests them.
"""

import hashlib
import os
import queue
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kinship_daemon import config, startup
from kinship_daemon.errors import KinshipError, Lost, Transient, UsageError
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.executor import Failed, Job, Needs, Progress, Source
from kinship_daemon.execute.site import Workshop
from kinship_daemon.execute.testing import CHECKS
from kinship_daemon.execute.testing.jobs import Read, Say
from kinship_daemon.report import JsonReporter
from kinship_storage.records import File
from ray_clusters import NODE, ray_cluster
from turns import evolve, poll

pytest.importorskip("ray", reason="RAY IS NOT TESTED: it cannot be imported here")

from kinship_daemon.execute import ray_executor
from kinship_daemon.execute.ray_executor import RayExecutor

SMALL = {
    "evaluate.limit": "16",
    "policy": "{use: topk-greedy, k: 2, max_founders: 2}",
    "gate.min_gain": "-1",
}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes."""
    if os.environ.get("KINSHIP_RAY") != "1":
        pytest.skip("takes minutes; KINSHIP_RAY=1 tests it")
    with ray_cluster() as made:
        yield made


@pytest.fixture
def opened(cluster, tmp_path):
    def make(**options):
        room = {"node_cache": str(tmp_path / "node"), "address": cluster.address}
        return RayExecutor(Workshop(tmp_path / "evaluate.log", options={**room, **options}))

    return make


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_conforms(check, opened):
    check(opened)


def lineage(home, **overrides):
    """What a home holds after its first generation: its models, and each document's score."""
    chosen = {**SMALL, **overrides}
    loaded = config.load(
        base="demo", home=home, overrides=[f"{key}={value}" for key, value in chosen.items()]
    )
    report = JsonReporter(open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with startup.opened(loaded, report) as d:
        poll(d)
        evolve(d)
        models = d.lineage.export()["models"]
        documents = d.lineage._store.query("SELECT * FROM documents ORDER BY score, document")
        return [timeless(model) for model in models], list(map(tuple, documents))


def timeless(model):
    return {name: value for name, value in model.items() if name != "created"}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    return lineage(tmp_path_factory.mktemp("calm") / "home", **{"executor.use": "inline"})


def test_two_nodes_of_which_one_is_killed_give_the_lineage_of_inline(
    cluster, calm, tmp_path, monkeypatch
):
    """Its leaves come by the shared folder: the nodes are told that the daemon is elsewhere."""
    doomed, heard = cluster.list_all_nodes()[-1], Heard()
    (tmp_path / "shared").mkdir()
    chosen = {
        "executor.use": "ray",
        "executor.address": cluster.address,
        "executor.shared_folder": str(tmp_path / "shared"),
        "executor.node_cache": str(tmp_path / "node"),
    }
    heard.when_two_are_at_work(lambda: cluster.remove_node(doomed, allow_graceful=False))
    monkeypatch.setattr(RayExecutor, "_tell", heard.tell(RayExecutor._tell))
    monkeypatch.setattr(ray_executor, "machine", lambda: "another")
    try:
        found = lineage(tmp_path / "home", **chosen)
    finally:
        cluster.add_node(**NODE)
    assert heard.lost
    assert list((tmp_path / "node" / "leaves").glob("*/*.safetensors"))
    assert found == calm
    assert len(found[0]) > 3


class Heard:
    """What a cluster told the daemon."""

    def __init__(self):
        self.lost = []
        self._at_work = set()
        self._then = None

    def when_two_are_at_work(self, then):
        """Called once."""
        self._then = then

    def tell(self, tell):
        def heard(executor, report):
            if isinstance(report, Progress):
                self._at_work.add(report.key)
            else:
                self._at_work.discard(report.key)
            if isinstance(report, Failed) and isinstance(report.error, Lost):
                self.lost.append(report)
            if len(self._at_work) == 2 and self._then is not None:
                then, self._then = self._then, None
                then()
            tell(executor, report)

        return heard


def test_what_a_cluster_cannot_give_is_said_and_waited_for(cluster, tmp_path):
    """Its demand is what an autoscaler sees; a node that has it does the work."""
    said = queue.SimpleQueue()
    options = {"address": cluster.address, "resources": {"big": 1}}
    options["node_cache"] = str(tmp_path / "node")
    executor = RayExecutor(Workshop(tmp_path / "evaluate.log", options=options, say=said.put))
    words = "no node has room for a worker, which takes 1 CPU, 1 big: work waits for one"
    assert executor.describe()[-1] == words
    with closing(Dispatcher(executor)) as dispatcher:
        dispatcher.begin(Job("say", Say("a"), Needs(device=True)), {})
        assert said.get(timeout=120).endswith(
            "waits for room on the Ray cluster: it takes 1 CPU, 1 big"
        )
        node = cluster.add_node(**NODE, resources={"big": 1})
        try:
            assert dispatcher.result("say")[0] == "a"
        finally:
            cluster.remove_node(node)


def test_gpus_for_a_daemon_without_any_are_refused(tmp_path):
    workshop = Workshop(tmp_path / "evaluate.log", options={"gpus_per_worker": 0.5})
    with pytest.raises(UsageError, match=r"gpus_per_worker is 0\.5, .* set evaluate\.device"):
        RayExecutor(workshop)


def test_without_a_cluster_or_without_ray_one_line_says_what_would_work(tmp_path, monkeypatch):
    workshop = Workshop(tmp_path / "evaluate.log", options={"address": "127.0.0.1:1"})
    with pytest.raises(Transient, match=r"address 127\.0\.0\.1:1: no Ray cluster answers there"):
        RayExecutor(workshop)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'kinship-daemon\[ray\]'"):
        RayExecutor(workshop)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shared_folder": Path("/dev/null/x")}, "executor.shared_folder /dev/null/x: Not a"),
        ({"node_disk_gb": 1e-9}, "has no room for sha256:w .*executor.node_disk_gb is 1e-09"),
    ],
)
def test_what_a_node_lacks_is_one_line(opened, tmp_path, monkeypatch, options, words):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("it")
    (tmp_path / "shared").mkdir()
    source = Source((File("a", 2, hashlib.sha256(b"it").hexdigest()),))
    job = Job("read", Read("sha256:w", "a"), sources={"sha256:w": source})
    monkeypatch.setattr(ray_executor, "machine", lambda: "another")
    executor = opened(**{"shared_folder": tmp_path / "shared", **options})
    with closing(Dispatcher(executor)) as dispatcher:
        dispatcher.begin(job, {"sha256:w": tmp_path / "model"})
        with pytest.raises(KinshipError, match=words):
            dispatcher.result("read")


def test_a_node_with_other_versions_is_refused_by_name(opened, monkeypatch):
    ours = {**ray_executor.versions(), "torch": "0.1"}
    monkeypatch.setattr(ray_executor, "versions", lambda: ours)
    with closing(Dispatcher(opened())) as dispatcher:
        dispatcher.begin(Job("say", Say("a")), {})
        with pytest.raises(UsageError, match=r"node .* has torch .* and the daemon 0\.1"):
            dispatcher.result("say")
