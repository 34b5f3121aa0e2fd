"""The Ray executor on real clusters of this machine: as inline, also when a node is killed."""

import pytest

from kinship_daemon.execute.site import Workshop
from kinship_daemon.execute.testing import CHECKS

ray = pytest.importorskip("ray", reason="RAY IS NOT TESTED: it cannot be imported here")

from kinship_daemon.execute.ray_executor import RayExecutor  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, and this process connected to them."""
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
