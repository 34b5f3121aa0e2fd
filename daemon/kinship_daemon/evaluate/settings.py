"""How models are evaluated: the config section, which alone declares its options, and its seed."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from kinship_daemon.errors import UsageError
from kinship_storage.records import Split

__all__ = [
    "VLLM",
    "Answers",
    "Asked",
    "Cost",
    "DocumentId",
    "Documents",
    "Evaluate",
    "Evaluation",
    "Progress",
    "Section",
    "Settings",
    "Task",
    "TaskDocuments",
    "Tasks",
    "UserPath",
    "harness_versions",
    "vllm_version",
]

VLLM = "vllm"
# What they are to each other is told apart task by task.
_OUR_BACKENDS = frozenset({"auto", "lm-eval", VLLM})
_MOST_THREADS = 8

# A task and the number of one of its documents.
DocumentId = tuple[str, int]
# Gets documents done and in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cost:
    """
    Tokens that a model was made to read or write, padding not counted.

    Attributes:
        lm_eval: What lm-eval would have computed for the same answers.
    """

    computed: int = 0
    lm_eval: int = 0

    def __add__(self, other: Self) -> Self:
        return replace(
            self, computed=self.computed + other.computed, lm_eval=self.lm_eval + other.lm_eval
        )


@dataclass(frozen=True)
class Answers:
    """
    What a model made of a task's documents.

    Attributes:
        metric: lm-eval's name of what is measured.
        version: Of the task.
        samples: (document id, value), ascending.
        cut: Prompts that are longer than what the model reads, and lost their beginning.
    """

    task: str
    metric: str
    version: str
    samples: tuple[tuple[int, float], ...]
    cut: int = 0


@dataclass(frozen=True)
class Evaluation:
    """A model's answers, by task, and what they cost."""

    answers: tuple[Answers, ...]
    cost: Cost


def _user_path(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot be a path: {error}") from None


UserPath = Annotated[Path, AfterValidator(_user_path)]


class Section(BaseModel):
    """A part of the configuration: frozen, and typos are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Task(Section):
    task: str
    """Name of an lm-eval task, not of a group or a tag."""
    metric: str | None = None
    """Which of the task's metrics; the first by default. It must be a mean over documents."""
    filter: str | None = None
    """Which of the task's filters; the first by default."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples shown before the question; the task's own number by default."""
    cluster: str | None = None
    """A field of its documents, such as the text that they ask about: equal ones count as one."""


def _as_task(value: object) -> object:
    return {"task": value} if isinstance(value, str) else value


Tasks = tuple[Annotated[Task, BeforeValidator(_as_task)], ...]

# The paper's three (arXiv 2410.12613, section 5), few-shot counts as on the Open LLM leaderboard.
PAPER_TASKS: Tasks = (
    Task(task="winogrande", metric="acc", num_fewshot=5),
    Task(task="gsm8k", metric="exact_match", filter="strict-match", num_fewshot=5),
    Task(task="truthfulqa_mc2", metric="acc", num_fewshot=0),
)


# What a worker is asked of a model: documents by task, one document, or the first of every task.
Asked = Mapping[Task, Sequence[int]] | DocumentId | None


class TaskDocuments(Section):
    """
    What the documents of a task are, as far as scores depend on them.

    Attributes:
        digest: Of all that they say.
        count: Their ids are 0 to count - 1.
        generates: Whether the answer is text that the model writes.
        clusters: For each document the first of those that it stands or falls with: that say the
            same, or ask about the same; empty where each stands for itself.
    """

    digest: str
    count: int
    generates: bool = False
    clusters: tuple[int, ...] = ()


# By split and task.
Documents = Mapping[Split, Mapping[str, TaskDocuments]]


class Evaluate(Section):
    selection: Tasks = Field(PAPER_TASKS, min_length=1)
    """What the policy sees. A task named in both lists is split, half its documents to each."""
    validation: Tasks = Field(PAPER_TASKS, min_length=1)
    """What the gate sees. It never shares a document with selection."""
    backend: str = "auto"
    """`lm-eval`: transformers. `vllm`: vLLM for tasks that generate text. `auto`: that, on CUDA."""
    vllm_memory: float = Field(0.45, gt=0, le=0.95)
    """The share of the device's memory that vLLM takes; other tasks' model needs room beside it."""
    limit: int | None = Field(None, ge=1)
    """At most this many documents per task and list; all by default."""
    batch_size: int = Field(16, ge=1)
    """Requests that are run together."""
    chunk: int = Field(64, ge=1)
    """Documents of a task that are asked together; no answer depends on those of other chunks."""
    race: bool = True
    """Who can hardly be among the best, or above its parents, is asked no further on selection."""
    race_width: float = Field(2.2, gt=0, le=10)
    """By so many standard deviations it must be behind: fewer save more, and stop a winner more."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What kind of device models are evaluated on."""
    devices: Literal["auto"] | tuple[Annotated[str, Field(pattern=r"^(cpu|cuda:\d+)$")], ...] = (
        "auto"
    )
    """Devices of that kind, such as `[cuda:0, cuda:1]`, one worker each; all by default."""
    workers: int = Field(1, ge=1)
    """Workers on the CPU."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """What models are evaluated in."""
    time_limit_minutes: float = Field(240.0, gt=0)
    """A model whose evaluation takes longer is quarantined."""
    apply_chat_template: bool = False
    """Ask in the model's own chat format. It can move a score by half; one setting for all."""
    include_path: tuple[UserPath, ...] = ()
    """Folders with further lm-eval task files. Their code is run: name only whom you trust."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a worker; by default the cores, at most 8, shared out among the workers."""

    @field_validator("selection", "validation")
    @classmethod
    def _names_each_task_once(cls, tasks: Tasks) -> Tasks:
        names = [task.task for task in tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names {twice[0]!r} twice; name each task once")
        return tasks

    @model_validator(mode="after")
    def _devices_are_of_one_kind(self) -> Self:
        """Else the scores of two workers could not be compared."""
        if self.devices == "auto":
            return self
        kinds = {name.partition(":")[0] for name in self.devices} | {self.device} - {"auto"}
        if not self.devices or len(kinds) != 1 or len({*self.devices}) != len(self.devices):
            raise ValueError(
                f"devices {list(self.devices)} must be different ones of one kind, that of "
                f"evaluate.device {self.device}; several workers on the CPU are evaluate.workers"
            )
        return self


class Settings(Evaluate):
    """
    Everything that is pinned for all models of a home: the section, the home's seed, the documents.

    One of the lists may be empty, where only the other is asked.

    Attributes:
        documents: What the tasks' documents are; empty while nobody has loaded them.
    """

    selection: Tasks
    validation: Tasks
    seed: int = Field(ge=0, lt=2**32)
    documents: Documents = Field(default_factory=dict)

    @classmethod
    def of(cls, section: Evaluate, seed: int) -> Self:
        """
        Raises:
            UsageError: The seed is none for the harness.
        """
        return cls._checked({**dict(section), "seed": seed})

    def but(self, **changes: Any) -> Self:
        """
        These settings with some changed.

        Raises:
            UsageError: They cannot be.
        """
        return self._checked({**dict(self), **changes})

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"evaluate.{name} {first['input']!r}: {message}") from None

    def tasks(self, split: Split) -> Tasks:
        return self.selection if split == "selection" else self.validation

    def shared(self, task: str) -> bool:
        """Whether the policy and the gate both use this task, each its half of the documents."""
        return all(
            any(each.task == task for each in tasks) for tasks in (self.selection, self.validation)
        )

    def writes_with_vllm(self) -> bool:
        """Whether vLLM answers the tasks that have text written."""
        if self.backend != "auto":
            return self.backend == VLLM
        return vllm_version() is not None and self.resolved_device().startswith("cuda")

    def resolved_threads(self) -> int:
        return self.threads or max(1, min(os.cpu_count() or 1, _MOST_THREADS) // self.workers)

    def resolved_device(self) -> str:
        if self.device != "auto":
            return self.device
        if self.devices != "auto":
            return self.devices[0].partition(":")[0]
        import torch  # noqa: PLC0415  the rest of this module is read before torch is

        return "cuda" if torch.cuda.is_available() else "cpu"

    def worker_devices(self) -> tuple[str, ...]:
        """
        The device of each worker: `cpu`, `cuda:1`; `cuda` where there is but one.

        Raises:
            UsageError: One of those named is not there.
        """
        if self.resolved_device() == "cpu":
            return ("cpu",) * self.workers
        import torch  # noqa: PLC0415

        there = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        if self.devices == "auto":
            return there if len(there) > 1 else ("cuda",)
        if missing := [name for name in self.devices if name not in there]:
            known = ", ".join(there) or "none"
            raise UsageError(f"evaluate.devices names {missing[0]}; torch sees {known}")
        return self.devices

    def fingerprint(self, split: Split) -> str:
        """
        The same text for the same scores: scores are comparable, and cached, under one fingerprint.

        Covers all that changes a score: tasks, their documents where they are known, which of them
        are chosen, numerics, the bytes of our own task folders, the harness versions. Not the time
        limit, and not where the folders lie.
        """
        device = self.resolved_device()
        documents = self.documents.get(split, {})
        facts = {
            "split": split,
            "tasks": sorted(
                [
                    json.dumps([_as_before(task.model_dump(), "cluster"), self.shared(task.task)])
                    for task in self.tasks(split)
                ]
            ),
            "documents": {
                task: _as_before(found.model_dump(exclude={"generates"}), "clusters")
                for task, found in documents.items()
            },
            "limit": self.limit,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "chunk": self.chunk,
            "dtype": self.dtype,
            "device": device,
            # More threads cut a sum in other places, which changes its last bits.
            "threads": self.resolved_threads() if device == "cpu" else None,
            "apply_chat_template": self.apply_chat_template,
            "folders": [_folder_digest(path) for path in self.include_path],
            "harness": harness_versions(),
        }
        if self.backend not in _OUR_BACKENDS:
            facts["backend"] = self.backend
        elif self.writes_with_vllm() and any(found.generates for found in documents.values()):
            facts["backend"] = f"vllm {vllm_version()}"
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _as_before(facts: dict[str, Any], added: str) -> dict[str, Any]:
    """Without a key that came later, where it says nothing: scores from before it still count."""
    return facts if facts[added] else {key: v for key, v in facts.items() if key != added}


@cache
def vllm_version() -> str | None:
    """Of the vLLM that is installed; None where there is none."""
    try:
        return version(VLLM)
    except PackageNotFoundError:
        return None


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
