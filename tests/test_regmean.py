"""RegMean: as its definition in float64 says, with texts that the user names."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import architectures
import command
import tiny
from kinship_daemon.config import Config
from kinship_daemon.errors import KinshipError, ModelError, UsageError
from kinship_daemon.tuning import missing_setting
from kinship_daemon.weights import activations
from kinship_daemon.weights.assembly import leaf_assembly
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.layer_inputs import LayerInputs
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Recipe, check
from test_adapter import adapter
from test_matrix_methods import noise, off_by

TEXTS = {
    "a": ["some text of the first task", "two: more of it", "", "3"],
    "b": ["0123456789 0123456789", "9 + 1 = 10", "8 - 7 = 1 and so on"],
}


def grams(folder, texts, dtype=torch.float32):
    """The mean of x x^T over each linear layer's inputs, in float64, by a module's name."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    words = AutoTokenizer.from_pretrained(folder)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_hook(
                lambda _, given, __, name=name: seen.setdefault(name, []).append(given[0][0])
            )
    with torch.no_grad():
        for text in filter(None, texts):
            model(words(text, return_tensors="pt")["input_ids"])
    found = {name: torch.cat(inputs).double().numpy() for name, inputs in seen.items()}
    return {name: x.T @ x / len(x) for name, x in found.items()}


def definition(deltas, grams, kept):
    size = len(grams[0])
    shift = 1e-6 * sum(map(np.trace, grams)) / (len(grams) * size)
    grams = [kept * g + np.diag((1 - kept) * np.diag(g) + shift) for g in grams]
    return sum(d @ g for d, g in zip(deltas, grams, strict=True)) @ np.linalg.pinv(sum(grams))


def family(scratch, **settings):
    base = tiny.base(scratch / "base", dtype=torch.float32, **settings)
    return base, [tiny.finetune(base, scratch / name, seed) for seed, name in enumerate("ab", 1)]


def write_texts(scratch):
    for name, lines in TEXTS.items():
        (scratch / f"{name}.txt").write_text("\n".join(lines))


def merge(scratch, base, models, texts, monkeypatch, capfd, **parameters):
    recipe = {
        "merge_method": "regmean",
        "base_model": str(base),
        "models": [{"model": str(model)} for model in models],
        "parameters": parameters,
    }
    (scratch / "recipe.yml").write_text(yaml.safe_dump(recipe))
    named = [word for text in texts for word in ("--texts", text)]
    arguments = ["merge", scratch / "recipe.yml", scratch / "out", "--device", "cpu", *named]
    return command.call(arguments, monkeypatch, capfd)


@pytest.mark.parametrize("kept", [0.9, 0.4])
def test_by_hand_it_is_its_definition(tmp_path, monkeypatch, capfd, kept):
    base, models = family(tmp_path)
    write_texts(tmp_path)
    texts = [f"{models[0]}={tmp_path / 'a.txt'}", f"{tmp_path / 'b.txt'}"]
    done = merge(tmp_path, base, models, texts, monkeypatch, capfd, off_diagonal=kept)
    assert done.code == 0, done.err
    own, made = tiny.tensors(base), tiny.tensors(tmp_path / "out")
    weights = [tiny.tensors(model) for model in models]
    of = [grams(model, TEXTS[name]) for model, name in zip(models, "ab", strict=True)]
    solved = 0
    for key, tensor in made.items():
        deltas = [(w[key].double() - own[key].double()).numpy() for w in weights]
        module = key.removesuffix(".weight")
        if module in of[0]:
            exact = definition(deltas, [each[module] for each in of], kept)
            assert off_by(exact, sum(deltas) / 2) > 0.1, "else the texts would not matter"
            solved += 1
        else:
            exact = sum(deltas) / 2
        assert off_by(tensor.double() - own[key].double(), exact) < 2e-4, key
    assert solved == 2 * 7
    assert not list(tmp_path.glob(".inputs-*"))


def test_an_adapter_reads_its_texts_as_the_model_that_it_makes(tmp_path, monkeypatch, capfd):
    base, (first, _) = family(tmp_path)
    write_texts(tmp_path)
    lora = tmp_path / "lora"
    merged = adapter(base, lora, seed=3, merge=True)
    full = shutil.copytree(base, tmp_path / "full")
    tiny.edit(full, {key: tensor for key, tensor in merged.items() if "_proj" in key})
    models = [first, f"{base}+{lora}"]
    texts = [f"{first}={tmp_path / 'a.txt'}", f"{models[1]}={tmp_path / 'b.txt'}"]
    done = merge(tmp_path, base, models, texts, monkeypatch, capfd)
    assert done.code == 0, done.err
    key = "model.layers.1.self_attn.q_proj"
    own, *weights = (tiny.tensors(each)[f"{key}.weight"].double() for each in (base, first, full))
    of = [grams(model, TEXTS[name])[key] for model, name in ((first, "a"), (full, "b"))]
    exact = definition([(w - own).numpy() for w in weights], of, 0.9)
    assert off_by(tiny.tensors(tmp_path / "out")[f"{key}.weight"].double() - own, exact) < 2e-4


def inputs(model, texts, scratch):
    folder = scratch / "inputs"
    folder.mkdir()
    names = tuple(Checkpoint.open(model).tensors)
    read = activations.reader(leaf_assembly(model, "x"), texts, "cpu")
    activations.measure_inputs(read.model, read.tokens, names, folder)
    return LayerInputs((folder,)), names


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
def test_every_linear_layer_of_every_architecture_is_measured(architecture, tmp_path):
    model = architectures.base(architecture, tmp_path / "model", dtype=torch.float32)
    found, names = inputs(model, TEXTS["a"][:2], tmp_path)
    exact = grams(model, TEXTS["a"][:2])
    assert exact
    for name in names:
        known = found.of(name)
        module = name.removesuffix(".weight")
        assert (known is not None) == (module in exact), name
        if known is not None:
            assert off_by(known[0], exact[module]) < 1e-5, name


def test_a_model_that_makes_nan_of_a_text_is_told(tmp_path):
    _, (model, _) = family(tmp_path)
    key = "model.layers.0.mlp.up_proj.weight"
    tensor = tiny.tensors(model)[key].clone()
    tensor[0, 0] = torch.inf
    tiny.edit(model, {key: tensor})
    with pytest.raises(ModelError, match=r"the layer of .* is given NaN or infinity"):
        inputs(model, ["text"], tmp_path)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activations.os, "posix_fallocate", full)
    _, (model, _) = family(tmp_path)
    with pytest.raises(KinshipError, match="No space left on device"):
        inputs(model, ["text"], tmp_path)


def merged(deltas, given, **changes):
    settings = {"off_diagonal": 0.9, "ridge": 1e-6, "lambda": 1.0} | changes
    return method("regmean")([delta.clone() for delta in deltas], settings, given)


def gram(seed, size, texts=200):
    # A few inputs are much larger than the others, as in language models.
    x = noise(seed, texts, size, scale=1.0) * (1 + 30 * noise(0, size, scale=0.3).abs().pow(4))
    return x.T @ x / texts


@pytest.mark.parametrize(("rows", "columns"), [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_matrix_is_its_definition(rows, columns, count):
    deltas = [noise(i, rows, columns) for i in range(count)]
    given = [gram(10 + i, columns) for i in range(count)]
    exact = definition(
        [d.double().numpy() for d in deltas], [g.double().numpy() for g in given], 0.9
    )
    found = merged(deltas, given)
    assert off_by(found, exact) < 2e-5
    assert off_by(merged(deltas[::-1], given[::-1]), found) < 2e-5
    assert off_by(merged(deltas, given, **{"lambda": 0.5}), found / 2) < 1e-6
    alike = merged([deltas[0]] * count, given)
    assert off_by(alike, deltas[0]) < 1e-5


def test_inputs_that_no_text_has_are_averaged():
    deltas = [noise(i, 9, 6) for i in range(2)]
    given = [gram(i, 6) for i in range(2)]
    for each in given:
        each[2], each[:, 2] = 0, 0
    assert off_by(merged(deltas, given)[:, 2], (deltas[0] + deltas[1])[:, 2] / 2) < 1e-5
    zeros = [torch.zeros(6, 6)] * 2
    assert off_by(merged(deltas, zeros), (deltas[0] + deltas[1]) / 2) < 1e-6
    assert (
        off_by(method("regmean")(deltas, {"lambda": 1.0}), (noise(0, 9, 6) + noise(1, 9, 6)) / 2)
        < 1e-6
    )


def test_it_is_refused_where_there_are_no_texts(tmp_path, monkeypatch, capfd):
    with pytest.raises(UsageError, match="regmean needs texts of each parent's task"):
        check(Recipe("regmean", ("a", "b"), {}), ())
    assert missing_setting(method("regmean")) == "texts"
    assert Config.model_validate({"base": "demo", "merge": {"method": "regmean"}}).merge.method
    base, models = family(tmp_path)
    write_texts(tmp_path)
    a = tmp_path / "a.txt"
    for texts, said in (
        ([], f"needs texts of {models[0]}'s task: --texts {models[0]}=FILE"),
        ([f"{models[0]}={a}"], f"needs texts of {models[1]}'s task"),
        ([f"c={a}", f"{a}"], "--texts: c is no parent; there are"),
        ([f"{a}", f"{a}"], "are both for all; say MODEL=FILE"),
        ([f"{tmp_path / 'none.txt'}"], "cannot read"),
    ):
        done = merge(tmp_path, base, models, texts, monkeypatch, capfd)
        assert done.code != 0
        assert said in " ".join(done.err.split()), done.err
    (tmp_path / "empty.txt").write_text("\n \n")
    done = merge(tmp_path, base, models, [f"{tmp_path / 'empty.txt'}"], monkeypatch, capfd)
    assert "has no text" in done.err
    recipe = yaml.safe_load((tmp_path / "recipe.yml").read_text())
    (tmp_path / "other.yml").write_text(yaml.safe_dump(recipe | {"merge_method": "wudi"}))
    arguments = ["merge", tmp_path / "other.yml", tmp_path / "out", "--texts", a]
    assert (
        "no merge of this recipe looks at texts" in command.call(arguments, monkeypatch, capfd).err
    )
