"""The quick screen, with the real harness on the demo's models: who is not worth a full look."""

from dataclasses import replace
from io import StringIO

import pytest
import torch
from safetensors.torch import load_file

import tiny
import turns
from hub_daemon import told
from kinship_daemon import config, demo, startup
from kinship_daemon.errors import WorkerDied
from kinship_daemon.evaluate.worker import WorkerEvaluator
from kinship_daemon.report import JsonReporter
from kinship_daemon.steps.scores import mean_score, scores
from test_evolution import SMALL

pytestmark = pytest.mark.usefixtures("shared_worker")

BROKEN = "demo/broken"
# Eight documents of each task are few: the margin is wide, or luck would decide.
SCREEN = {
    **SMALL,
    "admission.screen_documents": "8",
    "admission.screen_margin": "0.15",
    "evaluate.limit": "24",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The demo's, and a fine-tune that came out as noise."""
    hub = tmp_path_factory.mktemp("screen") / "hub"
    demo.install(hub)
    card = {"base_model": demo.BASE, "base_model_relation": "finetune", "license": "apache-2.0"}
    broken = tiny.repo(hub, BROKEN, hub / "demo" / "add", card)
    noise = torch.Generator().manual_seed(0)
    weights = load_file(broken / "model.safetensors")
    tiny.edit(broken, {n: torch.randn(w.shape, generator=noise).to(w) for n, w in weights.items()})
    return hub


def opened(hub, home, **overrides):
    settings = {**SCREEN, **overrides}
    loaded = config.load(
        base="demo",
        hub=str(hub),
        home=home,
        overrides=[f"{key}={value}" for key, value in settings.items()],
    )
    return startup.opened(loaded, JsonReporter(StringIO()))


@pytest.fixture(scope="module")
def screened(hub, tmp_path_factory):
    home = tmp_path_factory.mktemp("screened") / "home"
    with opened(hub, home) as d:
        turns.poll(d)
        turns.take(d, "screen")
        yield d


def test_a_broken_fine_tune_is_refused_before_it_is_measured_or_evaluated(screened):
    model = screened.lineage.require(BROKEN)
    assert model.status == "refused"
    assert "the quick screen gives 0.0" in model.reason
    assert model.weights not in screened.ledger.rows
    others = screened.lineage.models("finetune", "admitted")
    assert len(others) == 5
    for other in others:
        assert screened.lineage.require(other.id).screen > screened.lineage.require(BROKEN).screen


def test_screen_scores_never_count_as_selection_scores(screened):
    fingerprint = screened.settings.fingerprint("selection")
    for model in [screened.base, *screened.lineage.models("finetune")]:
        assert scores(screened, model, "selection") == ()
        rows = screened.lineage.scores(model.weights)
        assert {row.n for row in rows} == {8}
        assert fingerprint not in {row.settings for row in rows}
    assert screened.lineage.jobs(kind="score") == []


def test_nobody_is_screened_twice(screened, monkeypatch):
    def never(*_):
        raise AssertionError("evaluated again")

    with monkeypatch.context() as patched:
        patched.setattr(WorkerEvaluator, "evaluate", never)
        turns.take(screened, "screen")
        before = {job.key: job.attempts for job in screened.lineage.jobs(kind="screen")}
        assert len(before) == 7
        assert set(before.values()) == {1}


def test_the_others_are_evaluated_in_the_order_of_their_screen_scores(screened):
    d = screened
    turns.take(d, "ledger", "score")
    order = [message.split()[0] for message in told(d, "score")]
    assert len(order) == 5
    screens = [d.lineage.require(name).screen for name in order]
    assert screens == sorted(screens, reverse=True)
    assert {
        row.n
        for row in d.lineage.scores(
            d.lineage.require(order[0]).weights, settings=d.settings.fingerprint("selection")
        )
    } == {24}
    assert mean_score(scores(d, d.lineage.require(order[0]), "selection")) > 0
    turns.take(d, "screen")  # nobody is new
    assert len(d.lineage.jobs(kind="screen")) == 7


def test_a_base_that_cannot_be_screened_lets_everyone_pass(hub, tmp_path, monkeypatch):
    real = WorkerEvaluator.evaluate

    def killed(self, assembly, split, progress=None):
        if assembly.base == hub / demo.BASE and not assembly.leaves:
            raise WorkerDied(f"{demo.BASE}: the evaluation worker died")
        return real(self, assembly, split, progress)

    monkeypatch.setattr(WorkerEvaluator, "evaluate", killed)
    with opened(hub, tmp_path / "home") as d:
        turns.poll(d)
        turns.take(d, "screen")
        turns.take(d, "screen", "ledger", "score")
        assert {m.status for m in d.lineage.models()} == {"admitted"}
        warnings = told(d, "warning")
        assert len([w for w in warnings if "nobody is screened" in w]) == 1
        assert all(scores(d, m, "selection") for m in d.lineage.models("finetune"))


def test_a_base_that_gets_nothing_right_is_asked_once_and_lets_everyone_pass(
    hub, tmp_path, monkeypatch
):
    real = WorkerEvaluator.evaluate

    asked = []

    def wrong(self, assembly, split, progress=None):
        found = real(self, assembly, split, progress)
        if assembly.base == hub / demo.BASE and not assembly.leaves:
            asked.append(split)
            answers = (
                replace(each, samples=tuple((doc, 0.0) for doc, _ in each.samples))
                for each in found.answers
            )
            return replace(found, answers=tuple(answers))
        return found

    monkeypatch.setattr(WorkerEvaluator, "evaluate", wrong)
    with opened(hub, tmp_path / "home") as d:
        turns.poll(d)
        turns.take(d, "screen")
        assert {m.status for m in d.lineage.models()} == {"admitted"}
        assert all(m.screen is not None for m in d.lineage.models("finetune"))
    assert len(asked) == 1


def test_without_documents_nobody_is_screened(hub, tmp_path):
    with opened(hub, tmp_path / "home", **{"admission.screen_documents": "0"}) as d:
        turns.poll(d)
        turns.take(d, "screen")
        assert d.lineage.jobs(kind="screen") == []
        assert d.lineage.require(BROKEN).status == "admitted"
