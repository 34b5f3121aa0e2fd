"""
The Ray executor on a real cluster of two nodes on this machine: as inline, also when one is killed.

One test of it is for every run; KINSHIP_RAY=1 runs all, which takes minutes.
"""

import hashlib
import os
import queue
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

import lmtasks
from kinship_daemon import config, startup
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import KinshipError, Lost, Transient, UsageError
from kinship_daemon.evaluate.scoring import missing
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.execute import ray_executor
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.evaluation import Evaluators, Ingredients, NamedAssembly
from kinship_daemon.execute.executor import Failed, Job, Needs, Progress, Source
from kinship_daemon.execute.inline import Inline
from kinship_daemon.execute.kinship import NEEDS, Measure
from kinship_daemon.execute.ray_cluster import connect
from kinship_daemon.execute.ray_executor import RayExecutor
from kinship_daemon.execute.site import Workshop
from kinship_daemon.execute.testing import CHECKS
from kinship_daemon.execute.testing.jobs import Read, Say
from kinship_daemon.landscapes import open_landscape
from kinship_daemon.report import JsonReporter
from kinship_daemon.simulation import evolutions, evolutions_by, processes
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.materialise import leaf_assembly
from kinship_policies.registry import make
from kinship_storage.records import File
from ray_clusters import NODE, add_node, ray_cluster
from turns import evolve, poll

pytest.importorskip("ray", reason="RAY IS NOT TESTED: it cannot be imported here")

SMALL = {
    "evaluate.limit": "16",
    "policy": "{use: topk-greedy, k: 2, max_founders: 2}",
    "gate.min_gain": "-1",
}


in_full = pytest.mark.skipif(
    os.environ.get("KINSHIP_RAY") != "1", reason="takes minutes; KINSHIP_RAY=1 tests it"
)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes; who kills one adds another."""
    with ray_cluster() as made:
        yield made


@pytest.fixture
def opened(cluster, tmp_path):
    def make(**options):
        room = {"node_cache": str(tmp_path / "node"), "address": cluster.address}
        return RayExecutor(Workshop(tmp_path / "evaluate.log", options={**room, **options}))

    return make


@pytest.fixture
def model(tmp_path):
    """A file in a folder, as a job's source and its folders."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("it")
    source = Source((File("a", 2, hashlib.sha256(b"it").hexdigest()),))
    return {"sha256:w": source}, {"sha256:w": tmp_path / "model"}


class Heard:
    """
    What a cluster told the daemon; each is called once.

    Args:
        two_at_work: When two jobs have told how far they are.
        one_lost: When a job's worker is gone.
    """

    def __init__(self, two_at_work, one_lost=lambda: None):
        self.lost = []
        self._at_work = set()
        self._calls = {"two at work": two_at_work, "one lost": one_lost}

    def tell(self, tell):
        def heard(executor, report):
            if isinstance(report, Progress):
                self._at_work.add(report.key)
            else:
                self._at_work.discard(report.key)
            if len(self._at_work) == 2:
                self._call("two at work")
            tell(executor, report)
            if isinstance(report, Failed) and isinstance(report.error, Lost):
                self.lost.append(report)
                self._call("one lost")

        return heard

    def _call(self, what):
        self._calls.pop(what, lambda: None)()


def test_what_a_killed_node_was_at_is_done_elsewhere(cluster, opened, model, tmp_path, monkeypatch):
    """Both nodes are at work, on a model that comes by the shared folder, when one is killed."""

    doomed = cluster.list_all_nodes()[-1]
    heard = Heard(
        lambda: cluster.remove_node(doomed, allow_graceful=False), (tmp_path / "now").touch
    )
    monkeypatch.setattr(RayExecutor, "_tell", heard.tell(RayExecutor._tell))
    monkeypatch.setattr(ray_executor, "machine", lambda: "another")
    (tmp_path / "shared").mkdir()
    sources, folders = model
    call = Read("sha256:w", "a", when=str(tmp_path / "now"))
    whole_node = {"CPU": NODE["num_cpus"]}
    executor = opened(shared_folder=tmp_path / "shared", resources=whole_node)
    with closing(Dispatcher(executor)) as dispatcher:
        for key in ("one", "other"):
            dispatcher.begin(Job(key, call, Needs(device=True), sources), folders)
        assert [dispatcher.result(key) for key in ("one", "other")] == ["it", "it"]
    assert len(heard.lost) == 1


def test_a_node_evaluates_and_measures_as_this_process_does(
    opened, tmp_path, tiny_base, tiny_finetunes, monkeypatch
):
    """Its leaves come by the shared folder: the nodes are told that the daemon is elsewhere."""
    monkeypatch.setattr(ray_executor, "machine", lambda: "another")
    (tmp_path / "shared").mkdir()
    folders = {f"sha256:{each.name}": each for each in (tiny_base, *tiny_finetunes[:2])}
    sources = {name: Source(files_of(folder)) for name, folder in folders.items()}
    base, *leaves = folders
    settings = probe_settings(tmp_path / "tasks")
    call = Measure.of(gram.unmeasured(Checkpoint.open(folders[base]), base), tuple(leaves))
    found = []
    for executor in (opened(shared_folder=tmp_path / "shared"), Inline(Workshop(tmp_path / "log"))):
        with closing(Evaluators(executor, threading.Event())) as evaluators:
            known = evaluators.known(settings)
            made = leaf_assembly(folders[leaves[0]], leaves[0], tiny_base)
            named = NamedAssembly.of(made, {folder: name for name, folder in folders.items()})
            model = Ingredients(named, sources, folders)
            answered = evaluators.ask(known, model, missing(known, "selection"))
            columns = evaluators.do(Job("pass", call, NEEDS, sources), folders, lambda *_: None)
            found.append((known, answered.evaluation, columns.tolist()))
    assert found[0] == found[1]
    assert len(list((tmp_path / "node" / "leaves").glob("*/*.json"))) > 3


def files_of(folder):
    return tuple(
        File(path.name, path.stat().st_size, hash_file(path)) for path in sorted(folder.iterdir())
    )


def probe_settings(folder):
    documents = [{"prompt": f"{letter}{letter}=", "answer": letter} for letter in "abcdef"]
    lmtasks.probe(folder, "show", documents)
    return Settings(
        selection=(Task(task="show"),),
        validation=(),
        seed=0,
        include_path=(folder,),
        device="cpu",
        dtype="float32",
        threads=1,
    )


@pytest.fixture
def whole(cluster):
    """The cluster with both its nodes."""
    if len(cluster.list_all_nodes()) < 2:
        add_node(cluster)
    return cluster


@in_full
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_conforms(check, whole, opened):
    check(opened)


@in_full
def test_simulations_are_shared_among_the_nodes(whole, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    policies = {"greedy": make("topk-greedy", {})}
    arguments = ("synthetic", range(45), 4, lambda _done: None)
    with open_landscape("synthetic") as landscape:
        alone = list(evolutions(policies, landscape, *arguments[1:]))
    assert list(evolutions_by(processes(3, whole.address), policies, *arguments)) == alone


@in_full
def test_gpus_are_shared_and_further_resources_are_asked_for(whole, cluster, tmp_path):
    """Two workers on one GPU; it need not be there, for it is only counted here."""
    options = {"gpus_per_worker": 0.5, "resources": {"big": 1}, "address": cluster.address}
    options["node_cache"] = str(tmp_path / "node")
    node = add_node(cluster, num_gpus=1, resources={"big": 8})
    executor = RayExecutor(Workshop(tmp_path / "evaluate.log", ("cuda",), options=options))
    try:
        with closing(Dispatcher(executor)) as dispatcher:
            assert executor.slots == 2
            for key in ("a", "b"):
                dispatcher.begin(Job(key, Say(key), Needs(device=True)), {})
            assert [dispatcher.result(key)[0] for key in ("a", "b")] == ["a", "b"]
    finally:
        cluster.remove_node(node)


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


@in_full
def test_two_nodes_of_which_one_is_killed_give_the_lineage_of_inline(
    whole, cluster, calm, tmp_path, monkeypatch
):
    """Its leaves come by the shared folder: the nodes are told that the daemon is elsewhere."""
    doomed = cluster.list_all_nodes()[-1]
    heard = Heard(lambda: cluster.remove_node(doomed, allow_graceful=False))
    (tmp_path / "shared").mkdir()
    chosen = {
        "executor.use": "ray",
        "executor.address": cluster.address,
        "executor.shared_folder": str(tmp_path / "shared"),
        "executor.node_cache": str(tmp_path / "node"),
    }
    monkeypatch.setattr(RayExecutor, "_tell", heard.tell(RayExecutor._tell))
    monkeypatch.setattr(ray_executor, "machine", lambda: "another")
    found = lineage(tmp_path / "home", **chosen)
    assert heard.lost
    assert list((tmp_path / "node" / "leaves").glob("*/*.safetensors"))
    assert found == calm
    assert len(found[0]) > 3


@in_full
def test_what_a_cluster_cannot_give_is_said_and_waited_for(whole, cluster, tmp_path):
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
        node = add_node(cluster, resources={"big": 1})
        try:
            assert dispatcher.result("say")[0] == "a"
        finally:
            cluster.remove_node(node)


@in_full
def test_workers_with_nothing_to_do_make_room_for_others(whole, tmp_path):
    """Workers that evaluate hold all CPUs when a task needs one, and then the other way round."""
    said = []
    options = {"address": whole.address, "resources": {"CPU": NODE["num_cpus"]}}
    options["node_cache"] = str(tmp_path / "node")
    executor = RayExecutor(Workshop(tmp_path / "evaluate.log", options=options, say=said.append))
    with closing(Dispatcher(executor)) as dispatcher:
        for turn in ("first", "again"):
            jobs = [Job(f"{turn} {n}", Say("a"), Needs(device=True)) for n in range(executor.slots)]
            for job in jobs:  # at once, so that each is begun by a worker of its own
                dispatcher.begin(job, {})
            for job in jobs:
                assert dispatcher.result(job.key)[0] == "a"
            dispatcher.begin(Job(f"{turn} pass", Say("b"), NEEDS), {})
            assert dispatcher.result(f"{turn} pass")[0] == "b"
    assert any(words.endswith("it takes 1 CPU, 1 GB of memory") for words in said)


def test_gpus_for_a_daemon_without_any_are_refused(tmp_path):
    workshop = Workshop(tmp_path / "evaluate.log", options={"gpus_per_worker": 0.5})
    with pytest.raises(UsageError, match=r"gpus_per_worker is 0\.5, .* set evaluate\.device"):
        RayExecutor(workshop)


def test_a_cluster_of_another_python_is_refused(monkeypatch):
    import ray

    def init(*_given, **_named):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.10.1")

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UsageError, match=r"cluster auto has other versions: .* Python: 3\.10\.1"):
        connect("auto")


def test_without_a_cluster_or_without_ray_one_line_says_what_would_work(tmp_path, monkeypatch):
    workshop = Workshop(tmp_path / "evaluate.log", options={"address": "127.0.0.1:1"})
    with pytest.raises(Transient, match=r"address 127\.0\.0\.1:1: no Ray cluster answers there"):
        RayExecutor(workshop)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'kinship-daemon\[ray\]'"):
        RayExecutor(workshop)


@in_full
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shared_folder": Path("/dev/null/x")}, "executor.shared_folder /dev/null/x: Not a"),
        (
            {"node_cache": "/dev/null/x"},
            "node .*/dev/null/.*: Not a directory; set executor.node_cache",
        ),
        ({"node_disk_gb": 1e-9}, "has no room for sha256:w .*executor.node_disk_gb is 1e-09"),
        ({"shared_folder": None}, r"is on no hub: set executor\.shared_folder"),
    ],
)
def test_what_a_node_lacks_is_one_line(opened, model, tmp_path, monkeypatch, options, words):
    (tmp_path / "shared").mkdir()
    sources, folders = model
    monkeypatch.setattr(ray_executor, "machine", lambda: "another")
    executor = opened(**{"shared_folder": tmp_path / "shared", **options})
    with closing(Dispatcher(executor)) as dispatcher:
        dispatcher.begin(Job("read", Read("sha256:w", "a"), sources=sources), folders)
        with pytest.raises(KinshipError, match=words):
            dispatcher.result("read")


@in_full
def test_a_node_with_other_versions_is_refused_by_name(opened, monkeypatch):
    ours = {**ray_executor.versions(), "torch": "0.1"}
    monkeypatch.setattr(ray_executor, "versions", lambda: ours)
    with closing(Dispatcher(opened())) as dispatcher:
        dispatcher.begin(Job("say", Say("a")), {})
        with pytest.raises(UsageError, match=r"node .* has torch .* and the daemon 0\.1"):
            dispatcher.result("say")
