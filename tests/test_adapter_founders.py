"""A LoRA adapter on the hub is a founder like the others, unless the user says no."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import command
import tiny
import turns
from kinship_daemon import demo
from kinship_daemon.steps import validate
from scripted_policies import Scripted, merge
from test_adapter import adapter
from test_evolution import evolve, opened

pytestmark = pytest.mark.usefixtures("shared_worker")

SETTINGS = {"evaluate.limit": "4", "gate.min_gain": "-1"}
LORA = "demo/lora"
TIES = {"method": "ties", "parameters": {"weight": 1.0, "density": 0.7}}


@pytest.fixture
def home(tmp_path):
    """The demo's home, with an adapter of its base that peft has saved on the hub."""
    hub = tmp_path / "home" / "hub"
    demo.install(hub)
    adapter(hub / demo.BASE, tmp_path / "lora", target_modules=["q_proj", "down_proj"])
    card = {"base_model": demo.BASE, "library_name": "peft", "license": "apache-2.0"}
    tiny.repo(hub, LORA, tmp_path / "lora", card)
    return tmp_path / "home"


def test_an_adapter_is_related_scored_merged_and_its_merges_published(
    home, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(validate, "is_promising", lambda *_: True)
    with opened(home, **SETTINGS) as d:
        policy = Scripted(
            [merge("lora", "add"), merge("lora", "max", **TIES)],
            [merge("model-1-1", "model-1-2")],
        )
        d = replace(d, policy=policy)
        evolve(d)
        lora = d.lineage.require(LORA)
        assert lora.status == "admitted"
        assert lora.weights in d.ledger.rows
        assert len(d.lineage.scores(lora.weights, split="selection")) == len(demo.SELECTION)
        assert d.lineage.kinship("pcc", "demo/add", LORA) is not None
        assert len({p.model for p in d.lineage.publications()}) == 3
        published = {p.model: home / "hub" / p.repo for p in d.lineage.publications()}
    for name, repo in published.items():
        model = AutoModelForCausalLM.from_pretrained(repo)
        tokens = AutoTokenizer.from_pretrained(repo)("1+1=", return_tensors="pt")
        assert torch.isfinite(model(**tokens).logits).all()
        assert "demo/base+demo/lora" in (repo / "mergekit_config.yml").read_text()
        recipe = repo / "mergekit_config.yml"
        arguments = ["merge", recipe, tmp_path / name, "--hub", home / "hub"]
        result = command.call(arguments, monkeypatch, capfd)
        assert result.code == 0, result.err
        again = tiny.tensors(tmp_path / name)
        for tensor, weights in tiny.tensors(repo).items():
            # The YAML's order is not the ledger's: a last bit of bf16 here and there is another.
            other = again[tensor] != weights
            assert other.float().mean() < 1e-3, (name, tensor)
            torch.testing.assert_close(again[tensor], weights, rtol=2**-7, atol=1e-6)
    checked = command.call(["verify", "--home", home], monkeypatch, capfd)
    assert (checked.code, checked.err) == (0, "")


def test_an_adapter_is_refused_where_none_are_wanted(home):
    with opened(home, **{**SETTINGS, "triage.allow_adapters": "false"}) as d:
        turns.poll(d)
        lora = d.lineage.require(LORA)
    assert lora.status == "refused"
    assert lora.reason == "an adapter (triage.allow_adapters admits such)"


def test_another_rope_is_refused_until_it_is_allowed(home):
    other = "demo/add"
    tiny.config(home / "hub" / other, rope_parameters={"rope_theta": 1e6, "rope_type": "default"})
    with opened(home, **SETTINGS) as d:
        turns.poll(d)
        found = d.lineage.require(other)
        assert (found.status, found.cause) == ("quarantined", "settings")
        assert found.setting == "triage.allow_other_calculation"
        assert "rope_theta is 1000000.0" in found.reason
    with opened(home, **SETTINGS, **{"triage.allow_other_calculation": "true"}) as d:
        turns.poll(d)
        assert d.lineage.require(other).status == "admitted"


def test_an_adapter_of_another_model_of_the_hub_is_refused(home):
    config = home / "hub" / LORA / "adapter_config.json"
    saved = json.loads(config.read_text()) | {"base_model_name_or_path": "other/model"}
    config.write_text(json.dumps(saved))
    with opened(home, **SETTINGS) as d:
        turns.poll(d)
        lora = d.lineage.require(LORA)
    assert lora.status == "quarantined"
    assert "trained on other/model, not on demo/base" in lora.reason
