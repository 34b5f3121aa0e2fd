"""
The Ray executor on real clusters of this machine: as inline, also when a node is killed.

Clusters take minutes on two cores: KINSHIP_RAY=1 tests them.
"""

import hashlib
import os
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from kinship_daemon import config, startup
from kinship_daemon.errors import KinshipError, Transient, UsageError
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.executor import Job, Source
from kinship_daemon.execute.site import Workshop
from kinship_daemon.execute.testing import CHECKS
from kinship_daemon.execute.testing.jobs import Read, Say
from kinship_daemon.report import JsonReporter
from kinship_storage.records import File
from turns import evolve, poll

ray = pytest.importorskip("ray", reason="RAY IS NOT TESTED: it cannot be imported here")

from kinship_daemon.execute import ray_executor  # noqa: E402
from kinship_daemon.execute.ray_executor import RayExecutor  # noqa: E402

SMALL = {
    "evaluate.limit": "16",
    "policy": "{use: topk-greedy, k: 2, max_founders: 2}",
    "gate.min_gain": "-1",
}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, and this process connected to them."""
    if os.environ.get("KINSHIP_RAY") != "1":
        pytest.skip("takes minutes; KINSHIP_RAY=1 tests it")
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "num_gpus": 0, "object_store_memory": 10**8},
    )
    made.add_node(num_cpus=2, num_gpus=0, object_store_memory=10**8)
    ray.init(made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def opened(cluster, tmp_path):
    def make(**options):
        options = {"node_cache": str(tmp_path / "node"), **options}
        return RayExecutor(Workshop(tmp_path / "evaluate.log", options=options))

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
    head, doomed = cluster.head_node.node_id, cluster.list_all_nodes()[-1]
    do, ends = ray_executor._Worker._do, Counter()

    def deadly(self, job, folders, tell):
        if self._place and self._place.node_id != head and job.sources and not ends["killed"]:
            ends["killed"] += 1
            cluster.remove_node(doomed, allow_graceful=False)
        do(self, job, folders, tell)

    sent = ray_executor._lost

    def lost(*given):
        ends["lost"] += 1
        return sent(*given)

    monkeypatch.setattr(ray_executor._Worker, "_do", deadly)
    monkeypatch.setattr(ray_executor, "_lost", lost)
    monkeypatch.setattr(ray_executor, "machine", lambda: "another")
    (tmp_path / "shared").mkdir()
    chosen = {
        "executor.use": "ray",
        "executor.shared_folder": str(tmp_path / "shared"),
        "executor.node_cache": str(tmp_path / "node"),
    }
    try:
        found = lineage(tmp_path / "home", **chosen)
    finally:
        cluster.add_node(num_cpus=2, num_gpus=0, object_store_memory=10**8)
    assert ends["killed"] == 1
    assert ends["lost"] >= 1
    assert list((tmp_path / "node" / "leaves").glob("*/*.safetensors"))
    assert found == calm
    assert len(found[0]) > 3


def test_what_a_cluster_cannot_give_is_one_line(cluster, opened, tmp_path):
    with pytest.raises(Transient, match=r"has 1 CPU, 1 GPU, which .*executor\.gpus_per_worker"):
        RayExecutor(Workshop(tmp_path / "log", ("cuda:0",)))
    with pytest.raises(UsageError, match=r"gpus_per_worker is 0\.5, .* on the CPU here"):
        opened(gpus_per_worker=0.5)
    with pytest.raises(Transient, match="has 1 CPU, 1 big"):
        opened(resources={"big": 1})


def test_without_a_cluster_or_without_ray_one_line_says_what_would_work(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    workshop = Workshop(tmp_path / "log", options={"address": "127.0.0.1:1"})
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
