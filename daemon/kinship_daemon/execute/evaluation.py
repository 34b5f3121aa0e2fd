"""Evaluation as a job: which model, made of what, is asked what; and the answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kinship_daemon.errors import EvaluationFailed
from kinship_daemon.evaluate.settings import Asked, Documents, Evaluation, Settings
from kinship_daemon.evaluate.timing import Probe, probe
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.executor import Executor, Job, Needs, Site, Source
from kinship_daemon.weights.assembly import Assembly

__all__ = ["Answered", "Ask", "Evaluators", "Ingredients", "Load", "NamedAssembly", "Time"]


@dataclass(frozen=True)
class NamedAssembly:
    """An `Assembly` that names checkpoints by weights identity: anyone who has them can make it."""

    identity: str
    base: str
    leaves: tuple[str, ...]
    coefficients: tuple[tuple[str, tuple[float, ...]], ...] = field(repr=False)
    donor: str
    foundation: str | None = None

    @classmethod
    def of(cls, assembly: Assembly, names: Mapping[Path, str]) -> Self:
        """
        Args:
            names: Weights identities by folder, of all that it is made of.
        """
        foundation = assembly.foundation
        return cls(
            assembly.identity,
            names[assembly.base],
            tuple(names[leaf] for leaf in assembly.leaves),
            assembly.coefficients,
            names[assembly.donor],
            None if foundation is None else names[foundation],
        )

    def at(self, folder: Callable[[str], Path]) -> Assembly:
        """The assembly on a machine where checkpoints lie in these folders."""
        return Assembly(
            self.identity,
            folder(self.base),
            tuple(map(folder, self.leaves)),
            self.coefficients,
            folder(self.donor),
            None if self.foundation is None else folder(self.foundation),
        )


@dataclass(frozen=True)
class Ingredients:
    """
    All that it takes to make a model here or elsewhere.

    Attributes:
        sources: What it is made of, by weights identity.
        folders: Where that lies on this machine.
    """

    assembly: NamedAssembly
    sources: Mapping[str, Source]
    folders: Mapping[str, Path]


@dataclass(frozen=True)
class Answered:
    """
    Attributes:
        evaluation: None where one document was asked.
        seconds: That a device was busy over it.
    """

    evaluation: Evaluation | None
    seconds: float


@dataclass(frozen=True)
class Load:
    """The job to load the tasks; gives what their documents are."""

    settings: Settings

    def __call__(self, site: Site) -> Documents:
        return site.evaluator(self.settings).check()


@dataclass(frozen=True)
class Ask:
    """The job to ask a model documents, or a single one."""

    settings: Settings
    assembly: NamedAssembly
    asked: Asked

    def __call__(self, site: Site) -> Answered:
        assembly = self.assembly.at(site.folder)
        began = time.monotonic()
        evaluator = site.evaluator(self.settings)
        try:
            found = None
            if isinstance(self.asked, Mapping):
                found = evaluator.evaluate(assembly, self.asked, site.progress)
            else:
                evaluator.probe(assembly, self.asked)
        except EvaluationFailed as error:
            error.seconds = time.monotonic() - began
            raise
        return Answered(found, time.monotonic() - began)


@dataclass(frozen=True)
class Time:
    """The job to time a model on a few documents."""

    settings: Settings
    assembly: NamedAssembly

    def __call__(self, site: Site) -> Probe:
        return probe(site.evaluator(self.settings), self.assembly.at(site.folder))


class Evaluators:
    """Models asked wherever an executor does it. For one thread."""

    def __init__(self, executor: Executor, stop: threading.Event) -> None:
        self._dispatcher = Dispatcher(executor, stop=stop)
        self._known: list[tuple[Settings, Settings]] = []

    @property
    def room(self) -> int:
        """How many more models are worth being asked now."""
        return max(0, self._dispatcher.ahead - len(self._dispatcher.begun))

    @property
    def at_once(self) -> int:
        """How many models are asked at a time."""
        return self._dispatcher.executor.slots

    @property
    def idle(self) -> int:
        """How many workers have nothing to do."""
        return max(0, self.at_once - len(self.begun - self.answered()))

    @property
    def begun(self) -> frozenset[str]:
        """Keys of the models that are asked, or were, and whose answers nobody has had yet."""
        return frozenset(self._dispatcher.begun)

    def answered(self) -> frozenset[str]:
        """Those of them that have answered."""
        return self._dispatcher.answered()

    def watch(self, watch: Callable[[str, int, int], None] | None) -> None:
        """Whom to tell how far the jobs are, as `Dispatcher.watch`."""
        self._dispatcher.watch = watch

    def known(self, settings: Settings) -> Settings:
        """
        The settings with what the tasks' documents are.

        Raises:
            UsageError, Transient, KinshipError: As `Evaluator.check`.
        """
        if settings.documents:
            return settings
        for asked, found in self._known:
            if asked == settings:
                return found
        self._dispatcher.begin(Job("load", Load(settings), Needs(device=True)), {})
        found = settings.but(documents=self._dispatcher.result("load"))
        self._known.append((settings, found))
        return found

    def begin(self, key: str, settings: Settings, model: Ingredients, asked: Asked) -> None:
        """Have a model asked, unless the job of that key is out already."""
        call = Ask(settings, model.assembly, asked)
        job = Job(key, call, Needs(device=True), model.sources)
        self._dispatcher.begin(job, model.folders)

    def is_asked(self, key: str, asked: Asked) -> bool:
        """Whether a job of that key is out, and asks for the same."""
        job = self._dispatcher.begun.get(key)
        return job is not None and isinstance(job.call, Ask) and job.call.asked == asked

    def result(self, key: str) -> Answered:
        """
        What a job that was begun gave; waits for it.

        Raises:
            ModelError, KinshipError: As `Evaluator.evaluate`; EvaluationFailed has its seconds.
            Stopped: The daemon is to stop.
        """
        found: Answered = self._dispatcher.result(key)
        return found

    def ask(self, settings: Settings, model: Ingredients, asked: Asked) -> Answered:
        """Both at once."""
        key = f"ask {model.assembly.identity}"
        self.begin(key, settings, model, asked)
        return self.result(key)

    def time(self, settings: Settings, model: Ingredients) -> Probe:
        """
        How long a model takes, found out by a worker that is there anyway.

        Raises:
            ModelError, KinshipError: As `Evaluator.evaluate`.
        """
        job = Job("time", Time(settings, model.assembly), Needs(device=True), model.sources)
        self._dispatcher.begin(job, model.folders)
        found: Probe = self._dispatcher.result("time")
        return found

    @property
    def has_machines(self) -> bool:
        """As `Executor.has_machines`."""
        return self._dispatcher.executor.has_machines

    def do(self, job: Job, folders: Mapping[str, Path], watch: Callable[[int, int], None]) -> Any:
        """
        What a job of another kind gives; waits for it.

        Args:
            watch: Told how far it is, units done and in all. Nobody else is told meanwhile.

        Raises:
            KinshipError: As its call.
            Stopped: The daemon is to stop.
        """

        def mine(key: str, done: int, total: int) -> None:
            if key == job.key:
                watch(done, total)

        before, self._dispatcher.watch = self._dispatcher.watch, mine
        try:
            self._dispatcher.begin(job, folders)
            return self._dispatcher.result(job.key)
        finally:
            self._dispatcher.watch = before

    def leave(self, key: str) -> None:
        """Nobody wants the result of a job any more."""
        self._dispatcher.leave(key)

    def close(self) -> None:
        self._dispatcher.close()
