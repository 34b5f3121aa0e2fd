"""
What every policy must keep, as checks that anybody can run on theirs::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_policy(check):
        check(MyPolicy())

Each check takes a policy and raises `ConformanceError`, an AssertionError, saying what it did and
where. Needs no test framework.
"""

from kinship_policies.testing.checks import CHECKS, conforms
from kinship_policies.testing.landscape import ConformanceError, Landscape, evolve

__all__ = ["CHECKS", "ConformanceError", "Landscape", "conforms", "evolve"]
