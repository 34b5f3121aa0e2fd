"""
The evaluator: lm-eval in a process of its own, which owns the device and may die alone.

This is the parent's side; `child.py` is the other. They speak through a pipe. The child says
("ready", documents) when its tasks are loaded. For each (assembly, what is asked) it answers
("taken",), any number of ("progress", done, total) and one ("answers", an Evaluation or None where
no documents were asked). Instead of any of them it may say (name of an error class, message,
attributes), and ends.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kinship_daemon.child_process import ChildProcess, last_line
from kinship_daemon.device import only_device
from kinship_daemon.errors import (
    DocumentsChanged,
    EvaluationFailed,
    KinshipError,
    Stopped,
    Transient,
    UsageError,
    WorkerDied,
)
from kinship_daemon.evaluate.child import error_of, serve
from kinship_daemon.evaluate.settings import (
    Asked,
    DocumentId,
    Documents,
    Evaluation,
    Progress,
    Settings,
    Task,
    vllm_version,
)

if TYPE_CHECKING:
    from kinship_daemon.weights.materialise import Assembly

__all__ = ["WorkerEvaluator", "vllm_evaluator"]

# Importing lm-eval takes 5 to 20 seconds; the rest is for downloading the tasks' data.
_START_SECONDS = 1800.0
# An idle worker takes a job in milliseconds.
_TAKE_SECONDS = 60.0
# So often a wait for the worker looks whether the daemon is to stop.
_TICK_SECONDS = 0.2

# Set for the child unless the user has set them.
_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS is not deterministic
    "OMP_WAIT_POLICY": "passive",  # spinning threads make a busy machine 50 times slower
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # bars would bury the log's last words
    # vLLM: no process of its own, which would outlive us; NaN is an error; it calls nobody.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_RAISE_ON_LOGIT_NANS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class WorkerEvaluator:
    """
    Asks models one after another in a worker process that is started at first use.

    A worker that fails in any way is replaced by a fresh one at the next call, so that a broken
    device or a leak never counts against the next model. Not for several threads at once.

    Args:
        settings: Pinned for all models; another setting needs another evaluator.
        log: File the harness's output is appended to; its folder is made.
        stop: Ends every wait for the worker with Stopped, and the worker.
        device: `cuda:1` where the machine's other devices are for others.

    Attributes:
        settings: With what the first worker found the tasks' documents to be.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        log: Path,
        stop: threading.Event | None = None,
        device: str | None = None,
    ) -> None:
        self.settings = settings
        self._device = device
        self._log = log
        self._stop = stop or threading.Event()
        self._child: ChildProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def check(self) -> Documents:
        """As `Evaluator.check`."""
        with self._stopped_on_error():
            self._worker()
            return self.settings.documents

    def probe(self, assembly: "Assembly", document: DocumentId | None = None) -> None:
        """As `Evaluator.probe`."""
        self._ask(assembly, document)

    def evaluate(
        self,
        assembly: "Assembly",
        documents: Mapping[Task, Sequence[int]],
        progress: Progress | None = None,
    ) -> Evaluation:
        """As `Evaluator.evaluate`."""
        found: Evaluation = self._ask(assembly, documents, progress)
        return found

    def _ask(self, assembly: "Assembly", asked: Asked, progress: Progress | None = None) -> Any:
        with self._stopped_on_error():
            pipe = self._hand_over((assembly, asked))
            deadline = time.monotonic() + self.settings.time_limit_minutes * 60
            while True:
                kind, *content = self._receive(assembly.identity, pipe, deadline)
                if kind == "answers":
                    return content[0]
                if progress is not None:
                    progress(*content)

    def close(self) -> None:
        """End the worker, whatever it is doing; the next call would start another."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    @contextmanager
    def _stopped_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _worker(self) -> Connection:
        """The pipe to a worker that has loaded its tasks."""
        if self._child is None:
            self._child = self._start()
            deadline = time.monotonic() + _START_SECONDS
            _, found = self._receive(None, self._child.pipe, deadline)
            self._hold(found)
        return self._child.pipe

    def _hold(self, found: Documents) -> None:
        """Scores of one fingerprint are answers to the same questions, whichever worker asked."""
        if not self.settings.documents:
            self.settings = self.settings.but(documents=found)
        for split, tasks in found.items():
            for task, documents in tasks.items():
                if self.settings.documents.get(split, {}).get(task) != documents:
                    raise DocumentsChanged(
                        f"task {task!r}: its documents changed; start again to score everyone on "
                        "the new ones"
                    )

    def _hand_over(self, job: tuple["Assembly", Asked]) -> Connection:
        """
        The pipe to a worker that has taken the job.

        A worker that died idle (killed, out of memory) is replaced once: no model is to blame.
        """
        for _ in range(2):
            pipe = self._worker()
            try:
                pipe.send(job)
                if self._hears(pipe, time.monotonic() + _TAKE_SECONDS):
                    pipe.recv()
                    return pipe
            except (EOFError, ConnectionError):
                pass
            self.close()
        raise Transient(f"the evaluation worker dies before it takes a model; see {self._log}")

    def _start(self) -> ChildProcess:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._log.touch()
        except OSError as error:
            raise KinshipError(
                f"the evaluation log {self._log} cannot be written: {error.strerror}"
            ) from error
        environment = {name: v for name, v in _ENVIRONMENT.items() if name not in os.environ}
        environment |= only_device(self._device)
        return ChildProcess(
            "kinship-evaluate", serve, self.settings, self._log, environment=environment
        )

    def _receive(self, identity: str | None, pipe: Connection, deadline: float) -> tuple[Any, ...]:
        """
        The worker's next message.

        Args:
            identity: The model being evaluated; None while the worker starts.
        """
        if not self._hears(pipe, deadline):
            raise self._late(identity)
        try:
            message: tuple[Any, ...] = pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._died(identity) from error
        failure = error_of(message)
        if failure is not None:
            raise failure
        return message

    def _hears(self, pipe: Connection, deadline: float) -> bool:
        """Whether the worker says something by then, or ends."""
        while not pipe.poll(_TICK_SECONDS):
            if self._stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                return False
        return True

    def _late(self, identity: str | None) -> KinshipError:
        if identity is None:
            return Transient(
                f"the evaluation worker was not ready after {_START_SECONDS:g} seconds; "
                f"see {self._log} for what it waits for"
            )
        setting = "evaluate.time_limit_minutes"
        return EvaluationFailed(
            f"{identity}: evaluation took longer than {setting} "
            f"({self.settings.time_limit_minutes:g})",
            setting=setting,
        )

    def _died(self, identity: str | None) -> KinshipError:
        how = "it was stopped" if self._child is None else self._child.ending()
        last = f"the last line of {self._log} is: {last_line(self._log)}"
        if identity is None:
            return Transient(f"the evaluation worker could not start ({how}); {last}")
        return WorkerDied(f"{identity}: the evaluation worker died ({how}); {last}")


def vllm_evaluator(
    settings: Settings,
    *,
    log: Path,
    stop: threading.Event | None = None,
    device: str | None = None,
) -> WorkerEvaluator:
    """
    The same worker; in it vLLM answers what has text written.

    Raises:
        UsageError: vLLM is not installed.
    """
    if vllm_version() is None:
        raise UsageError(
            "evaluate.backend: vllm needs vLLM; pip install 'kinship-daemon[vllm]' would work"
        )
    return WorkerEvaluator(settings, log=log, stop=stop, device=device)
