"""A generation of six merges evaluated by one worker, by four, and in this process."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event

from tests.bench.bench import Bench
from tests.bench.table import Row, verdict
from tests.tiny import base, finetune

from kinship_daemon.evaluate.scoring import missing
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.execute.evaluation import Evaluators, Ingredients, NamedAssembly
from kinship_daemon.execute.executor import Executor
from kinship_daemon.execute.inline import Inline
from kinship_daemon.execute.local import Local
from kinship_daemon.execute.site import Workshop
from kinship_daemon.weights.materialise import leaf_assembly

__all__ = ["workers"]

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
    bench.progress.runs("six models of 2 s each, by one worker, by four, in this process")
    made = [_ingredients(folder) for folder in models]
    inline = _best(bench.repeat, Inline, settings, made, room / "inline.log", 1)
    one = _best(bench.repeat, Local, settings, made, room / "one.log", 1)
    four = _best(bench.repeat, Local, settings, made, room / "four.log", 4)
    facts = {"inline": inline, "one": one, "four": four}
    return [
        Row(
            f"a generation of {_MERGES}, {_SECONDS:g} s each: four workers against one",
            f"{four:.2f} s",
            f"{one:.2f} s",
            f"{four / one:.2f} of the time",
            "under 0.45",
            verdict(four / one < 0.45),
            facts=facts,
        ),
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


def _ingredients(folder: Path) -> Ingredients:
    assembly = leaf_assembly(folder, f"sha256:{folder.name}")
    named = NamedAssembly.of(assembly, {folder: assembly.identity})
    return Ingredients(named, {}, {assembly.identity: folder})


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
