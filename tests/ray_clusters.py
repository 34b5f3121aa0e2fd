"""Ray clusters of several nodes on this machine."""

import os
from contextlib import contextmanager

# On a loaded machine a node takes longer than Ray has patience.
os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112 - it is named so

NODE = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 10**8}


@contextmanager
def ray_cluster(nodes=2, **head):
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False, **head}
    )
    try:
        for _ in range(nodes - 1):
            made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()
