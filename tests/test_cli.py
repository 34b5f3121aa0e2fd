"""The commands that need no daemon: their contracts, and one line for every mistake."""

import csv
import gc
import io
import json
import sqlite3

import pytest
import torch
import yaml
from safetensors.torch import load_file

import command
import tiny
from kinship_daemon import config
from kinship_storage import schema, store


@pytest.fixture
def call(monkeypatch, capfd):
    return lambda *arguments: command.call(arguments, monkeypatch, capfd)


def deltas(base, finetune):
    ours, theirs = load_file(base / "model.safetensors"), _tensors(finetune)
    return torch.cat([(theirs[n].double() - ours[n].double()).flatten() for n in sorted(ours)])


def _tensors(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: t for file in files for name, t in load_file(file).items()}


def test_kinship_keeps_its_json_contract_and_is_right(call, tiny_base, tiny_finetunes):
    result = call("kinship", *tiny_finetunes, "--base", tiny_base, "--format", "json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    truth = torch.corrcoef(torch.stack([deltas(tiny_base, f) for f in tiny_finetunes]))
    assert torch.allclose(torch.tensor(found["matrix"], dtype=torch.float64), truth, atol=1e-6)
    assert found["models"] == [str(folder) for folder in tiny_finetunes]
    assert (found["base"], found["metric"]) == (str(tiny_base), "pcc")
    assert found["parameters"] == len(deltas(tiny_base, tiny_finetunes[0]))
    assert found["bytes_read"] == 4 * 2 * found["parameters"]
    assert found["seconds"] > 0
    assert "tensors" not in found


def test_kinship_by_tensor_has_a_matrix_for_each(call, tiny_base, tiny_finetunes):
    arguments = ["--by", "tensor", "--format", "json", "--metric", "euclidean"]
    found = json.loads(call("kinship", *tiny_finetunes[:2], "--base", tiny_base, *arguments).out)
    assert sum(tensor["parameters"] for tensor in found["tensors"]) == found["parameters"]
    squares = sum(tensor["matrix"][0][1] ** 2 for tensor in found["tensors"])
    assert squares**0.5 == pytest.approx(found["matrix"][0][1], rel=1e-6)


def test_kinship_as_csv_can_be_read_back(call, tiny_base, tiny_finetunes):
    out = call("kinship", *tiny_finetunes, "--base", tiny_base, "--format", "csv").out
    header, *rows = csv.reader(io.StringIO(out))
    assert header[1:] == [row[0] for row in rows]
    assert float(rows[0][1]) == pytest.approx(1)


def test_kinship_of_a_model_with_the_base_itself_is_undefined_not_a_number(
    call, tiny_base, tiny_finetunes
):
    result = call("kinship", tiny_base, tiny_finetunes[0], "--base", tiny_base, "--format", "json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["matrix"][0][1] is None


def test_kinship_of_demo_ids_needs_no_network(call):
    result = call("kinship", "demo/add", "demo/sort", "--base", "demo")
    assert result.code == 0, result.err
    assert "parameters" in result.out


def test_merge_follows_mergekits_yaml(call, tiny_base, tiny_finetunes, tmp_path):
    a, b, _ = tiny_finetunes
    recipe = tmp_path / "recipe.yml"
    models = [
        {"model": str(a), "parameters": {"weight": 0.25}},
        {"model": str(b), "parameters": {"weight": 0.75}},
    ]
    recipe.write_text(
        yaml.safe_dump({"merge_method": "linear", "models": models, "dtype": "bfloat16"})
    )
    result = call("merge", recipe, tmp_path / "out")
    assert result.code == 0, result.err
    made, first, second = (_tensors(folder) for folder in (tmp_path / "out", a, b))
    for name, tensor in made.items():
        wanted = 0.25 * first[name].float() + 0.75 * second[name].float()
        assert torch.equal(tensor, wanted.to(torch.bfloat16))
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_merge_does_not_touch_a_folder_that_is_not_empty(call, tmp_path, tiny_finetunes):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "merge_method": "slerp",
                "base_model": str(tiny_finetunes[0]),
                "models": [{"model": str(folder)} for folder in tiny_finetunes[:2]],
                "parameters": {"t": 0.5},
            }
        )
    )
    result = call("merge", recipe, tiny_finetunes[2])
    assert result.code == 2
    assert "not empty" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kinship", "demo/add", "--base", "demo"], "two models"),
        (["kinship", "demo/add", "demo/add", "--base", "demo"], "twice"),
        (["kinship", "demo/add", "demo/nobody", "--base", "demo"], "demo/nobody"),
        (["kinship", "demo/add", "./nowhere", "--base", "demo"], "nowhere"),
        (["kinship", "demo/add", "demo/max", "--base", "demo", "--metric", "pc"], "pcc"),
        (["merge", "nowhere.yml", "out"], "nowhere.yml"),
        (["run", "--base", "demo", "--set", "gate.fdr=2"], "gate.fdr"),
        (["run", "--once", "--until-converged"], "exclude"),
        (["run", "--set", "gate.min_gian=0"], "min_gain"),
        (["run", "--policy", "topk-greeedy"], "topk-greedy"),
        (["status", "--home", "nowhere"], "nowhere"),
        (["policies", "show", "topk"], "topk-kinship"),
        (["config", "check", "nowhere.yaml"], "nowhere.yaml"),
        (["demo", "release", "--base", "mistral-7b"], "demo"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(call, arguments, said):
    result = call(*arguments)
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
    assert result.err.startswith("kinship-daemon: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "arguments",
    [
        ["kinship", "demo/add", "demo/max", "--base", "demo", "--device", "cuda"],
        ["run", "--base", "demo", "--once", "--set", "evaluate.device=cuda"],
    ],
)
def test_a_device_that_is_not_there_is_one_line(call, arguments):
    result = call(*arguments)
    assert result.code == 2
    assert "no CUDA device" in result.err
    assert result.err.count("\n") == 1


def test_garbage_is_collected_again_once_a_command_is_imported(call):
    assert call("methods").code == 0
    assert gc.isenabled()


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_without_a_command_the_help_is_shown_as_it_is(call, arguments):
    result = call(*arguments)
    assert (result.code, result.err) == (0, "")
    assert result.out == call(*arguments, "--help").out
    assert result.out.count("\n") > 5


def test_a_first_run_that_fails_leaves_no_home(call, tmp_path):
    home = tmp_path / "home"
    refused = call("run", "--base", "org/x", "--hub", tmp_path, "--home", home, "--once")
    assert "no repo org/x" in refused.err
    assert not home.exists()


def test_a_first_run_whose_lineage_cannot_be_made_says_why(call, tmp_path, monkeypatch):
    def half(db, name):
        schema.migrate(db, name, schema.MIGRATIONS[:2])
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(store, "migrate", half)
    result = call("run", "--base", "demo", "--home", tmp_path / "home", "--once")
    assert result.code == 3
    assert "disk is full" in result.err
    assert result.err.count("\n") == 1


def test_every_command_is_listed_and_has_help(call):
    listed = call("--help").out
    for name in ("run", "status", "lineage", "explain", "kinship", "merge", "evaluate", "doctor"):
        assert name in listed
        assert call(name, "--help").out.startswith("Usage: kinship-daemon " + name)


def test_bases_methods_policies_and_presets_are_listed(call):
    assert "mistralai/Mistral-7B-v0.1" in call("bases").out
    assert "slerp" in call("methods").out
    policies = call("policies").out
    assert "topk-kinship: Merges" in policies
    assert "k: 3  (at least 2)" in policies


def test_a_preset_shown_is_a_policy_file(call, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(call("policies", "show", "topk-kinship").out)
    assert config.load(policy=str(file)).policy.use == "topk-kinship"


def test_config_show_check_and_schema(call, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(call("config", "show", "--base", "demo", "--set", "seed=7").out)
    assert "good" in call("config", "check", file).out
    assert json.loads(call("config", "schema").out)["properties"]["seed"]
    file.write_text("policy: {use: topk-kinship, kk: 2}\n")
    refused = call("config", "check", file)
    assert refused.code == 2
    assert "nearest: k" in refused.err


def test_config_check_tells_every_mistake(call, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("gate: {fdr: 2}\npolicy: {use: topk-kinship, kk: 2}\nmerge: {method: x}\n")
    refused = call("config", "check", file)
    assert refused.code == 2
    for words in ("gate.fdr", "no setting 'kk'", "'x'", "3 mistakes"):
        assert words in refused.err
    assert refused.err.count("\n") == 4


def test_config_check_loads_the_tasks_where_asked(call, warm_worker, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("base: demo\nevaluate: {selection: [demo_nothing]}\n")
    assert call("config", "check", file).code == 0
    refused = call("config", "check", file, "--tasks")
    assert (refused.code, "demo_nothing" in refused.err) == (2, True)


def test_doctor_says_what_would_stop_a_run(call, tmp_path):
    good = call("doctor", "--base", "demo", "--home", tmp_path / "home")
    assert good.code == 0, good.out
    assert "demo/base" in good.out
    bad = call("doctor", "--base", "org/x", "--hub", tmp_path, "--home", tmp_path / "home")
    assert bad.code == 3
    assert "BAD base" in bad.out
    assert "org/x" in bad.out


def test_the_base_of_a_hub_folder_can_be_named_by_id(call, tiny_hub, tiny_finetunes):
    result = call("kinship", "org/a", "org/b", "--base", "org/base", "--hub", tiny_hub)
    assert result.code == 0, result.err


def test_models_of_other_shapes_are_refused_with_what_differs(call, tiny_base, tmp_path):
    other = tiny.base(tmp_path / "other", hidden=16)
    result = call("kinship", other, tiny_base, "--base", tiny_base)
    assert result.code == 3
    assert "hidden_size is 16" in result.err
    assert result.err.count("\n") == 1
