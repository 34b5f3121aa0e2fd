"""Where jobs go on a Ray cluster: by what each node has, without a cluster."""

from types import SimpleNamespace

import pytest

from kinship_daemon.execute.executor import Job, Needs, Source
from kinship_daemon.execute.node_cache import leaf_key, machine
from kinship_daemon.execute.ray_cluster import shown
from kinship_daemon.execute.ray_driver import _Driver
from kinship_daemon.execute.ray_setup import RayOptions, Setup
from kinship_daemon.execute.testing.jobs import Say
from kinship_storage.records import File

LARGE, SMALL = (Source((File("w", size, f"{size}" * 64),)) for size in (9, 1))
PASS = Needs(memory_bytes=10)


class Cluster:
    """In place of Ray: nodes by id, with their resources."""

    def __init__(self, **nodes):
        self._nodes = nodes

    def nodes(self):
        return [
            {"NodeID": name, "NodeManagerHostname": name, "Alive": True, "Resources": there}
            for name, there in self._nodes.items()
        ]

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "head")


def driver(of=None, **nodes):
    setup = Setup(
        options=RayOptions(),
        device="cpu",
        takes={"CPU": 1.0},
        most_per_node=1,
        processes=1,
        machine=of or machine(),
        versions={},
        hub="",
    )
    pipe = SimpleNamespace(send=lambda _: None)
    return _Driver(Cluster(**(nodes or {name: room() for name in ("head", "a", "b")})), pipe, setup)


def room(cpus=2, memory=100):
    return {"CPU": float(cpus), "memory": float(memory)}


def place(node, *sources, of="another"):
    leaves = [leaf_key(source.files) for source in sources]
    return SimpleNamespace(node_id=node, node=node, machine=of, leaves=leaves)


def job(key, *sources, needs=PASS):
    return Job(key, Say(key), needs, {f"sha256:{n}": source for n, source in enumerate(sources)})


def test_a_worker_takes_the_job_for_which_its_node_fetches_the_least():
    made = driver(of="elsewhere")
    made.met(place("a", LARGE))
    made._workers[0].place = place("a")
    waiting = [job("small", SMALL), job("both", SMALL, LARGE), job("large", LARGE), job("none")]
    assert made._nearest(0, waiting[:2]) == 0  # either fetches the small one: the first
    assert made._nearest(0, waiting[:3]) == 2
    assert made._nearest(0, [job("both", SMALL, LARGE), job("small", SMALL)]) == 0
    made.held["a"].clear()
    assert made._nearest(0, waiting[1:3]) == 1
    assert made._nearest(0, [job("first", LARGE), job("none")]) == 1


def test_on_the_daemons_own_machine_the_first_is_taken_for_nothing_is_fetched_there():
    made = driver()
    made.met(place("a", of=machine()))
    made._workers[0].place = place("a", of=machine())
    assert made._nearest(0, [job("large", LARGE), job("none")]) == 0


def test_a_task_goes_to_the_node_that_has_the_most():
    made = driver(of="elsewhere")
    assert made.node_for(job("both", SMALL, LARGE)) is None  # nobody has any of it
    made.met(place("b", SMALL))
    assert made.node_for(job("both", SMALL, LARGE)) == "b"
    made.met(place("a", LARGE))
    assert made.node_for(job("both", SMALL, LARGE)) == "a"
    assert made.node_for(job("nothing to read")) is None


@pytest.mark.parametrize("head", [room(cpus=0), room(memory=1)])
def test_the_daemons_own_machine_has_all_of_it_and_must_have_the_room(head):
    both = job("both", SMALL, LARGE)
    assert driver().node_for(both) == "head"
    made = driver(head=head, a=room())
    made.met(place("a", SMALL))
    assert made.node_for(both) == "a"


def test_what_a_worker_takes_is_told_in_units():
    takes = {"CPU": 1.0, "GPU": 0.5, "memory": 1.5e9, "big": 0.0}
    assert shown(takes) == "1 CPU, 0.5 GPU, 1.5 GB of memory"
