"""Many simulated evolutions, here or by an executor: the same runs, in the same order."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.errors import UsageError
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.executor import Executor, Job, Site
from kinship_daemon.execute.local import Local
from kinship_daemon.execute.ray_executor import RayExecutor
from kinship_daemon.execute.site import Workshop
from kinship_daemon.home import state_directory
from kinship_daemon.landscapes import open_landscape
from kinship_policies.policy import Policy
from kinship_policies.simulate.evolution import Run, evolve, uses
from kinship_policies.simulate.landscape import Landscape

__all__ = ["evolutions", "evolutions_by", "processes"]

# Told how many evaluations more are done.
Tick = Callable[[int], None]
# Seeds of a job: it takes about a tenth of a second, so that workers end together.
_SEEDS = 20


def evolutions(
    policies: Mapping[str, Policy],
    landscape: Landscape,
    seeds: Sequence[int],
    budget: int,
    tick: Tick,
) -> Iterator[Run]:
    """Every policy, by its label, under every seed, in that order of seeds."""
    for seed in seeds:
        for label, policy in policies.items():
            world = landscape.world(seed, uses(policy))
            run = evolve(label, policy, world, seed=seed, budget=budget, tick=tick)
            tick(budget - run.evaluations)  # those that it did without
            yield run


@dataclass(frozen=True)
class _Evolve:
    """The job to do some seeds of them."""

    policies: Mapping[str, Policy]
    place: str
    seeds: Sequence[int]
    budget: int

    def __call__(self, site: Site) -> list[Run]:
        runs = []
        each = len(self.policies)
        with open_landscape(self.place) as landscape:
            args = (self.policies, landscape, self.seeds, self.budget)
            for run in evolutions(*args, lambda _done: None):
                runs.append(run)
                if len(runs) % each == 0:
                    site.progress(len(runs) * self.budget, len(self.seeds) * each * self.budget)
        return runs


def evolutions_by(
    executor: Executor,
    policies: Mapping[str, Policy],
    place: str,
    seeds: Sequence[int],
    budget: int,
    tick: Tick,
) -> Iterator[Run]:
    """
    The same, done by an executor, which ends with it.

    Args:
        place: As `open_landscape` takes it, wherever the jobs are done.

    Raises:
        UsageError: A policy cannot be sent to another process.
        WorkerDied: A worker did.
    """
    _check_can_be_sent(policies)
    blocks = [seeds[first : first + _SEEDS] for first in range(0, len(seeds), _SEEDS)]
    done: dict[str, int] = {}

    def watch(key: str, far: int, _total: int) -> None:
        tick(far - done.get(key, 0))
        done[key] = far

    with closing(Dispatcher(executor, watch=watch)) as dispatcher:
        for block in blocks:
            call = _Evolve(policies, place, block, budget)
            dispatcher.begin(Job(_name(block), call), {})
        for block in blocks:
            yield from dispatcher.result(_name(block))


def processes(count: int, ray: str | None = None) -> Executor:
    """
    So many processes of this machine, for jobs that need no device.

    Args:
        ray: The address of a Ray cluster, on whose machines they are instead.
    """
    if ray is not None:
        log = state_directory() / "logs" / "evaluate.log"
        options = {"address": ray}
        return RayExecutor(Workshop(log, devices=(), processes=count, options=options))
    return Local(Workshop(Path("evaluate.log"), devices=(), processes=count))


def _name(block: Sequence[int]) -> str:
    return f"seeds {block[0]} to {block[-1]}"


def _check_can_be_sent(policies: Mapping[str, Policy]) -> None:
    for label, policy in policies.items():
        try:
            pickle.loads(pickle.dumps(policy))  # noqa: S301 - our own
        except Exception as error:
            raise UsageError(
                f"policy {label} cannot be sent to another process ({error}); leave out --workers"
            ) from None
