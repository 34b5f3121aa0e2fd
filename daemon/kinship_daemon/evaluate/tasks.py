"""Finds the tasks that were asked for, their data, and the metric that scores each. Worker only."""

import difflib
import hashlib
import json
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api import task as lm_eval_task
from lm_eval.tasks import TaskManager

from kinship_daemon.errors import KinshipError, Transient, UsageError
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.evaluate.task_files import TaskFiles

__all__ = ["LoadedTask", "load_tasks", "seed_all"]

_log = logging.getLogger(__name__)
_NAMES_SHOWN = 6


@dataclass(frozen=True)
class LoadedTask:
    """
    A task ready to run.

    Attributes:
        harness: lm-eval's own object, with its documents.
        metric: Key of a per-document value whose mean is the score.
        filter: Name of the answer filter the value is taken after.
        version: As text, for the record.
    """

    spec: Task
    harness: lm_eval_task.Task
    metric: str
    filter: str
    version: str

    @property
    def key(self) -> str:
        """lm-eval's name of the score: metric and filter."""
        return f"{self.metric},{self.filter}"

    @property
    def documents(self) -> int:
        return len(self.harness.eval_docs)

    @property
    def generates(self) -> bool:
        """Whether the answer is text that the model writes."""
        return bool(self.harness.OUTPUT_TYPE == "generate_until")

    def digest(self, seed: int) -> str:
        """
        Hash of all documents in their order, and of those that examples are drawn from, if any are.

        Of what the data set says, not of its revision: a new README there changes no score.
        """
        seed_all(seed)
        pools = [self.harness.eval_docs]
        if self.harness.get_config("num_fewshot"):
            pools.append(self.harness.fewshot_docs() or ())
        found = hashlib.sha256()
        for pool in pools:
            found.update(b"documents\n")
            for document in pool:
                found.update(f"{json.dumps(document, skipkeys=True, default=_plain)}\n".encode())
        return found.hexdigest()[:32]

    def clusters(self) -> tuple[int, ...]:
        """
        As of `TaskDocuments`: by the field that the user named, or those that say the same.

        Raises:
            UsageError: A document has no such field.
        """
        first: dict[str, int] = {}
        found = tuple(
            first.setdefault(self._cluster(document), number)
            for number, document in enumerate(self.harness.eval_docs)
        )
        return found if len(first) < len(found) else ()

    def _cluster(self, document: Mapping[str, Any]) -> str:
        field = self.spec.cluster
        if field is None:
            return json.dumps(_said(self.harness, document), default=_plain)
        if field not in document:
            raise UsageError(
                f"task {self.spec.task!r} has documents without a field {field!r} to cluster by; "
                f"they have: {', '.join(map(str, document))}"
            )
        return json.dumps(document[field], default=_plain)


def _said(harness: lm_eval_task.Task, document: Mapping[str, Any]) -> list[object]:
    """Question, choices and answer as the harness reads them, without what only tells it apart."""
    try:
        choices = harness.doc_to_choice(document) if harness.get_config("doc_to_choice") else None
        return [harness.doc_to_text(document), choices, harness.doc_to_target(document)]
    except Exception:  # a task of another make; it is told apart by all that it holds
        return [dict(document)]


def load_tasks(settings: Settings) -> Mapping[Task, LoadedTask]:
    """
    All tasks of both splits; their data is downloaded where it is not here yet.

    Raises:
        UsageError: An unknown task or metric, a group, a metric that cannot be averaged, or a
            task file that cannot be read or uses what is in no folder that the user named.
        Transient: The data's host is away.
        KinshipError: The data cannot be loaded for another reason.
    """
    specs = dict.fromkeys((*settings.selection, *settings.validation))
    files = TaskFiles(settings.include_path)
    files.check()
    manager = _manager({spec.task for spec in specs}, settings.include_path)
    for spec in specs:
        _refuse_unless_single(manager, spec.task)
        _refuse_code(manager, spec.task)
        if (path := manager.task_index[spec.task].yaml_path) is not None:
            files.check_task(path)
    return {spec: _load(manager, spec, settings.seed) for spec in specs}


def seed_all(seed: int) -> None:
    """What tasks draw at random, a shuffled choice or an example, is the same every time."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _plain(value: object) -> object:
    """What JSON has no form for; an object's own text may hold its address, which says nothing."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value) if isinstance(value, date | time | Decimal) else type(value).__name__


def _manager(names: Iterable[str], folders: tuple[Path, ...]) -> TaskManager:
    """lm-eval's 13,000 tasks take ten seconds to list: only where our own folders lack a name."""
    if folders:
        own = TaskManager(include_path=list(folders), include_defaults=False)
        if set(names) <= own.task_index.keys():
            return own
    return TaskManager(include_path=list(folders))


def _refuse_unless_single(manager: TaskManager, name: str) -> None:
    if name in manager.all_subtasks:
        return
    if name in manager.task_index:
        members = _members(manager, name)
        shown = ", ".join(members[:_NAMES_SHOWN])
        more = f" and {len(members) - _NAMES_SHOWN} more" if len(members) > _NAMES_SHOWN else ""
        raise UsageError(f"{name!r} is a group of tasks; name the members you want: {shown}{more}")
    near = difflib.get_close_matches(name, manager.all_subtasks, n=3, cutoff=0.6)
    hint = f"nearest: {', '.join(near)}" if near else "`lm-eval ls tasks` lists them"
    raise UsageError(f"no evaluation task {name!r}; {hint}")


def _refuse_code(manager: TaskManager, name: str) -> None:
    """Before the task is loaded, as loading it fetches the code that would run the answers."""
    if (manager.task_index[name].cfg or {}).get("unsafe_code"):
        raise UsageError(f"task {name!r} runs code that models write; choose one that does not")


def _members(manager: TaskManager, name: str) -> list[str]:
    """Single tasks below a group or a tag, in the group's order."""
    entry = manager.task_index.get(name)
    if entry is None or name in manager.all_subtasks:
        return [name]
    listed = (entry.cfg or {}).get("task") or sorted(entry.tags)
    names = [item if isinstance(item, str) else item.get("task") for item in listed]
    return [
        single
        for item in names
        if isinstance(item, str) and item != name
        for single in _members(manager, item)
    ]


def _load(manager: TaskManager, spec: Task, seed: int) -> LoadedTask:
    seed_all(seed)
    try:
        harness = manager.load([spec.task])["tasks"][spec.task]
    except Exception as error:  # a task is a stranger's YAML, code and data: anything can come
        _log.exception("task %s", spec.task)
        kind = Transient if isinstance(error, ConnectionError | TimeoutError) else KinshipError
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise kind(f"task {spec.task!r} could not be loaded: {cause:.300}") from error
    if getattr(harness, "MULTIMODAL", False):
        raise UsageError(f"task {spec.task!r} shows images or sound; choose one of text alone")
    _set_fewshot(harness, spec)
    harness.set_fewshot_seed(seed)
    metric, chosen_filter = _metric(harness, spec), _filter(harness, spec)
    return LoadedTask(spec, harness, metric, chosen_filter, str(harness.VERSION))


def _set_fewshot(harness: lm_eval_task.Task, spec: Task) -> None:
    """As lm-eval does it: a task that is written for zero examples is not given any."""
    own = harness.get_config("num_fewshot")
    if spec.num_fewshot is None:
        harness.set_config("num_fewshot", own or 0)
    elif own == 0 != spec.num_fewshot:
        raise UsageError(
            f"task {spec.task!r} is fixed to zero examples; num_fewshot {spec.num_fewshot} "
            "cannot be set for it: leave it out"
        )
    else:
        harness.set_config("num_fewshot", spec.num_fewshot)


def _metric(harness: lm_eval_task.Task, spec: Task) -> str:
    """The asked-for metric or the task's first: a mean over documents, where more is better."""
    known: dict[str, Any] = harness.aggregation()
    better: dict[str, Any] = harness.higher_is_better()
    working = [name for name in known if _is_mean(known[name]) and better.get(name) is not False]
    metric = spec.metric or next(iter(known), "")
    if metric in working:
        return metric
    would = ", ".join(working) or "none; choose another task"
    if metric not in known:
        raise UsageError(f"task {spec.task!r} has no metric {metric!r}; these would work: {would}")
    raise UsageError(
        f"task {spec.task!r}: {metric!r} is not a mean over documents where more is better, "
        f"which the gate needs; these would work: {would}"
    )


def _is_mean(aggregate: Callable[[list[float]], float]) -> bool:
    """By what it does, as tasks bring their own functions."""
    probe = [0.0, 1.0, 0.25]
    try:
        return math.isclose(float(aggregate(probe)), sum(probe) / len(probe), abs_tol=1e-9)
    except Exception:  # those that take pairs fail in their own ways on numbers
        return False


def _filter(harness: lm_eval_task.Task, spec: Task) -> str:
    names = [entry["name"] for entry in harness.get_config("filter_list") or ()] or ["none"]
    chosen = spec.filter or names[0]
    if chosen not in names:
        known = ", ".join(names)
        raise UsageError(f"task {spec.task!r} has no filter {chosen!r}; it has: {known}")
    return chosen
