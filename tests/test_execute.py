"""Every executor of ours does what the shipped suite asks of executors."""

import pytest

from kinship_daemon.execute.inline import Inline
from kinship_daemon.execute.local import Local
from kinship_daemon.execute.site import Workshop
from kinship_daemon.execute.testing import CHECKS

pytestmark = pytest.mark.usefixtures("warm_worker")


@pytest.mark.parametrize("make", [Inline, Local])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_our_executors_conform(make, check, tmp_path):
    check(lambda: make(Workshop(tmp_path / "evaluate.log", ("cpu", "cpu"))))
