"""Ten thousand simulated evolutions by one process, and shared by two: the same runs."""

import os
import time
from collections.abc import Callable, Iterable

from tests.bench.bench import Bench
from tests.bench.table import Row, verdict

from kinship_daemon.landscapes import open_landscape
from kinship_daemon.simulation import evolutions, evolutions_by, processes
from kinship_policies.registry import make
from kinship_policies.simulate.evolution import Run

__all__ = ["simulations"]

_POLICIES = ("topk-greedy", "topk-kinship")
_PLACE, _BUDGET = "synthetic", 40
_FASTER = 1.7


def simulations(bench: Bench) -> list[Row]:
    policies = {name: make(name, {}) for name in _POLICIES}
    seeds = range(5 * bench.evolutions)
    runs = len(seeds) * len(policies)
    bench.progress.runs(f"{runs:,} evolutions by one process, and by two")

    def alone() -> Iterable[Run]:
        with open_landscape(_PLACE) as landscape:
            yield from evolutions(policies, landscape, seeds, _BUDGET, lambda _done: None)

    def shared() -> Iterable[Run]:
        return evolutions_by(processes(2), policies, _PLACE, seeds, _BUDGET, lambda _done: None)

    (first, one, one_cpu), (second, two, two_cpu) = _timed(alone), _timed(shared)
    same = first == second
    return [
        Row(
            f"{runs:,} simulated evolutions: two processes against one",
            f"{two:.1f} s",
            f"{one:.1f} s",
            f"{one / two:.2f} times faster",
            f"{_FASTER:g}, the same runs",
            verdict(same, one / two >= _FASTER),
            notes=(f"of CPU: {two_cpu:.1f} s in all by two, {one_cpu:.1f} s by one",),
            facts={"one": one, "two": two, "one_cpu": one_cpu, "two_cpu": two_cpu, "same": same},
        )
    ]


def _timed(runs: Callable[[], Iterable[Run]]) -> tuple[list[Run], float, float]:
    """The runs, the seconds they took, and those of CPU, of ended children too."""
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    found = list(runs())
    return found, time.perf_counter() - began, sum(os.times()[:4]) - cpu
