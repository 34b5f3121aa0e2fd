"""`export`, `merge`, `evaluate` and `kinship` take the models of a home, published or not."""

import json
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import command
import tiny
import turns
from kinship_daemon import config, startup
from kinship_daemon.report import JsonReporter
from kinship_daemon.weights.recipe import Recipe
from small_lineage import merge

PARENTS = ("org/a", "org/b")


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_base, tiny_finetunes):
    """Two fine-tunes with their ledger and one merge of them, which has no file anywhere."""
    room = tmp_path_factory.mktemp("world")
    tiny.repo(room / "hub", "org/base", tiny_base, {"license": "apache-2.0"})
    for folder in tiny_finetunes[:2]:
        card = {"base_model": "org/base", "license": "apache-2.0"}
        tiny.repo(room / "hub", f"org/{folder.name}", folder, card)
    given = config.load(base="org/base", hub=str(room / "hub"), home=room / "home")
    with startup.opened(given, JsonReporter(StringIO())) as d:
        turns.poll(d)
        turns.take(d, "ledger")
        recipe = Recipe("linear", PARENTS, {"weight": 0.5})
        weights = recipe.identity([str(d.lineage.require(name).weights) for name in PARENTS])
        child = merge("model-1-1", PARENTS, recipe=recipe.to_json(), weights=weights)
        d.lineage.add_model(child)
    return room / "home"


@pytest.fixture
def call(monkeypatch, capfd):
    return lambda *arguments: command.call(arguments, monkeypatch, capfd)


def half(tiny_finetunes):
    """What the merge's weights are: half of each, rounded once."""
    a, b = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in tiny_finetunes[:2])
    return {name: ((a[name].float() + b[name].float()) / 2).to(a[name].dtype) for name in a}


def test_transformers_reads_what_is_exported(call, home, tmp_path, tiny_finetunes):
    result = call("export", "model-1-1", tmp_path / "out", "--home", home)
    assert result.code == 0, result.err
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in half(tiny_finetunes).items():
        assert torch.allclose(found[name].float(), tensor.float(), atol=1e-3), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size
    made = yaml.safe_load((tmp_path / "out" / "recipe.yml").read_text())
    assert [each["model"] for each in made["models"]] == ["org/a", "org/b"]


def test_an_export_can_be_made_again_from_its_own_recipe(call, home, tmp_path):
    assert call("export", "model-1-1", tmp_path / "out", "--home", home).code == 0
    recipe = tmp_path / "out" / "mergekit_config.yml"
    again = call("merge", recipe, tmp_path / "again", "--home", home)
    assert again.code == 0, again.err
    first, second = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "again" / "mergekit_config.yml").read_text() == recipe.read_text()


def test_a_merge_of_a_homes_merge_leaves_nothing_else_behind(call, home, tmp_path):
    recipe = tmp_path / "recipe.yml"
    names = [{"model": name, "parameters": {"weight": 0.5}} for name in ("model-1-1", "org/a")]
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": names}))
    result = call("merge", recipe, tmp_path / "out", "--home", home)
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe.yml"]


@pytest.mark.parametrize(
    ("name", "said"), [("org/a", "is no merge"), ("model-1-2", "nearest: model-1-1")]
)
def test_only_merges_of_the_home_are_exported(call, home, tmp_path, name, said):
    result = call("export", name, tmp_path / "out", "--home", home)
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(call, home, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = call("export", "model-1-1", tmp_path, "--home", home)
    assert (result.code, "exists" in result.err) == (2, True)


CONVERTER = """
import json, pathlib, sys
folder, _, out, _, kind = sys.argv[1:]
assert (pathlib.Path(folder) / "model.safetensors").is_file()
if FAILS:
    sys.exit("Model LlamaForCausalLM is not supported")
pathlib.Path(out).write_bytes(b"GGUF" + json.dumps([kind]).encode())
"""


def test_a_gguf_file_is_what_the_converter_wrote_or_nothing(call, home, tmp_path):
    """llama.cpp is no package: this holds what we promise its script and take from it."""
    asked = ["export", "model-1-1", tmp_path / "m.gguf", "--format", "gguf", "--home", home]
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("FAILS = True\n" + CONVERTER)
    failed = call(*asked, "--converter", script)
    assert failed.code == 3
    assert "not supported" in failed.err
    assert [path.name for path in tmp_path.iterdir()] == [script.name]
    script.write_text("FAILS = False\n" + CONVERTER)
    assert call(*asked, "--converter", tmp_path).code == 0
    assert (tmp_path / "m.gguf").read_bytes() == b'GGUF["auto"]'


def test_without_a_converter_one_line_says_how_to_get_one(call, home, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    result = call("export", "model-1-1", tmp_path / "x.gguf", "--format", "gguf", "--home", home)
    assert result.code == 2
    assert "convert_hf_to_gguf.py" in result.err
    assert result.err.count("\n") == 1


def test_kinship_of_a_homes_models_is_its_ledgers(call, home):
    names = ["org/a", "org/b", "model-1-1"]
    result = call("kinship", *names, "--home", home, "--format", "json", "--metric", "cosine")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["base"], found["bytes_read"]) == ("org/base", 0)
    # The cosine of a half-half merge with its parents follows from theirs and their lengths.
    lengths = call("kinship", *names, "--home", home, "--format", "json", "--metric", "euclidean")
    ab, am = (json.loads(lengths.out)["matrix"][0][i] for i in (1, 2))
    assert am == pytest.approx(ab / 2)
    assert call("kinship", *names, "--home", home, "--base", "demo").code == 2
