"""Ray clusters of several nodes on this machine."""

import os
from contextlib import contextmanager

# On a loaded machine a node takes longer than Ray has patience, or fails: then once more.
os.environ["RAY_raylet_start_wait_time_s"] = "60"  # noqa: SIM112 - it is named so
TRIES = 5

NODE = {
    "num_cpus": 2,
    "num_gpus": 0,
    "object_store_memory": 10**8,
    "include_log_monitor": False,  # nobody reads along
}
# Neither web pages nor an autoscaler.
HEAD = {**NODE, "include_dashboard": False, "no_monitor": True}


@contextmanager
def ray_cluster(nodes=2, **head):
    made = start_head(**head)
    try:
        for _ in range(nodes - 1):
            add_node(made)
        yield made
    finally:
        made.shutdown()


def start_head(**given):
    from ray.cluster_utils import Cluster

    for tries in range(TRIES):
        made = Cluster()
        try:
            made.add_node(**{**HEAD, **given})
            return made
        except Exception:  # that is all that Ray says
            made.shutdown()
            if tries == TRIES - 1:
                raise
    raise AssertionError


def add_node(cluster, **given):
    for tries in range(TRIES):
        try:
            return cluster.add_node(**{**NODE, **given})
        except Exception:
            if tries == TRIES - 1:
                raise
    raise AssertionError
