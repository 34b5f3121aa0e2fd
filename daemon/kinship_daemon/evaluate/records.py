"""What is asked of the harness and what comes back, and the fingerprint that keys the scores."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from kinship_daemon.errors import UsageError

__all__ = ["Score", "Settings", "Split", "TaskSpec", "harness_versions"]

Split = Literal["selection", "validation"]

_DTYPES = ("bfloat16", "float16", "float32")
_MOST_THREADS = 8


@dataclass(frozen=True)
class TaskSpec:
    """
    One lm-eval task and how it is scored.

    Attributes:
        task: The task's name in lm-eval, not a group's or a tag's.
        metric: Such as "acc"; the first of the task's own list when None.
        filter: Such as "strict-match"; the first of the task's own when None.
        num_fewshot: Examples in the prompt; the task's own number when None.
    """

    task: str
    metric: str | None = None
    filter: str | None = None
    num_fewshot: int | None = None


@dataclass(frozen=True)
class Settings:
    """
    Everything that is pinned for all models of a home.

    Attributes:
        selection: Tasks the policy sees.
        validation: Tasks the gate sees. A task in both lists is split by document, half and half.
        limit: Most documents of a task in each split, the first in the seeded order; all when None.
        device: "auto", "cpu", "cuda" or "cuda:1"; auto is CUDA where there is a device.
        dtype: "bfloat16", "float16" or "float32".
        time_limit_seconds: For one model and one split, tasks already loaded.
        include_path: Folders of further lm-eval tasks; they go before lm-eval's own.
        threads: CPU threads of the worker; the machine's cores, at most 8, when None.
    """

    selection: tuple[TaskSpec, ...]
    validation: tuple[TaskSpec, ...]
    limit: int | None
    batch_size: int
    device: str
    dtype: str
    seed: int
    time_limit_seconds: float
    include_path: tuple[Path, ...]
    apply_chat_template: bool
    threads: int | None

    def __post_init__(self) -> None:
        for split in ("selection", "validation"):
            names = [spec.task for spec in self.tasks(split)]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UsageError(f"the {split} tasks name {twice[0]!r} twice; name each task once")
        if self.dtype not in _DTYPES:
            raise UsageError(f"no dtype {self.dtype!r} for evaluation; known: {', '.join(_DTYPES)}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed {self.seed} is not possible; 0 to {2**32 - 1} works")
        if self.batch_size < 1:
            raise UsageError(f"batch_size {self.batch_size} is not possible; 1 or more works")

    def tasks(self, split: Split) -> tuple[TaskSpec, ...]:
        return self.selection if split == "selection" else self.validation

    def shared(self, task: str) -> bool:
        """Whether the policy and the gate both use this task, each its half of the documents."""
        return all(
            any(spec.task == task for spec in specs) for specs in (self.selection, self.validation)
        )

    def resolved_threads(self) -> int:
        return self.threads or min(os.cpu_count() or 1, _MOST_THREADS)

    def resolved_device(self) -> str:
        if self.device != "auto":
            return self.device
        import torch  # noqa: PLC0415  the rest of this module is read before torch is

        return "cuda" if torch.cuda.is_available() else "cpu"

    def fingerprint(self, split: Split) -> str:
        """
        The same text for the same scores: scores are comparable, and cached, under one fingerprint.

        Covers all that changes a score: tasks, document choice, numerics, the bytes of our own task
        folders, the harness versions. Not the time limit, and not where the folders lie.
        """
        device = self.resolved_device()
        facts = {
            "split": split,
            "tasks": sorted(
                [json.dumps([asdict(spec), self.shared(spec.task)]) for spec in self.tasks(split)]
            ),
            "limit": self.limit,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "device": device,
            # More threads cut a sum in other places, which changes its last bits.
            "threads": self.resolved_threads() if device == "cpu" else None,
            "apply_chat_template": self.apply_chat_template,
            "folders": [_folder_digest(path) for path in self.include_path],
            "harness": harness_versions(),
        }
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Score:
    """
    One task's result for one model.

    Attributes:
        metric: lm-eval's key, metric and filter: "acc,none".
        score: Mean of the samples' values.
        stderr: Standard error of that mean.
        samples: (document id, value), ascending by id.
    """

    task: str
    split: Split
    metric: str
    task_version: str
    score: float
    stderr: float
    samples: tuple[tuple[int, float], ...]


@cache
def harness_versions() -> str:
    """The libraries whose versions change scores, as text: `lm-eval 0.4.13, ...`."""
    return ", ".join(f"{name} {version(name)}" for name in ("lm-eval", "transformers", "torch"))


@cache
def _folder_digest(folder: Path) -> str:
    """Hash of a folder's files by relative name; kept, as the worker too reads them only once."""
    if not folder.is_dir():
        raise UsageError(f"no folder {folder} for evaluate.include_path; name one that exists")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in name.parts):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{name.as_posix()} {content}\n".encode())
    return digest.hexdigest()
