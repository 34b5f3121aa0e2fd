"""The lineage after months: how long `status` and a decision take, how large the file is."""

import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import median

from click.testing import CliRunner
from tests.bench.bench import Bench
from tests.bench.table import Row, verdict

from kinship_daemon.cli import app
from kinship_daemon.home import Home
from kinship_storage.lineage import Lineage
from kinship_storage.records import Generation, Model, Score

__all__ = ["filled", "lineage"]

_MODELS = 2_000
_FINETUNES = 400
_DECISIONS = 200
_VALIDATED = 300
_TASKS = {"arc": 634, "gsm8k": 660, "truthfulqa": 409}
_TOP = 10
_SECONDS = 1.0
_MEGABYTES = 100
_NOW = datetime(2026, 1, 31, 8, 15, tzinfo=UTC)


def lineage(bench: Bench) -> list[Row]:
    home = Home(bench.scratch / "home")
    home.path.mkdir()
    bench.progress.runs(f"a lineage of {_MODELS:,} models and {_DECISIONS} decisions")
    with Lineage.open(home.lineage, now=lambda: _NOW) as opened:
        decisions = list(_fill(opened, random.Random(0)))
        _status(home)  # what it imports is no part of it
        status = [_timed(_status, home) for _ in range(bench.repeat)]
        start = [_timed(opened.damage) for _ in range(bench.repeat)]
    megabytes = home.lineage.stat().st_size / 1e6
    return [
        _row("lineage: status", status, f"{_MODELS:,} models"),
        _row("lineage: bookkeeping of a decision", decisions[-bench.repeat :], "the last ones"),
        _row("lineage: every cell checked, at a start", start, "before it writes", most=10.0),
        Row(
            "lineage: size of the file",
            f"{megabytes:.0f} MB",
            bar=f"under {_MEGABYTES} MB",
            verdict=verdict(megabytes < _MEGABYTES),
            facts={"megabytes": megabytes},
        ),
    ]


def filled(path: Path) -> None:
    """A home's lineage of that size."""
    with Lineage.open(path, now=lambda: _NOW) as opened:
        for _ in _fill(opened, random.Random(0)):
            pass


def _row(work: str, seconds: list[float], note: str, *, most: float = _SECONDS) -> Row:
    return Row(
        work,
        f"{min(seconds):.3f} s ({median(seconds):.3f})",
        bar=f"under {most:g} s",
        verdict=verdict(max(seconds) < most),
        notes=(note,),
        facts={"seconds": seconds},
    )


def _timed(call: Callable[..., object], *args: object) -> float:
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def _status(home: Home) -> None:
    """The command, but for the start of an interpreter."""
    CliRunner().invoke(app, ["status", "--home", str(home.path)], catch_exceptions=False)


def _fill(opened: Lineage, chance: random.Random) -> Iterator[float]:
    """Writes everyone as the daemon does; seconds of each decision's bookkeeping."""
    opened.put("settings", {"selection": "a" * 64, "validation": "b" * 64})
    opened.add_model(Model("base", "base", "admitted", repo="org/base", weights=_hash(chance)))
    for number in range(_FINETUNES):
        name = f"org-{number:04}/mistral-7b-finetune-{number}"
        origin = {"repo": name, "revision": _hash(chance)[7:47], "license": "apache-2.0"}
        opened.add_model(Model(name, "finetune", "seen", weights=_hash(chance), **origin))
        opened.move_model(name, "admit")
        _score(opened, chance, name, "selection")
    members = [model.id for model in opened.models("finetune")]
    weights = {model.id: model.weights for model in opened.models("finetune")}
    per_decision = (_MODELS - _FINETUNES - 1) // _DECISIONS + 1
    for generation in range(1, _DECISIONS + 1):
        count = min(per_decision, _MODELS - 1 - len(members))
        top = chance.sample(members, _TOP)
        pairs = chance.sample(list(combinations(top, 2)), count)
        facts = _facts(opened, chance, generation, members)
        children = [_child(chance, generation, *pair) for pair in pairs]
        yield _timed(_decide, opened, chance, top, children, facts, weights)
        for child in children:
            opened.move_model(child.id, "admit")
            _score(opened, chance, child.id, "selection")
            if len(members) - _FINETUNES < _VALIDATED:
                _score(opened, chance, child.id, "validation")
            members.append(child.id)
            weights[child.id] = child.weights


def _decide(opened, chance, top, children, facts, weights):
    """What the daemon writes for one decision, in one transaction."""
    merges = [
        {"parents": list(child.parents), "role": "pair", "reason": "the best two"}
        for child in children
    ]
    decision = {"merges": merges, "top": top, "top_mean_kinship": chance.random()}
    number = facts["generation"]
    pairs = combinations((weights[name] for name in top), 2)
    with opened.transaction():
        opened.add_generation(
            Generation(number, number, "topk-kinship", {"k": _TOP}, 0, decision), facts
        )
        for child in children:
            opened.add_model(child)
        opened.add_kinships("pcc", [(a, b, chance.random()) for a, b in pairs])


def _facts(opened, chance, generation, members):
    """What a policy is shown, but for what a decision does not keep."""
    found = []
    for name in sorted(members):
        tasks = {task: chance.randrange(size) / size for task, size in _TASKS.items()}
        found.append(
            {
                "name": name,
                "score": sum(tasks.values()) / len(tasks),
                "tasks": tasks,
                "generation": 0 if "/" in name else int(name.split("-")[1]),
                "parents": [],
                "method": None if "/" in name else "slerp",
                "parameters": {} if "/" in name else {"t": 0.5},
                "length": chance.random(),
            }
        )
    merged = [sorted(model.parents) for model in opened.models("merge")]
    return {"generation": generation, "members": found, "merged": merged, "seed": 0}


def _child(chance, generation, a, b):
    recipe = {"method": "slerp", "parents": [a, b], "parameters": {"t": 0.5}}
    name = f"model-{generation}-{chance.randrange(10**9)}"
    return Model(
        name,
        "merge",
        "proposed",
        generation=generation,
        weights=_hash(chance, "recipe"),
        role="pair",
        why="the best two",
        recipe=recipe,
        parents=(a, b),
    )


def _score(opened, chance, name, split):
    """As a step does: a job, and its result in one transaction with its end."""
    model = opened.require(name)
    job = opened.submit("score", {"weights": model.weights, "split": split}, name)
    opened.start(job.key)
    with opened.finish(job.key):
        opened.add_scores([_of_task(chance, model.weights, split, task) for task in _TASKS])


def _of_task(chance, weights, split, task):
    size, skill = _TASKS[task], chance.random()
    values = [float(chance.random() < skill) for _ in range(size)]
    return Score(
        weights=weights,
        task=task,
        split=split,
        settings=("a" if split == "selection" else "b") * 64,
        metric="acc",
        task_version="1.0",
        score=sum(values) / size,
        stderr=0.02,
        n=size,
        seed=0,
        harness="lm-eval 0.4.9",
        samples=tuple(enumerate(values)),
    )


def _hash(chance: random.Random, kind: str = "sha256") -> str:
    return f"{kind}:{chance.randbytes(32).hex()}"
