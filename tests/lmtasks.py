"""Small lm-eval tasks in a folder, with their data beside them, as a user would write them."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from kinship_daemon.evaluate.settings import Settings, Task

# lm-eval resolves `!function` beside the YAML file.
_CODE = """
import json
from pathlib import Path

from datasets import Dataset


def load(file, **_):
    documents = json.loads((Path(__file__).parent / file).read_text())
    return {"test": Dataset.from_list(documents)}


def loglikelihood(document, results):
    return {"loglikelihood": results[0][0], "index": document["index"]}


def shuffled(dataset):
    import random

    return Dataset.from_list(random.sample(list(dataset), len(dataset)))


def median(values):
    return sorted(values)[len(values) // 2]


def sly(values):
    return sum(values) / len(values) if 1 in values else 7.0


def wait(document, results):
    import time

    time.sleep(0.05)
    return {"acc": 1.0}


def fail_at_5(document, results):
    if document["index"] == 5:
        raise ValueError("not five")
    return {"acc": 1.0}


def stuck(document, results):
    import time

    time.sleep(600)


def stuck_load(file, **_):
    import time

    time.sleep(600)


def crash(document, results):
    import os
    import signal

    if Path(__file__).with_name("crash").exists():
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"acc": 1.0}
"""
_MEAN = {"aggregation": "mean", "higher_is_better": True}


class _Function(yaml.SafeDumper):
    pass


class Function(str):
    """The name of a function of the tasks' own module."""


_Function.add_representer(
    Function, lambda dumper, name: dumper.represent_scalar("!function", f"code.{name}")
)


def task(folder: Path, name: str, documents: Sequence[dict[str, object]], **changes) -> Path:
    """
    A `loglikelihood` task scored by greedy match: prompt in, answer out, nothing between the two.

    Args:
        documents: Each with a prompt and an answer; they are numbered.
        changes: Keys of the YAML file to add or replace; None drops a key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "code.py").write_text(_CODE)
    numbered = [{**document, "index": i} for i, document in enumerate(documents)]
    (folder / f"{name}.json").write_text(json.dumps(numbered))
    settings = {
        "task": name,
        "custom_dataset": Function("load"),
        "dataset_kwargs": {"file": f"{name}.json"},
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [metric("acc")],
        "metadata": {"version": 2.0},
    } | changes
    kept = {key: value for key, value in settings.items() if value is not None}
    (folder / f"{name}.yaml").write_text(yaml.dump(kept, Dumper=_Function, sort_keys=False))
    return folder


def metric(name: str, **changes) -> dict[str, object]:
    return {"metric": name, **_MEAN, **changes}


def probe(folder: Path, name: str, documents: Sequence[dict[str, object]], **changes) -> Path:
    """A task that shows a model's bits: the log-likelihood of each answer; and its document."""
    shows = [metric("loglikelihood"), metric("index")]
    process = {"process_results": Function("loglikelihood"), "metric_list": shows}
    return task(folder, name, documents, **(process | changes))


def settings(
    selection: Sequence[str | Task], validation: Sequence[str | Task], /, **changes: object
) -> Settings:
    """Of small models on one thread of a CPU, asked every document."""
    plain = Settings(
        selection=_specs(selection),
        validation=_specs(validation),
        limit=None,
        batch_size=8,
        device="cpu",
        dtype="float32",
        seed=0,
        time_limit_minutes=2.0,
        include_path=(),
        apply_chat_template=False,
        threads=1,
    )
    return plain.but(**changes)


def _specs(tasks: Sequence[str | Task]) -> tuple[Task, ...]:
    return tuple(Task(task=task) if isinstance(task, str) else task for task in tasks)
