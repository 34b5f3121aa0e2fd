"""Scores models with lm-eval, as it is, on our documents. Worker only: its imports take seconds."""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np
import torch
from lm_eval import evaluator

from kinship_daemon.errors import KinshipError, ModelError, UsageError
from kinship_daemon.evaluate.live import LiveModel
from kinship_daemon.evaluate.model_slot import ModelSlot, is_out_of_memory, unusable
from kinship_daemon.evaluate.settings import Documents, Question, Settings, harness_versions
from kinship_daemon.evaluate.split import documents
from kinship_daemon.evaluate.tasks import LoadedTask, load_tasks, seed_all
from kinship_daemon.weights.materialise import Assembly
from kinship_storage.records import Score, Split

__all__ = ["Harness", "pin_numerics"]

Progress = Callable[[int, int], None]
Results = Mapping[str, Any]  # lm-eval's EvalResults


class Harness:
    """
    The tasks of one home, loaded once, and the model that is being asked.

    Attributes:
        found: What the tasks' documents are.

    Raises:
        UsageError: When made: a task, metric or split that cannot be used.
        KinshipError: When made: a task's data cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self._tasks = load_tasks(settings)
        splits: tuple[Split, ...] = get_args(Split)
        digests = {spec: task.digest(settings.seed) for spec, task in self._tasks.items()}
        self.found: Documents = {
            split: {spec.task: digests[spec] for spec in settings.tasks(split)} for split in splits
        }
        self._settings = settings.but(documents=self.found)
        self._documents = {
            (task.spec, split): self._choose(task, split)
            for split in splits
            for task in self._of(split)
        }
        self._slot = ModelSlot(
            batch_size=settings.batch_size,
            device=settings.resolved_device(),
            dtype=settings.dtype,
            chat_template=settings.apply_chat_template,
        )

    def evaluate(
        self, assembly: Assembly, split: Split, progress: Progress | None = None
    ) -> tuple[Score, ...]:
        """
        One score a task of the split, in the settings' order.

        Each task is run by itself, so that its batches, and with them its last bits, do not depend
        on which other tasks there are.

        Args:
            progress: Gets documents done and in all.

        Raises:
            ModelError: This model cannot be scored.
            UsageError: A task's metric turns out not to be a mean over documents.
        """
        live = self._slot.load(assembly)
        tasks = self._of(split)
        sizes = [len(self._documents[task.spec, split]) for task in tasks]
        scores = []
        for i, task in enumerate(tasks):
            live.answered = _share(progress, sum(sizes[:i]), sizes[i], sum(sizes))
            scores.append(self._score(live, task, split))
        return tuple(scores)

    def probe(self, assembly: Assembly, question: Question | None) -> None:
        """
        One question, or the first document of every task; nothing is scored.

        Raises:
            ModelError: This model cannot be asked.
        """
        live = self._slot.load(assembly)
        live.answered = _share(None, 0, 0, 0)
        for (spec, _), chosen in self._documents.items():
            if question is None:
                self._run(live, self._tasks[spec], chosen[:1])
            elif spec.task == question[0]:
                self._run(live, self._tasks[spec], (question[1],))

    def _of(self, split: Split) -> list[LoadedTask]:
        return [self._tasks[spec] for spec in self._settings.tasks(split)]

    def _choose(self, task: LoadedTask, split: Split) -> tuple[int, ...]:
        return documents(
            task.spec.task,
            task.documents,
            split,
            shared=self._settings.shared(task.spec.task),
            limit=self._settings.limit,
            seed=self._settings.seed,
        )

    def _score(self, live: LiveModel, task: LoadedTask, split: Split) -> Score:
        results = self._run(live, task, self._documents[task.spec, split])
        samples = _samples(live, task, results)
        values = [value for _, value in samples]
        score = math.fsum(values) / len(values)
        theirs = float(results["results"][task.spec.task][task.key])
        if abs(score - theirs) > 1e-9:
            raise UsageError(
                f"task {task.spec.task!r}: {task.metric!r} is {theirs}, but the mean over its "
                f"documents is {score}; the gate needs a metric that is such a mean"
            )
        spread = math.fsum((value - score) ** 2 for value in values)
        stderr = math.sqrt(spread / (len(values) - 1) / len(values))
        return Score(
            weights=live.identity,
            task=task.spec.task,
            split=split,
            settings=self._settings.fingerprint(split),
            metric=task.key,
            task_version=task.version,
            score=score,
            stderr=stderr,
            n=len(samples),
            seed=self._settings.seed,
            harness=harness_versions(),
            samples=samples,
        )

    def _run(self, live: LiveModel, task: LoadedTask, chosen: tuple[int, ...]) -> Results:
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
                apply_chat_template=self._settings.apply_chat_template,
                fewshot_as_multiturn=True,
            )
            return results
        except KinshipError:
            raise
        except Exception as error:
            raise self._failure(live, task, chosen, error) from error

    def _failure(
        self, live: LiveModel, task: LoadedTask, chosen: tuple[int, ...], error: Exception
    ) -> ModelError:
        """What to say of it: found by halves, the first document that it fails at."""
        if len(chosen) == 1 or is_out_of_memory(error):
            question = (task.spec.task, chosen[0])
            return unusable(live.identity, error, self._settings.batch_size, question)
        half = len(chosen) // 2
        for some in (chosen[:half], chosen[half:]):
            try:
                self._run(live, task, some)
            except ModelError as found:
                return found
        # Only together, then.
        return unusable(
            live.identity, error, self._settings.batch_size, (task.spec.task, chosen[0])
        )

    def _seed(self, task: LoadedTask) -> None:
        """Before every task: few-shot examples and sampling do not depend on what ran before."""
        seed_all(self._settings.seed)
        task.harness.set_fewshot_seed(self._settings.seed)


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


def _samples(live: LiveModel, task: LoadedTask, results: Results) -> tuple[tuple[int, float], ...]:
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
