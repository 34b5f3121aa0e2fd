"""
What every executor must keep, as checks that anybody can run on theirs::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_executor(check):
        check(lambda: MyExecutor(...))

Each check is given what opens an executor, closes all that it opens, and raises
`ConformanceError`, an AssertionError, saying what was done and what came of it. Needs no test
framework. The jobs are `kinship_daemon.execute.testing.jobs`, which workers must be able to import.
"""

from kinship_daemon.execute.testing.checks import CHECKS, ConformanceError, conforms

__all__ = ["CHECKS", "ConformanceError", "conforms"]
