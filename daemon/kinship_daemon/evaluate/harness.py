"""Asks models with lm-eval, as it is, our documents. Worker only: its imports take seconds."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union, get_args

import numpy as np
import torch
from lm_eval import evaluator

from kinship_daemon.errors import KinshipError, ModelError, UsageError
from kinship_daemon.evaluate.live import LiveModel
from kinship_daemon.evaluate.model_slot import ModelSlot, is_out_of_memory, unusable
from kinship_daemon.evaluate.scoring import split_order
from kinship_daemon.evaluate.settings import (
    Answers,
    Cost,
    DocumentId,
    Documents,
    Evaluation,
    Progress,
    Settings,
    Task,
    TaskDocuments,
)
from kinship_daemon.evaluate.split import chunks
from kinship_daemon.evaluate.tasks import LoadedTask, load_tasks, seed_all
from kinship_daemon.weights.materialise import Assembly
from kinship_storage.records import Split

if TYPE_CHECKING:
    from kinship_daemon.evaluate.vllm_model import VllmModel

__all__ = ["Harness", "pin_numerics"]

Live = Union[LiveModel, "VllmModel"]
Results = Mapping[str, Any]  # lm-eval's EvalResults


class Harness:
    """
    The tasks of one home, loaded once, and the model that is being asked.

    Attributes:
        found: What the tasks' documents are.
        settings: With them.

    Raises:
        UsageError: When made: a task, metric or split that cannot be used.
        KinshipError: When made: a task's data cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self._tasks = load_tasks(settings)
        splits: tuple[Split, ...] = get_args(Split)
        known = {
            spec: TaskDocuments(
                digest=task.digest(settings.seed),
                count=task.documents,
                generates=task.generates,
                clusters=task.clusters(),
            )
            for spec, task in self._tasks.items()
        }
        self.found: Documents = {
            split: {spec.task: known[spec] for spec in settings.tasks(split)} for split in splits
        }
        self.settings = settings.but(documents=self.found)
        self._documents = {
            (spec, split): split_order(self.settings, split, spec)
            for split in splits
            for spec in settings.tasks(split)
        }
        self._slot = ModelSlot(settings, LiveModel.of)
        self._vllm: ModelSlot[VllmModel] | None = None

    def evaluate(
        self,
        assembly: Assembly,
        documents: Mapping[Task, Sequence[int]],
        progress: Progress | None = None,
    ) -> Evaluation:
        """
        As `Evaluator.evaluate`.

        Each chunk of each task is run by itself, so that its examples, its batches, and with them
        the last bits of its answers, do not depend on what else is asked.

        Raises:
            ModelError: This model cannot be asked.
            UsageError: A task's metric turns out not to be a mean over documents.
        """
        cost = Cost()
        wanted = {self._tasks[spec]: dict.fromkeys(ids) for spec, ids in documents.items()}
        total = sum(len(ids) for ids in wanted.values())
        done = 0
        answers = []
        for task, ids in wanted.items():
            samples: list[tuple[int, float]] = []
            live = self._load(task, assembly)
            live.cost, live.cut = Cost(), 0
            for chunk in chunks(list(ids), self.settings.chunk):
                live.answered = _share(progress, done, len(chunk), total)
                samples += self._samples(live, task, chunk)
                done += len(chunk)
            found = tuple(sorted(samples))
            answers.append(Answers(task.spec.task, task.key, task.version, found, live.cut))
            cost += live.cost
        return Evaluation(tuple(answers), cost)

    def check(self) -> Documents:
        """As `Evaluator.check`: the tasks are loaded already."""
        return self.found

    def probe(self, assembly: Assembly, document: DocumentId | None) -> None:
        """
        One document, or the first document of every task; nothing is scored.

        Raises:
            ModelError: This model cannot be asked.
        """
        for (spec, _), chosen in self._documents.items():
            if document is not None and spec.task != document[0]:
                continue
            live = self._load(self._tasks[spec], assembly)
            live.answered = _share(None, 0, 0, 0)
            self._run(live, self._tasks[spec], chosen[:1] if document is None else (document[1],))

    def _load(self, task: LoadedTask, assembly: Assembly) -> Live:
        """The model as it is asked this task: by transformers, or by vLLM."""
        if not (task.generates and self.settings.writes_with_vllm()):
            return self._slot.load(assembly)
        if self._vllm is None:
            # Takes ten seconds to import, and is not installed everywhere.
            from kinship_daemon.evaluate.vllm_model import VllmModel  # noqa: PLC0415

            self._vllm = ModelSlot(self.settings, VllmModel.of)
        return self._vllm.load(assembly)

    def _samples(
        self, live: Live, task: LoadedTask, chunk: Sequence[int]
    ) -> tuple[tuple[int, float], ...]:
        """Of one chunk; lm-eval numbers documents in the order that it gets, so it ascends."""
        results = self._run(live, task, tuple(sorted(chunk)))
        samples = _samples(live, task, results)
        mean = math.fsum(value for _, value in samples) / len(samples)
        theirs = float(results["results"][task.spec.task][task.key])
        if abs(mean - theirs) > 1e-9:
            raise UsageError(
                f"task {task.spec.task!r}: {task.metric!r} is {theirs}, but the mean over its "
                f"documents is {mean}; the gate needs a metric that is such a mean"
            )
        return samples

    def _run(self, live: Live, task: LoadedTask, chosen: tuple[int, ...]) -> Results:
        name = task.spec.task
        self._seed(task)
        try:
            # Not simple_evaluate: that asks git, the Hub and the whole environment once a model.
            results: Results = evaluator.evaluate(
                live,
                {"tasks": {name: task.harness}, "groups": {}},
                samples={name: list(chosen)},  # must ascend: the harness numbers them so
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self.settings.apply_chat_template,
                fewshot_as_multiturn=True,
            )
            return results
        except KinshipError:
            raise
        except Exception as error:
            raise self._failure(live, task, chosen, error) from error

    def _failure(
        self, live: Live, task: LoadedTask, chosen: tuple[int, ...], error: Exception
    ) -> ModelError:
        """What to say of it: found by halves, the first document that it fails at."""
        if len(chosen) == 1 or is_out_of_memory(error):
            document = (task.spec.task, chosen[0])
            return unusable(live.identity, error, self.settings.batch_size, document)
        half = len(chosen) // 2
        for some in (chosen[:half], chosen[half:]):
            try:
                self._run(live, task, some)
            except ModelError as found:
                return found
        # Only together, then.
        return unusable(live.identity, error, self.settings.batch_size, (task.spec.task, chosen[0]))

    def _seed(self, task: LoadedTask) -> None:
        """Before every task: few-shot examples and sampling do not depend on what ran before."""
        seed_all(self.settings.seed)
        task.harness.set_fewshot_seed(self.settings.seed)


def pin_numerics(settings: Settings) -> None:
    """For the whole process: the same model twice gives the same bits on one device."""
    torch.set_num_threads(settings.resolved_threads())
    # Only warns: a few CUDA kernels have no deterministic form, and the model is worth scoring.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing of ours reads memory before writing it, and filling it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _share(
    progress: Progress | None, before: int, size: int, total: int
) -> Callable[[float], None]:
    """Turns one task's answered share into documents done of all tasks."""
    if progress is None:
        return lambda _: None
    return lambda share: progress(before + int(share * size), total)


def _samples(live: Live, task: LoadedTask, results: Results) -> tuple[tuple[int, float], ...]:
    """(document id, value) ascending, of the chosen metric after the chosen filter."""
    name = task.spec.task
    rows = [row for row in results["samples"][name] if row["filter"] == task.filter]
    for row in rows:
        if not isinstance(row.get(task.metric), int | float | np.number | np.bool_):
            numbers = [key for key in row["metrics"] if isinstance(row[key], int | float)]
            raise UsageError(
                f"task {name!r}: {task.metric!r} is not one number a document; "
                f"these would work: {', '.join(numbers) or 'none'}"
            )
    samples = tuple(sorted((int(row["doc_id"]), float(row[task.metric])) for row in rows))
    bad = [doc for doc, value in samples if not math.isfinite(value)]
    if bad:
        raise ModelError(
            f"{live.identity}: task {name!r} gives no finite {task.metric} for {len(bad)} of "
            f"{len(samples)} documents, the first being {bad[0]}"
        )
    return samples
