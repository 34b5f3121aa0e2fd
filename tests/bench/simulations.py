"""Ten thousand simulated evolutions by one process, and shared by two: the same runs."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
# Shares that are done in turns: whatever else the machine does meanwhile slows both down alike.
_TURNS = 5


@dataclass
class _Spent:
    """Seconds, and those of CPU, of ended children too."""

    seconds: float = 0.0
    cpu: float = 0.0


def simulations(bench: Bench) -> list[Row]:
    policies = {name: make(name, {}) for name in _POLICIES}
    seeds = range(5 * bench.evolutions)
    runs = len(seeds) * len(policies)
    bench.progress.runs(f"{runs:,} evolutions by one process, and by two, in {_TURNS} turns")

    def alone(seeds: range) -> Iterable[Run]:
        with open_landscape(_PLACE) as landscape:
            yield from evolutions(policies, landscape, seeds, _BUDGET, lambda _done: None)

    def shared(seeds: range) -> Iterable[Run]:
        return evolutions_by(processes(2), policies, _PLACE, seeds, _BUDGET, lambda _done: None)

    one, two, same = _Spent(), _Spent(), True
    for turn in range(_TURNS):
        share = seeds[turn * len(seeds) // _TURNS : (turn + 1) * len(seeds) // _TURNS]
        same &= _timed(alone, share, one) == _timed(shared, share, two)
    faster = one.seconds / two.seconds
    return [
        Row(
            f"{runs:,} simulated evolutions: two processes against one",
            f"{two.seconds:.1f} s",
            f"{one.seconds:.1f} s",
            f"{faster:.2f} times faster",
            f"{_FASTER:g}, the same runs",
            verdict(same, faster >= _FASTER),
            notes=(
                f"of CPU: {two.cpu:.1f} s in all by two, {one.cpu:.1f} s by one, so that two cores "
                f"of their own would be {2 * one.cpu / two.cpu:.2f} times faster at most",
            ),
            facts={
                "one": one.seconds,
                "two": two.seconds,
                "one_cpu": one.cpu,
                "two_cpu": two.cpu,
                "same": same,
            },
        )
    ]


def _timed(runs: Callable[[range], Iterable[Run]], seeds: range, spent: _Spent) -> list[Run]:
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    found = list(runs(seeds))
    spent.seconds += time.perf_counter() - began
    spent.cpu += sum(os.times()[:4]) - cpu
    return found
