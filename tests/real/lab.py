"""
The laboratory: merges of the zoo, scored by the daemon's own engine, and policies let loose on it.

All scores are kept in the zoo's `results`, so a run that was interrupted goes on where it was.
"""

import atexit
import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.real.predictors import Pairs, pair_facts
from tests.real.skills import SKILLS, task
from tests.real.zoo import BASE, COURSES

from kinship_daemon.durable import whole_file, whole_folder
from kinship_daemon.evaluate.evaluator import Evaluator, open_evaluator
from kinship_daemon.evaluate.settings import Evaluate, Settings
from kinship_daemon.landscapes.control import CONTROLS, Control, write_control
from kinship_daemon.landscapes.real import RealModels, Scores
from kinship_daemon.weights.assembly import Assembly, Makeable, assemble, leaf_assembly
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe, combine, leaf
from kinship_daemon.weights.whole_tensor import whole_tensor_assembly
from kinship_policies import registry
from kinship_policies.simulate.evolution import evolve, uses
from kinship_policies.simulate.landscape import DEFAULT_METHOD, Merge, Model, World
from kinship_storage.records import Split

__all__ = ["BUDGET", "FOUNDERS", "SETS", "Job", "laboratory"]

FOUNDERS = 4
BUDGET = 12
SETS = 8  # of founders; the seeds
RUNS = 4  # of them that policies start from
POLICIES = ("soup", "greedy-soup", "topk-kinship", "topk-greedy", "coefficient-gp")
_SUM = {"weight": 1.0}
Method = tuple[str, dict[str, Any]]
# For two parents, and for all of a set; the slow ones apart, so that they come last.
PAIR_METHODS: tuple[Method, ...] = (
    ("slerp", {"t": 0.5}),
    ("task_arithmetic", {**_SUM, "lambda": 1.0}),
    ("task_arithmetic", {**_SUM, "lambda": 0.7}),
)
SET_METHODS: tuple[Method, ...] = (
    ("linear", {"weight": 1.0}),
    ("task_arithmetic", {**_SUM, "lambda": 0.5}),
    ("task_arithmetic", {**_SUM, "lambda": 0.7}),
    ("task_arithmetic", {**_SUM, "lambda": 1.0}),
    ("metagpt", {}),
    ("ties", {**_SUM, "density": 0.5}),
)
SLOW_METHODS: tuple[Method, ...] = (("wudi", {}), ("iso_c", {}), ("tsv", {}))


@dataclass(frozen=True)
class Job:
    """
    A merge to score, or, with a policy, an evolution to run, by a method of merging if one is said.

    Attributes:
        control: What stands in for the fine-tunes; `half` where that is so for all but the first.
        parents: Names; one for a fine-tune, none for the base.
    """

    control: str = "none"
    parents: tuple[str, ...] = ()
    method: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    split: Split = "validation"
    policy: str = ""
    seed: int = 0


def jobs(models: RealModels) -> Iterator[Job]:
    """In the order of what they are worth, should time run out."""
    names = sorted(models.names)
    pairs = list(combinations(names, 2))
    sets = [tuple(names), *(models.founders(seed) for seed in range(SETS))]
    for split in ("selection", "validation"):
        yield Job(split=split)
        yield from (Job(parents=(name,), split=split) for name in names)
    yield from _merges(PAIR_METHODS, pairs)
    yield from _merges(SET_METHODS, sets)
    yield from (Job(policy=policy, seed=s) for s in range(RUNS) for policy in POLICIES)
    # The paper's policy and its baseline, where merges are sums.
    for name in ("topk-kinship", "topk-greedy"):
        for seed in range(SETS):
            yield Job("none", (), *PAIR_METHODS[1], policy=name, seed=seed)
    # One parent is as it is, of the other only the length is left.
    yield from (Job("half", pair, *PAIR_METHODS[0]) for pair in pairs)
    yield from _controlled("random", names)
    yield from _merges(SET_METHODS[-1:], pairs)
    yield from (Job(policy="random", seed=seed) for seed in range(RUNS))
    yield from _merges(SLOW_METHODS, [*pairs, *sets])
    yield from _controlled("rotated", names)


def _merges(methods: Sequence[Method], parents: Sequence[tuple[str, ...]]) -> Iterator[Job]:
    for name, parameters in methods:
        yield from (Job("none", each, name, parameters) for each in parents)


def _controlled(control: str, names: list[str]) -> Iterator[Job]:
    yield from (Job(control, (name.replace("real/", f"{control}/"),)) for name in names)
    yield from (Job(control, policy="soup", seed=seed) for seed in range(SETS))


def open_evaluator_of(zoo: Path) -> Evaluator:
    section = Evaluate(
        selection=[task(skill, "selection") for skill in SKILLS],
        validation=[task(skill, "validation") for skill in SKILLS],
        include_path=(zoo / "tasks",),
        device="cpu",
        threads=1,
        batch_size=64,
    )
    (zoo / "results").mkdir(exist_ok=True)
    return open_evaluator(Settings.of(section, seed=0), log=zoo / "results" / "evaluate.log")


def open_models(zoo: Path, evaluator: Evaluator, control: str = "none") -> RealModels:
    """The landscape of the zoo's models, or of what stands in for them."""
    folder = zoo / ("real" if control == "none" else control)
    repos = [folder / course.name for course in COURSES]
    scores = Scores(evaluator, zoo / "results")
    return RealModels(zoo / BASE, repos, FOUNDERS, f"the zoo, control {control}", scores)


@contextmanager
def laboratory(
    zoo: Path, workers: int = 2
) -> Iterator[tuple[Future[Pairs], Iterator[tuple[Job, dict[str, Any]]]]]:
    """
    What can be known of pairs beforehand; and of every job, as it is done, per task the documents'
    scores as a text of 0 and 1, or what became of a policy.
    """
    todo = list(jobs(open_models(zoo, open_evaluator_of(zoo))))
    lost = [
        (zoo / control / course.name, control, zoo / "real" / course.name)
        for control in CONTROLS
        for course in COURSES
        if not (zoo / control / course.name).is_dir()
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_enter, initargs=(zoo,)) as pool:
        for done in [pool.submit(_forget, zoo / BASE, *each) for each in lost]:
            done.result()
        pairs = pool.submit(_pairs, zoo / "results" / "pairs.json")
        yield pairs, zip(todo, pool.map(_work, todo), strict=True)


def _pairs(kept: Path) -> Pairs:
    if not kept.exists():
        found = [[*pair, facts] for pair, facts in pair_facts(_models("none")).items()]
        whole_file(kept, json.dumps(found).encode())
    return {(a, b): facts for a, b, facts in json.loads(kept.read_bytes())}


def _forget(base: Path, target: Path, control: Control, folder: Path) -> None:
    with whole_folder(target) as partial:
        write_control(control, base, folder, partial)


_models: Callable[[str], RealModels]  # in a worker: by control


def _enter(zoo: Path) -> None:
    """One evaluator for all; it ends with the worker."""
    global _models  # noqa: PLW0603 - a pool's initialiser has no other way
    evaluator = open_evaluator_of(zoo)
    atexit.register(evaluator.close)
    _models = functools.cache(functools.partial(open_models, zoo, evaluator))


def _work(job: Job) -> dict[str, Any]:
    models = _models("none" if job.control == "half" else job.control)
    if job.policy:
        policy = registry.make(job.policy)
        world: World = models.world(job.seed, uses(policy))
        if job.method:
            world = _Instead(world, job)
        return evolve(job.policy, policy, world, seed=job.seed, budget=BUDGET).to_json()
    found = models.scores.of(_makeable(models, job), job.split)
    return {task: "".join(str(round(value)) for value in values) for task, values in found.items()}


class _Instead:
    """A world in which what would be merged by the default method is merged by the job's."""

    def __init__(self, world: World, job: Job) -> None:
        self._world, self._job, self.founders = world, job, world.founders
        self.kinship, self.layers, self.true = world.kinship, world.layers, world.true

    def merge(self, merge: Merge) -> Model | None:
        if merge.method == DEFAULT_METHOD:
            merge = replace(merge, method=self._job.method, parameters=self._job.parameters)
        return self._world.merge(merge)


def _makeable(models: RealModels, job: Job) -> Makeable:
    if not job.parents:
        return leaf_assembly(models.base, models.ledger.base)
    rows = [models.names[name] for name in job.parents]
    if job.control == "half":
        return _half(models, job, rows)
    if len(rows) == 1:
        return leaf_assembly(models.folders[rows[0]], rows[0], models.base)
    recipe = Recipe(job.method, job.parents, job.parameters)
    identity, donor = recipe.identity(rows), models.folders[rows[0]]
    if method(job.method).kind == "span":
        made = combine(models.ledger, recipe, [leaf(models.ledger, row) for row in rows])
        return assemble(models.ledger, made, models.base, models.folders, identity, donor=donor)
    parents = [leaf_assembly(models.folders[row], row, models.base) for row in rows]
    names = models.ledger.names
    return whole_tensor_assembly(recipe, parents, names, models.base, identity, donor)


def _half(models: RealModels, job: Job, rows: list[str]) -> Makeable:
    """The mean of a model with another that has forgotten all: (w_1 + control of w_2) / 2."""
    random = _models("random")
    other = random.names[job.parents[1].replace("real/", "random/")]
    identity = Recipe(job.method, job.parents, job.parameters).identity([rows[0], other])
    folders = models.folders[rows[0]], random.folders[other]
    weights = tuple((name, (0.0, 0.5, 0.5)) for name in models.ledger.names)
    return Assembly(identity, models.base, folders, weights, models.base)
