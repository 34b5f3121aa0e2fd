"""A generation of six merges evaluated by one worker, by four, in this process, and on Ray."""

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event

from tests.bench.bench import Bench
from tests.bench.table import Row, verdict
from tests.ray_clusters import ray_cluster
from tests.tiny import base, finetune

from kinship_daemon.durable import hash_file
from kinship_daemon.evaluate.scoring import missing
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.evaluation import Evaluators, Ingredients, NamedAssembly
from kinship_daemon.execute.executor import Executor, Job, Needs, Source
from kinship_daemon.execute.inline import Inline
from kinship_daemon.execute.local import Local
from kinship_daemon.execute.ray_executor import RayExecutor
from kinship_daemon.execute.site import Workshop
from kinship_daemon.execute.testing.jobs import Say
from kinship_daemon.weights.materialise import leaf_assembly
from kinship_storage.records import File

__all__ = ["on_ray", "workers"]

_MERGES = 6
_SECONDS = 2.0  # of waiting, in every evaluation
_DOCUMENTS = 20
_TASK = """task: slow
custom_dataset: !function code.load
output_type: loglikelihood
test_split: test
doc_to_text: question
doc_to_target: answer
process_results: !function code.slowly
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
_CODE = f"""import time
from datasets import Dataset

def load(**_):
    rows = [{{"question": f"{{n}}=", "answer": "a"}} for n in range({_DOCUMENTS})]
    return {{"test": Dataset.from_list(rows)}}

def slowly(document, results):
    time.sleep({_SECONDS / _DOCUMENTS})
    return {{"acc": float(results[0][1])}}
"""


def workers(bench: Bench) -> list[Row]:
    room = bench.scratch / "workers"
    settings, made = _generation(room)
    bench.progress.runs("six models of 2 s each, by one worker, by four, in this process")
    inline = _best(bench.repeat, Inline, settings, made, room / "inline.log", 1)
    one = _best(bench.repeat, Local, settings, made, room / "one.log", 1)
    four = _best(bench.repeat, Local, settings, made, room / "four.log", 4)
    facts = {"inline": inline, "one": one, "four": four}
    return [
        _four_against_one("", one, four, facts),
        Row(
            "the same: `local` with one worker against `inline`",
            f"{one:.2f} s",
            f"{inline:.2f} s",
            f"{one / inline:.3f} of the time",
            "under 1.05",
            verdict(one / inline < 1.05),
            facts=facts,
        ),
    ]


def on_ray(bench: Bench) -> list[Row]:
    room = bench.scratch / "ray"
    settings, made = _generation(room)
    bench.progress.runs("the same on two nodes of a Ray cluster, and a job that does nothing")
    with ray_cluster() as cluster:
        options = {"address": cluster.address, "node_cache": str(room / "node")}

        def opened(workshop: Workshop) -> Executor:
            most = len(workshop.devices)  # a node has room for two
            workshop = replace(workshop, options={**options, "workers": most})
            return RayExecutor(workshop)

        one = _best(bench.repeat, opened, settings, made, room / "one.log", 1)
        four = _best(bench.repeat, opened, settings, made, room / "four.log", 4)
        each = _overhead(opened(Workshop(room / "jobs.log")))
    facts = {"one": one, "four": four, "overhead": each}
    return [
        _four_against_one("on two Ray nodes, ", one, four, facts),
        Row(
            "a Ray job that does nothing: median of 100",
            f"{1000 * each:.1f} ms",
            "",
            "",
            "under 50 ms",
            verdict(each < 0.05),
            facts=facts,
        ),
    ]


def _overhead(executor: Executor) -> float:
    """Seconds from submitting a job to its result, of a worker that was at work before."""
    times = []
    with closing(Dispatcher(executor)) as dispatcher:
        for number in range(101):
            began = time.perf_counter()
            dispatcher.begin(Job(f"{number}", Say("a"), Needs(device=True)), {})
            dispatcher.result(f"{number}")
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _four_against_one(where: str, one: float, four: float, facts: dict[str, float]) -> Row:
    return Row(
        f"{where}a generation of {_MERGES}, {_SECONDS:g} s each: four workers against one",
        f"{four:.2f} s",
        f"{one:.2f} s",
        f"{four / one:.2f} of the time",
        "under 0.45",
        verdict(four / one < 0.45),
        facts=facts,
    )


def _generation(room: Path) -> tuple[Settings, list[Ingredients]]:
    (room / "tasks").mkdir(parents=True)
    (room / "tasks" / "code.py").write_text(_CODE, encoding="utf-8")
    (room / "tasks" / "slow.yaml").write_text(_TASK, encoding="utf-8")
    settings = Settings(
        selection=(Task(task="slow"),),
        validation=(),
        seed=0,
        device="cpu",
        dtype="float32",
        threads=1,
        include_path=(room / "tasks",),
    )
    founder = base(room / "base")
    models = [finetune(founder, room / str(n), seed=n) for n in range(_MERGES)]
    return settings, [_ingredients(folder) for folder in models]


def _ingredients(folder: Path) -> Ingredients:
    assembly = leaf_assembly(folder, f"sha256:{folder.name}")
    named = NamedAssembly.of(assembly, {folder: assembly.identity})
    weights = folder / "model.safetensors"
    source = Source((File(weights.name, weights.stat().st_size, hash_file(weights)),))
    return Ingredients(named, {assembly.identity: source}, {assembly.identity: folder})


def _best(
    repeat: int,
    opened: Callable[[Workshop], Executor],
    settings: Settings,
    models: list[Ingredients],
    log: Path,
    count: int,
) -> float:
    """Seconds of the fastest generation, by workers that were at work before."""
    with closing(Evaluators(opened(Workshop(log, ("cpu",) * count)), Event())) as evaluators:
        known = evaluators.known(settings)
        asked = missing(known, "selection")

        def all_of(models: list[Ingredients]) -> None:
            for model in models:
                evaluators.begin(model.assembly.identity, known, model, asked)
            for model in models:
                evaluators.result(model.assembly.identity)

        all_of(models)  # every worker is started by it
        times = []
        for _ in range(repeat):
            began = time.perf_counter()
            all_of(models)
            times.append(time.perf_counter() - began)
    return min(times)
