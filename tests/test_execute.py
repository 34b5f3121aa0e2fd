"""Every executor of ours does what the shipped suite asks, and evaluates as every other does."""

import signal
import threading
import time
from contextlib import closing

import pytest

import lmtasks
from kinship_daemon.errors import Stopped, UsageError, WorkerDied
from kinship_daemon.evaluate.scoring import missing
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.evaluate.worker import WorkerEvaluator
from kinship_daemon.execute.dispatch import Dispatcher
from kinship_daemon.execute.evaluation import Evaluators, Ingredients, NamedAssembly
from kinship_daemon.execute.executor import Done, Job, Needs
from kinship_daemon.execute.inline import Inline
from kinship_daemon.execute.local import Local
from kinship_daemon.execute.open import open_executor
from kinship_daemon.execute.site import Workshop
from kinship_daemon.execute.testing import CHECKS, ConformanceError, checks
from kinship_daemon.execute.testing.jobs import Say, Stuck
from kinship_daemon.weights.materialise import leaf_assembly

pytestmark = pytest.mark.usefixtures("warm_worker")

DOCUMENTS = [{"prompt": f"{letter}{letter}=", "answer": letter} for letter in "abcdefghijkl"]


@pytest.mark.parametrize("make", [Inline, Local])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_our_executors_conform(make, check, tmp_path):
    check(lambda: make(Workshop(tmp_path / "evaluate.log", ("cpu", "cpu"))))


class Twice(Inline):
    def submit(self, job, folders, tell):
        super().submit(job, folders, tell)
        super().submit(job, folders, tell)


class Elsewhere(Inline):
    """Knows nothing of this machine's folders, and fetches nothing."""

    def submit(self, job, _folders, tell):
        super().submit(job, {}, tell)


class Forgetful(Inline):
    """Loses an error's facts."""

    def submit(self, job, folders, tell):
        def call(site):
            try:
                return job.call(site)
            except Exception as error:
                raise type(error)(str(error)) from None

        super().submit(Job(job.key, call, job.needs, job.sources, job.attempt), folders, tell)


@pytest.mark.parametrize(
    ("make", "check", "words"),
    [
        (Twice, checks.gives_what_a_call_gives_in_this_process, "progress was told as"),
        (Elsewhere, checks.hands_jobs_their_sources, "it read .*Transient"),
        (Forgetful, checks.gives_what_a_call_gives_in_this_process, "told was"),
    ],
)
def test_the_suite_catches_executors_that_do_not(make, check, words, tmp_path):
    with pytest.raises(ConformanceError, match=words):
        check(lambda: make(Workshop(tmp_path / "evaluate.log")))


class ByHand:
    """Keeps what it is given; a test tells what came of it."""

    slots = 1

    def __init__(self):
        self.jobs, self.tells = [], []

    def submit(self, job, _folders, tell):
        self.jobs.append(job)
        self.tells.append(tell)

    def cancel(self, key, attempt):
        """It was about to tell that it is done."""

    def close(self):
        pass


@pytest.mark.parametrize("is_late", [False, True])
def test_an_answer_to_what_was_let_go_is_none_to_what_is_asked_now(is_late):
    """The key is the same, as where a model has other documents left by now."""
    executor = ByHand()
    dispatcher = Dispatcher(executor)
    dispatcher.begin(Job("model", Say("two documents")), {})
    dispatcher.leave("model")
    if is_late:
        dispatcher.begin(Job("model", Say("three documents")), {})
    executor.tells[0](Done("model", 1, "of two"))
    if not is_late:
        dispatcher.begin(Job("model", Say("three documents")), {})
    assert dispatcher.answered() == set()
    executor.tells[-1](Done("model", executor.jobs[-1].attempt, "of three"))
    assert dispatcher.result("model") == "of three"


def test_a_signal_that_outlasts_a_tick_of_waiting_ends_the_wait_all_the_same(tmp_path):
    """CPython's SimpleQueue then waits for ever; a daemon that was asked to stop did not."""
    stop = threading.Event()

    def ask(*_):
        if stop.is_set():
            raise AssertionError("the wait goes on after the stop")
        time.sleep(0.5)
        stop.set()

    before = signal.signal(signal.SIGALRM, ask)
    executor = Local(Workshop(tmp_path / "evaluate.log"))
    try:
        with closing(Dispatcher(executor, stop=stop)) as dispatcher:
            dispatcher.watch = lambda *_: signal.setitimer(signal.ITIMER_REAL, 0.1, 10)
            dispatcher.begin(Job("hangs", Stuck(), Needs()), {})
            with pytest.raises(Stopped):
                dispatcher.result("hangs")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def settings(tmp_path) -> Settings:
    lmtasks.probe(tmp_path / "tasks", "show", DOCUMENTS)
    tasks = (Task(task="show"),)
    chosen = {"device": "cpu", "dtype": "float32", "threads": 1}
    folders = (tmp_path / "tasks",)
    return Settings(selection=tasks, validation=tasks, seed=0, include_path=folders, **chosen)


@pytest.fixture
def models(tiny_base, tiny_finetunes):
    made = []
    for folder in (tiny_base, *tiny_finetunes):
        assembly = leaf_assembly(folder, f"sha256:{folder.name}")
        named = NamedAssembly.of(assembly, {folder: assembly.identity})
        assert named.at({assembly.identity: folder}.__getitem__) == assembly
        assert str(folder) not in repr(named)
        made.append(Ingredients(named, {}, {assembly.identity: folder}))
    return made


def answers(executor, settings, models, watch=None):
    """Of all of them, begun together."""
    with closing(Evaluators(executor, threading.Event())) as evaluators:
        evaluators.watch(watch)
        known = evaluators.known(settings)
        for model in models:
            asked = missing(known, "selection")
            evaluators.begin(model.assembly.identity, known, model, asked)
        return [evaluators.result(model.assembly.identity).evaluation for model in models]


def test_answers_are_the_same_wherever_models_are_asked(settings, models, tmp_path):
    far = []
    workshop = Workshop(tmp_path / "evaluate.log", settings.but(workers=2).worker_devices())
    found = answers(
        open_executor("local", workshop), settings, models, lambda *done: far.append(done)
    )
    assert {key for key, _, _ in far} == {model.assembly.identity for model in models}
    assert (tmp_path / "evaluate.1.log").exists()  # there were two workers at it
    assert found == answers(Inline(Workshop(tmp_path / "evaluate.log")), settings, models)
    assert len({evaluation.answers for evaluation in found}) == len(models)


def test_a_worker_that_dies_costs_its_model_alone_a_try(settings, models, tmp_path, monkeypatch):
    hand_over, killed = WorkerEvaluator._hand_over, []

    def deadly(self, job):
        pipe = hand_over(self, job)
        if not killed:
            killed.append(self._child)
            self._child._process.kill()
            self._child._process.join()
        return pipe

    monkeypatch.setattr(WorkerEvaluator, "_hand_over", deadly)
    # So long that it is not through before it is killed.
    lmtasks.task(tmp_path / "tasks", "show", DOCUMENTS, process_results=lmtasks.Function("wait"))
    with closing(Evaluators(Local(Workshop(tmp_path / "log")), threading.Event())) as evaluators:
        known = evaluators.known(settings)
        asked = missing(known, "selection")
        names = [model.assembly.identity for model in models[:2]]
        for name, model in zip(names, models, strict=False):
            evaluators.begin(name, known, model, asked)
        with pytest.raises(WorkerDied, match=f"{names[0]}.*SIGKILL") as died:
            evaluators.result(names[0])
        assert died.value.seconds > 0
        assert evaluators.result(names[1]).evaluation is not None
        assert evaluators.ask(known, models[0], asked).evaluation is not None


def test_a_daemon_that_stops_does_not_wait_for_its_workers(settings, models, tmp_path):
    stop = threading.Event()
    workshop = Workshop(tmp_path / "evaluate.log", stop=stop)
    with closing(Evaluators(Local(workshop), stop)) as evaluators:
        stop.set()
        with pytest.raises(Stopped):
            evaluators.ask(settings, models[0], ("show", 0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": ("cpu", "cuda:0"), "device": "auto"}, "of one kind"),
        ({"devices": ("cuda:0",), "device": "cpu"}, "of one kind"),
        ({"devices": ("cuda:0", "cuda:0"), "device": "auto"}, "different ones"),
        ({"devices": ()}, "of one kind"),
        ({"devices": ("tpu",)}, "devices"),
        ({"workers": 0}, "workers"),
    ],
)
def test_devices_whose_scores_could_not_be_compared_are_refused(settings, changes, words):
    with pytest.raises(UsageError, match=words):
        settings.but(**changes)


def test_workers_share_the_threads_out_unless_their_number_is_set(settings):
    assert settings.but(workers=3).worker_devices() == ("cpu",) * 3
    assert settings.but(devices=("cpu",)).worker_devices() == ("cpu",)
    assert settings.but(workers=10_000, threads=None).resolved_threads() == 1
    one, four = (settings.but(workers=n).fingerprint("selection") for n in (1, 4))
    assert one == four


def test_an_unknown_executor_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(
        UsageError, match=r"no executor 'locall'; installed: inline, local, ray; did"
    ):
        open_executor("locall", Workshop(tmp_path / "log"))
