"""Merges that algebra cannot make: made on disk, parents again, made again when they are gone."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import command
import tiny
import turns
from kinship_daemon import demo
from kinship_daemon.errors import ModelError
from kinship_daemon.steps import make, validate
from kinship_daemon.steps.assemblies import kinship_matrix
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.methods.method import MatrixMethod
from kinship_storage.lineage import Lineage
from scripted_policies import Scripted, merge
from test_evolution import evolve, opened
from test_main_job import history

pytestmark = pytest.mark.usefixtures("shared_worker")

SETTINGS = {
    "evaluate.limit": "4",
    "merge": "{method: ties, parameters: {weight: 1.0, density: 0.6}}",
    "gate.min_gain": "-1",
}
OTHERS = ("breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear")
SLERP = {"method": "slerp", "parameters": {"t": 0.3}}
DELLA = {"method": "della", "parameters": {"weight": [1.0, 0.5], "density": 0.7}}
SCRIPT = Scripted(
    [merge("add", "max"), merge("sort", "reverse")],
    [merge("model-1-1", "sort", **SLERP), merge("model-1-1", "model-1-2")],
    [merge("model-2-1", "reverse"), merge("model-2-2", "max", **DELLA)],
)
FOUNDERS = ("add", "max", "reverse", "sort", "subtract")
MADE = ["model-1-1", "model-1-2", "model-2-2", "model-3-1", "model-3-2"]


def run(home, **overrides):
    """From where the home is to convergence."""
    with opened(home, **SETTINGS, **overrides) as d:
        d = replace(d, policy=SCRIPT)
        evolve(d)


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def everything(home):
    """All that a run leaves behind, but for times."""
    return {
        "history": history(home),
        "ledger": (home / "ledger.safetensors").read_bytes(),
        "made": content(home / "made"),
        "hub": content(home / "hub"),
    }


@pytest.fixture(scope="module")
def everyone_is_promising():
    """Few documents are judged, so that scores say little: whoever passes is to be published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "is_promising", lambda *_: True)
        yield


@pytest.fixture(scope="module")
def calm(tmp_path_factory, everyone_is_promising):
    """A home whose evolution nothing disturbed; each test leaves it as it was."""
    home = tmp_path_factory.mktemp("calm") / "home"
    run(home)
    return home


@pytest.fixture(scope="module")
def lineage(calm):
    with Lineage.open(calm / "lineage.db", now=None, readonly=True) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(calm):
    return everything(calm)


def test_children_are_files_with_rows_kinships_and_scores(calm, lineage):
    merges = lineage.models(kind="merge")
    assert {m.id: m.status for m in merges} == dict.fromkeys(
        ["model-1-1", "model-1-2", "model-2-1", "model-2-2", "model-3-1", "model-3-2"], "admitted"
    )
    rows = Ledger.load(calm / "ledger.safetensors").rows
    for name in MADE:
        model = lineage.require(name)
        assert model.weights in rows
        assert (calm / "made") in (calm / "made" / str(lineage.require(name).folder)).parents
        assert "model.safetensors" in {file.path for file in lineage.files(name)}
    assert lineage.require("model-2-1").weights not in rows
    assert not lineage.files("model-2-1")
    assert len(list((calm / "made").iterdir())) == len(MADE)
    parents = {tuple(sorted(m.parents)) for m in merges}
    assert parents <= set(lineage.kinships("pcc"))
    assert all(lineage.scores(m.weights, split="selection") for m in merges)


def test_a_childs_kinship_is_that_of_its_bytes(calm, lineage):
    base = tiny.tensors(calm / "hub/demo/base")
    flat = {}
    for name in ("model-1-1", "model-3-1"):
        tensors = tiny.tensors(calm / "made" / str(lineage.require(name).folder))
        deltas = [tensors[n].double() - base[n].double() for n in sorted(tensors)]
        flat[name] = torch.cat([delta.flatten() for delta in deltas])
    truth = torch.corrcoef(torch.stack([*flat.values()]))[0, 1].item()
    with opened(calm, **SETTINGS) as d:
        models = [d.lineage.require(name) for name in flat]
        assert kinship_matrix(d, models, "pcc")[0][1] == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("name", [*MADE, "model-2-1"])
def test_what_is_published_can_be_made_again_from_the_cards_yaml(
    calm, lineage, tmp_path, monkeypatch, capfd, name
):
    repo = calm / "hub" / lineage.publication(name).repo
    recipe = repo / "mergekit_config.yml"
    arguments = ["merge", recipe, tmp_path / "again", "--hub", calm / "hub"]
    result = command.call(arguments, monkeypatch, capfd)
    assert result.code == 0, result.err
    again, published = (load_file(f / "model.safetensors") for f in (tmp_path / "again", repo))
    for tensor, weights in published.items():
        assert torch.equal(again[tensor], weights), tensor


def test_killed_around_its_making_a_child_is_made_once(tmp_path, undisturbed, monkeypatch):
    home = tmp_path / "home"
    moments = {
        "before": (make, "write"),
        "half written": (make, "write"),
        "without a row": (Ledger, "save"),
        "before it is written down": (Lineage, "add_files"),
    }
    for moment, (place, name) in moments.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, name, _killing(getattr(place, name), moment))
            with pytest.raises(KeyboardInterrupt):
                run(home)
    run(home)
    assert everything(home) == undisturbed


def _killing(real, moment):
    def killed(*arguments, **rest):
        if moment == "half written":
            rest["made"] = _after(2, rest["made"])
            return real(*arguments, **rest)
        raise KeyboardInterrupt

    def killed_later(ledger, path):
        if len(ledger.rows) <= len(FOUNDERS):
            return real(ledger, path)
        raise KeyboardInterrupt

    def killed_for_merges(lineage, model, files):
        if not model.startswith("model-"):
            return real(lineage, model, files)
        raise KeyboardInterrupt

    return {"save": killed_later, "add_files": killed_for_merges}.get(real.__name__, killed)


def _after(tensors, real):
    """Hands on so many tensors, then the process is killed."""
    left = iter(range(tensors))

    def made(name, weights):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(name, weights)

    return made


LOST = {
    "all that was made": lambda home: shutil.rmtree(home / "made"),
    "the ledger": lambda home: (home / "ledger.safetensors").unlink(),
    "both": lambda home: (shutil.rmtree(home / "made"), (home / "ledger.safetensors").unlink()),
    "one child's weights": lambda home: min(home.glob("made/*/model.safetensors")).unlink(),
    "one child's bytes": lambda home: min(home.glob("made/*/model.safetensors")).write_bytes(b"x"),
}


@pytest.mark.parametrize("what", LOST)
def test_what_is_lost_is_made_again_with_the_same_bytes(calm, undisturbed, what):
    LOST[what](calm)
    run(calm)
    assert everything(calm) == undisturbed


def test_verify_is_content_and_says_who_makes_again_what_is_gone(calm, monkeypatch, capfd):
    arguments = ["verify", "--home", calm]
    assert command.call(arguments, monkeypatch, capfd).code == 0
    gone = min(calm.glob("made/*/config.json"))
    kept = gone.read_bytes()
    gone.unlink()
    result = command.call(arguments, monkeypatch, capfd)
    gone.write_bytes(kept)
    assert result.code != 0
    assert "is gone; the next run makes it again" in result.out + result.err


def test_a_quarantined_parent_is_made_again_for_its_children(calm, undisturbed):
    with opened(calm, **SETTINGS) as d:
        d.lineage.move_model("model-1-1", "quarantine", reason="as if", cause="model")
        shutil.rmtree(calm / "made")
        turns.take(d, "make")
        assert {m.status for m in d.lineage.models(kind="merge") if m.id != "model-1-1"} == {
            "admitted"
        }
        d.lineage.move_model("model-1-1", "repropose")
        turns.take(d, "score")
    assert content(calm / "made") == undisturbed["made"]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        *((name, "{weight: 0.7, density: 0.6}") for name in OTHERS),
        ("wudi", "{ridge: 0.05}"),
        ("tsv", "{lambda: 0.7}"),
    ],
)
def test_every_kind_of_method_may_be_the_configured_one(tmp_path, method, parameters):
    settings = {"merge": f"{{method: {method}, parameters: {parameters}}}"}
    with opened(tmp_path / "home", **(SETTINGS | settings)) as d:
        evolve(d)
        merges = d.lineage.models(kind="merge", status="admitted")
    assert {m.recipe["method"] for m in merges} == {method}
    assert any(parent.startswith("model-") for m in merges for parent in m.parents)


def test_a_matrix_merge_of_another_machine_is_the_worlds_fault(tmp_path, monkeypatch):
    home, settings = tmp_path / "home", SETTINGS | {"merge": "{method: wudi, parameters: {}}"}
    with opened(home, **settings) as d:
        d = replace(d, policy=Scripted([merge("add", "max")]))
        evolve(d)
    shutil.rmtree(home / "made")
    exact = MatrixMethod.__call__
    monkeypatch.setattr(MatrixMethod, "__call__", lambda *all_: exact(*all_) * 1.01)
    with opened(home, **settings) as d:
        d = replace(d, policy=Scripted([merge("add", "max")], [merge("model-1-1", "sort")]))
        evolve(d)
        child = d.lineage.require("model-1-1")
        assert (child.status, child.cause) == ("quarantined", "world")
        assert "the number of threads or torch's release is another" in child.reason


def test_a_newcomer_may_come_while_what_was_made_is_gone(tmp_path):
    home = tmp_path / "home"
    # Until it is released the policy asks for somebody unknown, which is a stop.
    script = Scripted([merge("add", "max")], [merge("model-1-1", "sequence")])
    with opened(home, **SETTINGS) as d:
        d = replace(d, policy=script)
        evolve(d)
    before = content(home / "made")
    shutil.rmtree(home / "made")
    demo.release(home / "hub")
    with opened(home, **SETTINGS) as d:
        d = replace(d, policy=script)
        evolve(d)
        merges = d.lineage.models(kind="merge")
        assert {m.id: m.status for m in merges} == {
            "model-1-1": "admitted",
            "model-2-1": "admitted",
        }
        assert {m.weights for m in merges} < set(d.ledger.rows)
        assert len(d.ledger.rows) == len(FOUNDERS) + 1 + len(merges)
    assert before.items() <= content(home / "made").items()


def test_a_child_that_cannot_be_made_is_set_aside_and_its_siblings_go_on(tmp_path, monkeypatch):
    real = make.write

    def failing(assembly, *arguments, **rest):
        if assembly.method == "della":
            raise ModelError("tensor lm_head.weight holds NaN")
        return real(assembly, *arguments, **rest)

    monkeypatch.setattr(make, "write", failing)
    with opened(tmp_path / "home", **SETTINGS) as d:
        d = replace(d, policy=Scripted([merge("add", "max", **DELLA), merge("add", "max")]))
        evolve(d)
        first, second = d.lineage.models(kind="merge")
    assert (first.status, second.status) == ("quarantined", "admitted")
    assert first.reason == "tensor lm_head.weight holds NaN"
