"""`merge`: what it makes, what it reads, what it leaves to mergekit, and what it refuses first."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import command
import mergekit_oracle
import tiny
from kinship_daemon.errors import ModelError
from kinship_daemon.weights import mergekit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_worker")]


@pytest.fixture
def merge(monkeypatch, capfd, tmp_path):
    """Runs `merge` on a recipe, into tmp_path/out."""

    def run(recipe, *options):
        text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe)
        (tmp_path / "recipe.yml").write_text(text)
        arguments = ["merge", tmp_path / "recipe.yml", tmp_path / "out", "--device", "cpu"]
        return command.call([*arguments, *options], monkeypatch, capfd)

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def recipe(method, folders, base=None, weights=None, **parameters):
    models = [{"model": str(folder)} for folder in folders]
    for model, weight in zip(models, weights or (), strict=False):
        model["parameters"] = {"weight": weight}
    found = {"merge_method": method, "models": models, "parameters": parameters}
    return found | ({} if base is None else {"base_model": str(base)})


def left(folder):
    """What lies in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


NAME = "model.layers.1.mlp.up_proj.weight"


def test_a_merge_that_asks_for_no_angles_reads_only_what_it_weighs(
    merge, out, tiny_base, tiny_finetunes, tmp_path
):
    a = tiny_finetunes[0]
    broken = shutil.copytree(a, tmp_path / "broken")
    tiny.edit(broken, {NAME: torch.full_like(tiny.tensors(a)[NAME], torch.nan)})
    weight = [{"filter": NAME, "value": 0}, {"value": 1}]
    made = recipe("task_arithmetic", [a, broken], tiny_base, [0.5, weight])
    result = merge(made)
    assert result.code == 0, result.err
    assert "kinship" not in result.err
    base, own, merged = (tiny.tensors(folder)[NAME] for folder in (tiny_base, a, out))
    assert torch.equal(merged, (0.5 * base.float() + 0.5 * own.float()).to(torch.bfloat16))


def test_angles_are_measured_before_anything_is_written(merge, out, tiny_finetunes, tmp_path):
    a, b, _ = tiny_finetunes
    broken = shutil.copytree(a, tmp_path / "broken")
    tiny.edit(broken, {NAME: torch.full_like(tiny.tensors(a)[NAME], torch.nan)})
    result = merge(recipe("slerp", [b, broken], b, t=0.5))
    assert result.code == 3
    assert NAME in result.err
    assert not out.exists()


def test_shards_are_as_small_as_wished(merge, out, tiny_finetunes):
    a, b, _ = tiny_finetunes
    result = merge(recipe("linear", [a, b], weight=0.5), "--shard-gb", "0.00004")
    assert result.code == 0, result.err
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert all((out / file).stat().st_size < 45_000 for file in files)
    AutoModelForCausalLM.from_pretrained(out)


def test_the_tokenizer_is_that_of_the_model_named(merge, out, tiny_base, tiny_finetunes, tmp_path):
    chatty = shutil.copytree(tiny_finetunes[0], tmp_path / "chatty")
    tiny.tokenizer(chatty, chat_template="{{ messages }}")
    made = recipe("linear", [tiny_finetunes[1], chatty], tiny_base, weight=1)
    result = merge(made | {"tokenizer_source": str(chatty)})
    assert result.code == 0, result.err
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages }}"


def test_adapters_are_named_as_mergekit_names_them(merge, out, tiny_base, tmp_path):
    peft = pytest.importorskip("peft")
    wanted, names = {}, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        settings = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(model, settings)
        adapted.save_pretrained(tmp_path / f"adapter-{seed}")
        names.append(f"{tiny_base}+{tmp_path / f'adapter-{seed}'}")
        for name, tensor in adapted.merge_and_unload().state_dict().items():
            wanted[name] = wanted.get(name, 0) + tensor / 2
    result = merge(recipe("linear", names, weight=1) | {"dtype": "float32"})
    assert result.code == 0, result.err
    for name, tensor in tiny.tensors(out).items():
        assert torch.allclose(tensor, wanted[name], rtol=1e-5, atol=1e-6), name


def test_nothing_slow_is_imported_before_it_is_needed():
    slow = ("transformers", "lm_eval", "scipy", "kinship_daemon.config", "mergekit", "sqlite_utils")
    code = (
        "import sys; import kinship_daemon.cli.merge; "
        f"print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"parameters": {"wieght": 1}}, "no 'wieght'; did you mean 'weight'"),
        ({"parameters": {"weight": "much"}}, "weight: expected a number"),
        ({"parameters": {}}, "needs the parameter 'weight'"),
        ({"merge_method": "nuslerp", "models": [{"model": "org/a"}]}, "takes 2 parents, not 1"),
        ({"dtype": "int4"}, "dtype 'int4'"),
    ],
)
def test_what_the_recipe_says_wrong_is_told_before_any_model_is_looked_for(merge, out, wrong, said):
    made = recipe("linear", ["org/a", "org/b"], "org/base", weight=1) | wrong
    result = merge(made, "--hub", "/nowhere")
    assert result.code == 2
    assert said in result.err
    assert len(result.err.splitlines()) == 1
    assert not out.exists()


def test_shapes_are_compared_before_any_weight_is_read(
    merge, out, tiny_base, tiny_finetunes, tmp_path
):
    other = tiny.base(tmp_path / "other", hidden=16)
    shutil.copy(tiny_base / "config.json", other)
    for made in (
        recipe("linear", [tiny_finetunes[0], other], weight=1),
        recipe("slerp", [tiny_finetunes[0], other], other, t=0.5),
        recipe("ties", [tiny_finetunes[0], other], tiny_base, weight=1),
    ):
        result = merge(made)
        assert result.code == 3
        assert "do not fit" in result.err
        assert not out.exists()


def stack(*parts):
    sources = [
        {"sources": [{"model": str(folder), "layer_range": layers}]} for folder, layers in parts
    ]
    return {"merge_method": "passthrough", "slices": sources, "dtype": "bfloat16"}


def test_layers_are_stacked_by_mergekit(merge, out, tiny_finetunes, tmp_path):
    pytest.importorskip("mergekit")
    a, b, _ = tiny_finetunes
    strange = shutil.copytree(a, tmp_path / "strange")
    tiny.config(strange, auto_map={"AutoModelForCausalLM": "code.Model"})
    (strange / "code.py").write_text("raise SystemExit('remote code was run')")
    result = merge(stack((strange, [0, 2]), (b, [1, 2])))
    assert result.code == 0, result.err
    assert "mergekit makes it" in result.err
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert model["model.embed_tokens.weight"].dtype == torch.bfloat16
    for layer, folder, original in ((0, a, 0), (1, a, 1), (2, b, 1)):
        name = "model.layers.{}.self_attn.q_proj.weight"
        assert torch.equal(model[name.format(layer)], tiny.tensors(folder)[name.format(original)])
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert len(AutoTokenizer.from_pretrained(out)) == tiny.VOCABULARY
    assert left(tmp_path) == ["out", "recipe.yml", "strange"]
    assert not [name for name in left(out) if name.startswith(".")]
    listed = {line.split()[1] for line in result.out.splitlines()[1:]}
    assert listed == {*left(out)}


def test_a_method_of_mergekits_alone_is_run_by_it_with_models_from_our_hub(
    merge, out, tiny_hub, tiny_base, tiny_finetunes, tmp_path
):
    pytest.importorskip("mergekit")
    made = recipe("sce", ["org/a", "org/b"], "org/base", select_topk=0.5) | {"dtype": "float32"}
    result = merge(made, "--hub", tiny_hub, "--shard-gb", "0.00004")
    assert result.code == 0, result.err
    assert "org/a" in result.out
    same = recipe("sce", tiny_finetunes[:2], tiny_base, select_topk=0.5) | {"dtype": "float32"}
    theirs = tiny.tensors(mergekit_oracle.merge(yaml.safe_dump(same), tmp_path / "theirs"))
    ours = tiny.tensors(out)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (out / "model.safetensors.index.json").exists()


def test_slices_of_part_of_a_model_are_told_apart_when_it_is_opened(merge, out, tiny_finetunes):
    pytest.importorskip("mergekit")
    sources = [{"model": str(folder), "layer_range": [0, 1]} for folder in tiny_finetunes[:2]]
    made = {
        "merge_method": "linear",
        "slices": [{"sources": sources}],
        "parameters": {"weight": 1},
        "dtype": "bfloat16",
    }
    result = merge(made)
    assert result.code == 0, result.err
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (recipe("passthroughh", ["org/a"]), "mergekit: no merge method 'passthroughh'"),
        (recipe("sce", ["org/a"]) | {"chat_template": 3}, "mergekit: chat_template"),
    ],
)
def test_what_mergekit_would_not_take_is_told_before_any_model_is_looked_for(
    merge, out, made, said
):
    pytest.importorskip("mergekit")
    result = merge(made, "--hub", "/nowhere")
    assert result.code == 2
    assert said in result.err.splitlines()[-1]
    assert not out.exists()


def test_what_fails_in_mergekit_is_one_line_and_leaves_nothing(
    merge, out, tiny_finetunes, tmp_path
):
    pytest.importorskip("mergekit")
    a, b, _ = tiny_finetunes
    result = merge(stack((a, [0, 2]), (b, [1, 2])) | {"merge_method": "linear"})
    assert result.code == 3
    said = result.err.splitlines()[-1]
    assert said.startswith("kinship-daemon: mergekit: Missing required parameter weight")
    assert str(a) in said
    assert "Traceback" not in result.err
    assert left(tmp_path) == ["recipe.yml"]


def test_mergekit_is_shown_no_pickles(out, tiny_finetunes, tmp_path):
    pickled = shutil.copytree(tiny_finetunes[0], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    text = yaml.safe_dump(stack((tiny_finetunes[0], [0, 2]), (pickled, [1, 2])))
    folders = {str(folder): folder for folder in (tiny_finetunes[0], pickled)}
    with pytest.raises(ModelError, match="only pickle weights"):
        mergekit.run(text, folders, out, device="cpu", shard_bytes=1_000_000)
    assert left(tmp_path) == ["pickled"]


@pytest.mark.parametrize("wrong", [{"merge_method": "sce"}, {"chat_template": "auto"}])
def test_without_mergekit_the_extra_is_named(merge, out, monkeypatch, wrong):
    monkeypatch.setitem(sys.modules, "mergekit", None)  # cannot be imported
    result = merge(recipe("linear", ["org/a"], weight=1) | wrong, "--hub", "/nowhere")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "pip install 'kinship-daemon[mergekit]'" in line
    if "merge_method" in wrong:
        assert "linear" in line
        assert "slerp" in line
    assert not out.exists()


def test_a_merge_of_merges_is_made_step_by_step(merge, out, tiny_base, tiny_finetunes, tmp_path):
    a, b, c = tiny_finetunes
    child = recipe("task_arithmetic", [a, b], tiny_base, weight=0.5) | {"dtype": "float32"}
    last = recipe("linear", ["child", c], weight=1) | {"dtype": "float32"}
    result = merge(f"{yaml.safe_dump(child | {'name': 'child'})}---\n{yaml.safe_dump(last)}")
    assert result.code == 0, result.err
    assert left(tmp_path) == ["out", "recipe.yml"]
    first, second, third, made = (tiny.tensors(folder) for folder in (a, b, c, out))
    for name, tensor in made.items():
        wanted = (first[name].float() + second[name].float()) / 4 + third[name].float() / 2
        assert torch.allclose(tensor, wanted, rtol=1e-6, atol=1e-7)
    listed = {line.split()[1] for line in result.out.splitlines()[1:]}
    assert listed == {*left(out)}
    AutoModelForCausalLM.from_pretrained(out)
