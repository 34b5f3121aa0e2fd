"""Ray clusters of several nodes on this machine."""

from contextlib import contextmanager

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
