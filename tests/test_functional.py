"""Functional kinship: how alike models are in what they make of probes."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import command
import tiny
from kinship_daemon.errors import ModelError
from kinship_daemon.weights.assembly import leaf_assembly
from kinship_daemon.weights.functional import functional_kinship
from test_vocabulary import grown, permuted

PROBES = ["what is 2 + 3?", "name a colour.", "0123456789", "the end of it all"]


def kin(base, models, probes=PROBES):
    found = [leaf_assembly(model, model.name, base) for model in models]
    return functional_kinship(leaf_assembly(base, "base"), found, probes, "cpu")


@torch.no_grad()
def made_of_probes(folder, tokens=None):
    """Last hidden states, and log-probabilities of the tokens, or all, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder)
    read = [words(text, return_tensors="pt")["input_ids"] for text in PROBES]
    found = [model(ids, output_hidden_states=True) for ids in read]
    states = np.stack([each.hidden_states[-1][0, -1].double().numpy() for each in found])
    logits = np.stack([each.logits[0, -1].double().numpy() for each in found])
    return states, logits


def log_shares(logits, chosen):
    of = np.take_along_axis(logits, chosen, 1)
    return of - np.log(np.exp(of).sum(1, keepdims=True))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("functional")
    base = tiny.base(scratch / "base", dtype=torch.float32)
    return base, [tiny.finetune(base, scratch / name, seed) for seed, name in enumerate("abc", 1)]


def test_it_is_the_correlation_of_how_models_depart_from_the_base(family):
    base, models = family
    found = kin(base, models)
    own, logits = made_of_probes(base)
    chosen = np.argsort(-logits, 1)[:, :32]
    rest = [made_of_probes(model) for model in models]
    hidden = np.corrcoef([(states - own).ravel() for states, _ in rest])
    before = log_shares(logits, chosen)
    answers = np.corrcoef([(log_shares(each, chosen) - before).ravel() for _, each in rest])
    assert np.allclose(found.hidden, hidden, atol=1e-5)
    assert np.allclose(found.answers, answers, atol=1e-5)
    assert np.abs(hidden[0, 1]) < 0.95


def test_a_model_is_its_own_twin_and_the_base_has_no_kin(family):
    base, (a, b, _) = family
    found = kin(base, [a, a, b, base])
    for matrix in (found.hidden, found.answers):
        assert matrix[0, 1] == pytest.approx(1)
        assert matrix[0, 2] < 0.99
        assert bool(matrix[3].isnan().all())


def test_models_with_more_tokens_or_in_another_order_are_compared_by_tokens(family, tmp_path):
    base, (a, _, _) = family
    moved = permuted(base, tmp_path / "moved", 1)
    more = grown(base, tmp_path / "more", 1, tokens=("<new>",))
    found = kin(base, [a, moved, more])
    assert bool(found.answers.isfinite().all())
    own, other = (made_of_probes(each) for each in (base, moved))
    assert not np.allclose(own[1], other[1], atol=0.1), "their rows are others"


def test_a_tokenizer_without_the_bases_tokens_is_refused(family, tmp_path):
    base, (a, _, _) = family
    lacking = tiny.finetune(base, tmp_path / "lacking", 1)
    path = lacking / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["model"]["vocab"] = {
        token: row for token, row in saved["model"]["vocab"].items() if token not in "qxz"
    }
    path.write_text(json.dumps(saved))
    with pytest.raises(ModelError, match=r"its tokenizer lacks '.', which the base has"):
        kin(base, [a, lacking])


def test_a_model_that_makes_nan_is_refused(family, tmp_path):
    base, (a, _, _) = family
    broken = tiny.finetune(base, tmp_path / "broken", 1)
    tensor = tiny.tensors(broken)["model.norm.weight"].clone()
    tensor[0] = torch.nan
    tiny.edit(broken, {"model.norm.weight": tensor})
    with pytest.raises(ModelError, match="it makes NaN or infinity of a probe"):
        kin(base, [a, broken])


@pytest.fixture
def call(monkeypatch, capfd):
    return lambda *arguments: command.call(arguments, monkeypatch, capfd)


def test_by_hand(family, tmp_path, call):
    base, models = family
    (tmp_path / "probes").write_text("\n\n".join(PROBES))
    asked = ("kinship", *models, "--base", base, "--metric", "functional", "--device", "cpu")
    done = call(*asked, "--probes", tmp_path / "probes", "--format", "json")
    assert done.code == 0, done.err
    found, exact = json.loads(done.out), kin(base, models)
    assert found["probes"] == 4
    assert np.allclose(found["matrix"], exact.hidden)
    assert np.allclose(found["answers"], exact.answers)
    shown = call(*asked, "--probes", tmp_path / "probes", "--plot", tmp_path / "kin.svg")
    assert f"{float(exact.hidden[1, 0]):.4f}" in shown.out
    assert f"{float(exact.answers[1, 0]):.4f}" in shown.out
    assert (tmp_path / "kin.svg").is_file()


def test_what_does_not_go_together_is_refused(family, tmp_path, call):
    base, models = family
    (tmp_path / "probes").write_text("x")
    probes = ("--probes", tmp_path / "probes")
    functional = ("--metric", "functional")
    for given, said in (
        (functional, "--metric functional and --probes FILE go together"),
        (probes, "go together"),
        ((*functional, *probes, "--by", "layer"), "is of whole models"),
        ((*functional, *probes, "--sample", "0.1"), "is of whole models"),
        ((*functional, "--probes", tmp_path / "none"), "cannot read"),
    ):
        done = call("kinship", *models, "--base", base, *given)
        assert done.code != 0
        assert said in " ".join(done.err.split()), done.err
