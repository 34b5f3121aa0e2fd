"""`kinship-daemon kinship --sample`: what it prints, what it reads, what it refuses."""

import csv
import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import command
import tiny
import varied_models
from kinship_daemon import demo
from kinship_daemon.sampling import in_folder
from kinship_daemon.weights.sample.tokens import UnknownTokens, aligned_rows
from test_adapter import adapter
from test_vocabulary import grown, permuted


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: command.call(("kinship", *arguments), monkeypatch, capfd)


@pytest.fixture
def answer(call):
    def found(*arguments):
        result = call(*arguments, "--format", "json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    return found


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    return varied_models.family(tmp_path_factory.mktemp("wild") / "models")


@pytest.mark.parametrize("metric", ["pcc", "cosine", "euclidean"])
def test_intervals_of_folders_hold_the_exact_value(metric, wild, answer):
    base, leaves = wild
    models = (leaves["dense"], leaves["sparse"], leaves["drift"], "--base", base)
    exact = answer(*models, "--metric", metric)
    found = answer(*models, "--metric", metric, "--sample", "0.002")
    held = []
    for i in range(3):
        for j in range(3):
            value, truth = found["matrix"][i][j], exact["matrix"][i][j]
            low, high = found["low"][i][j], found["high"][i][j]
            assert low <= value <= high
            # Three standard errors: this is one draw.
            assert abs(value - truth) <= 3 * found["error"][i][j] + 1e-6
            held.append(low - 1e-6 <= truth <= high + 1e-6)
    assert sum(held) >= 7
    assert found["parameters"] == exact["parameters"]
    assert found["bytes_read"] < 0.2 * found["bytes_of_models"]
    assert found["mean"] == pytest.approx(
        sum(found["matrix"][i][j] for i, j in ((1, 0), (2, 0), (2, 1))) / 3
    )


def test_the_demos_models_are_small_enough_to_be_known_exactly(answer):
    models = ("demo/add", "demo/max", "demo/sort", "--base", "demo")
    found, exact = answer(*models, "--sample", "0.002"), answer(*models)
    for key in ("matrix", "low", "high"):
        for row, truth in zip(found[key], exact["matrix"], strict=True):
            assert row == pytest.approx(truth, abs=1e-6)


def test_of_hub_ids_nothing_is_fetched_and_the_base_is_read_once(tiny_hub, answer, tmp_path):
    models = ("org/a", "org/b", "--base", "org/base", "--hub", tiny_hub, "--sample", "0.5")
    first, second = answer(*models), answer(*models)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.parent.name for path in kept] == ["samples"]
    assert kept[0].name.startswith("org--base@")
    base = in_folder(tiny_hub / "org/base").source.nbytes
    assert second["bytes_read"] == first["bytes_read"] - base
    assert second["matrix"] == first["matrix"]
    kept[0].write_bytes(b"damaged")
    assert answer(*models)["matrix"] == first["matrix"]
    assert answer(*models)["bytes_read"] == second["bytes_read"]


def test_a_revision_can_be_named(tiny_hub, call):
    models = ("org/a@0123456789", "org/b", "--base", "org/base", "--hub", tiny_hub)
    result = call(*models, "--sample", "0.5")
    assert result.code == 2
    assert "keeps no 0123456789" in result.err


def test_the_table_has_a_line_for_each_pair_and_says_what_was_read(wild, call):
    base, leaves = wild
    models = [leaves[name] for name in ("dense", "sparse", "drift")]
    lines = call(*models, "--base", base, "--sample", "0.002").out.splitlines()
    assert lines[0] == "pcc of deltas from base, estimated, with 95 % intervals"
    pairs = [line.split() for line in lines[1:4]]
    assert [(a, b) for a, _, b, *_ in pairs] == [
        ("dense", "sparse"),
        ("dense", "drift"),
        ("sparse", "drift"),
    ]
    for *_, value, low, to, high in pairs:
        assert to == "to"
        assert float(low) < float(value) < float(high)
    assert lines[4].startswith("mean over pairs")
    assert "read" in lines[5]
    assert "% of the models" in lines[5]


def test_csv_has_a_line_for_each_pair(call):
    models = ("demo/add", "demo/max", "demo/sort", "--base", "demo", "--sample", "0.1")
    header, *rows = csv.reader(io.StringIO(call(*models, "--format", "csv").out))
    assert header == ["a", "b", "kinship", "low", "high", "error", "bytes_read"]
    assert [row[:2] for row in rows] == [
        ["demo/add", "demo/max"],
        ["demo/add", "demo/sort"],
        ["demo/max", "demo/sort"],
    ]
    assert all(float(row[3]) <= float(row[2]) <= float(row[4]) for row in rows)


def test_a_plot_is_drawn_of_estimates_too(call, tmp_path):
    models = ("demo/add", "demo/max", "--base", "demo", "--sample", "0.1")
    assert call(*models, "--plot", tmp_path / "kin.svg").code == 0
    assert "Pearson correlation" in (tmp_path / "kin.svg").read_text()


def test_an_adapter_is_a_model_like_others(tmp_path, tiny_base, tiny_finetunes, answer):
    adapter(tiny_base, tmp_path / "lora")
    models = (tmp_path / "lora", tiny_finetunes[0], "--base", tiny_base)
    found, exact = answer(*models, "--sample", "0.5"), answer(*models)
    assert found["matrix"][0][1] == pytest.approx(exact["matrix"][0][1], abs=1e-5)


def test_an_adapter_needs_its_base_here(tmp_path, tiny_base, tiny_hub, call):
    adapter(tiny_base, tmp_path / "lora")
    result = call(
        tmp_path / "lora", "org/a", "--base", "org/base", "--hub", tiny_hub, "--sample", 1
    )
    assert result.code == 2
    assert "--base FOLDER" in result.err


@pytest.mark.parametrize("make", ["permuted", "grown"])
def test_other_tokens_are_aligned(make, tmp_path, tiny_base, tiny_finetunes, answer):
    if make == "permuted":
        other = permuted(tiny_base, tmp_path / "other", 3)
    else:
        other = grown(tiny_base, tmp_path / "other", 1, ["<|a|>", "<|b|>"])
    models = (other, tiny_finetunes[0], "--base", tiny_base)
    found, exact = answer(*models, "--sample", "0.5"), answer(*models)
    assert found["without_vocabulary"] == {}
    assert found["matrix"][0][1] == pytest.approx(exact["matrix"][0][1], abs=1e-6)


def test_a_tokenizer_too_large_to_read_leaves_the_vocabulary_out(
    tmp_path, tiny_base, tiny_finetunes, call, answer
):
    other = permuted(tiny_base, tmp_path / "other", 3)
    with (other / "tokenizer.json").open("a") as file:
        file.write(" " * 100_000)
    models = (other, tiny_finetunes[0], "--base", tiny_base, "--sample", "0.5")
    (reason,) = answer(*models)["without_vocabulary"].values()
    assert "0.1 MB are too much to read beside the sample" in reason
    shown = call(*models).out
    assert f"without embeddings and head: {reason}" in shown
    found = answer(*models)["matrix"][0][1]
    base, one, two = (tiny.tensors(f) for f in (tiny_base, other, tiny_finetunes[0]))
    names = [n for n in sorted(base) if "embed" not in n and "lm_head" not in n]
    deltas = [torch.cat([(w[n].double() - base[n]).flatten() for n in names]) for w in (one, two)]
    truth = float(torch.corrcoef(torch.stack(deltas))[0, 1])
    assert found == pytest.approx(truth, abs=1e-6)


def test_a_chat_template_is_no_other_vocabulary(tmp_path, tiny_base, tiny_finetunes):
    other = shutil.copytree(tiny_finetunes[0], tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] = "x" * 1000
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    base, own = in_folder(tiny_base), in_folder(other)
    before = own.source.ranges.bytes_read
    assert aligned_rows(base, own, 0) is None
    read = own.source.ranges.bytes_read - before
    assert read == (other / "tokenizer_config.json").stat().st_size


def test_settings_of_any_length_are_not_read(tmp_path, tiny_base, tiny_finetunes):
    other = shutil.copytree(tiny_finetunes[0], tmp_path / "other")
    with (other / "tokenizer_config.json").open("a") as file:
        file.write(" " * 200_000)
    own = in_folder(other)
    before = own.source.ranges.bytes_read
    with pytest.raises(UnknownTokens, match=r"0\.2 MB are too much to read"):
        aligned_rows(in_folder(tiny_base), own, 1000)
    assert own.source.ranges.bytes_read == before


def test_padding_alone_takes_no_tokenizer(tmp_path, tiny_base):
    padded = grown(tiny_base, tmp_path / "padded", 1, rows=64)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_base / file, padded / file)
    rows = aligned_rows(in_folder(tiny_base), in_folder(padded), 0)
    assert rows.tolist() == list(range(tiny.VOCABULARY))


def test_other_rows_without_a_tokenizer_cannot_be_told(tmp_path, tiny_base):
    bare = grown(tiny_base, tmp_path / "bare", 1, ["<|a|>"])
    (bare / "tokenizer.json").unlink()
    with pytest.raises(UnknownTokens, match=r"52 rows, the base's 51, and .*bare has no tokenizer"):
        aligned_rows(in_folder(tiny_base), in_folder(bare), 10**9)


def spoilt(folder, how):
    if how == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "quantised":
        tiny.edit(folder, {"model.norm.weight": torch.zeros(32, dtype=torch.int8)})
    elif how == "NaN":
        tiny.edit(folder, {"model.norm.weight": torch.full((32,), float("nan")).bfloat16()})
    elif how == "truncated":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-1])
    elif how == "config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pickle", "only pickle weights (pytorch_model.bin)"),
        ("quantised", "its weights are quantised (model.norm.weight is I8)"),
        ("NaN", "org/a: tensor model.norm.weight holds NaN"),
        ("truncated", "truncated"),
        ("config", "has no config.json"),
    ],
)
def test_unusable_repos_are_refused_in_one_line(how, said, tiny_hub, call):
    spoilt(tiny_hub / "org/a", how)
    models = ("org/a", "org/c", "--base", "org/base", "--hub", tiny_hub, "--sample", "0.5")
    result = call(*models)
    assert result.code in (2, 3)
    assert said in result.err
    assert "org/a" in result.err
    lines = [line for line in result.err.splitlines() if "progress" not in line]
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo/add", "demo/max", "--sample", "0.1", "--by", "layer"), "--by layer reads whole"),
        (("demo/add", "demo/add", "--sample", "0.1"), "named twice"),
        (("demo/add", "--sample", "0.1"), "two models or more"),
        (("demo/add", "demo/max", "--sample", "0"), "--sample"),
        (("demo/add", "demo/max", "--sample", "1.5"), "--sample"),
        (("demo/add", "demo/nobody", "--sample", "0.1"), "no repo demo/nobody"),
        (("demo/add", "./nobody", "--sample", "0.1"), "no folder ./nobody"),
        (("demo/add", "~nobody-of-that-name/x", "--sample", "0.1"), "neither a path nor a name"),
        (("demo/add", "a" * 300 + "/x", "--sample", "0.1"), "neither a path nor a name"),
        (("demo/add", "demo/max", "--sample", "0.1", "--hub", "http://[x"), "is not a hub"),
        (
            ("demo/add", "demo/max", "--sample", "0.1", "--hub", "~nobody-of-that/x"),
            "neither a path",
        ),
    ],
)
def test_wrong_usage_is_refused_in_one_line(arguments, said, call):
    result = call(*arguments, "--base", "demo")
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1


def test_nothing_slow_is_imported(tmp_path):
    from subprocess import run
    from sys import executable

    from test_kinship_command import _LOADED

    models = [str(demo.HUB / "demo" / name) for name in ("add", "max")]
    arguments = ["kinship", *models, "--base", str(demo.HUB / demo.BASE), "--sample", "0.1"]
    ran = run(
        [executable, "-c", _LOADED, *arguments],
        env=command.environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = ran.stderr.splitlines()[-1]
    slow = "transformers lm_eval scipy matplotlib pydantic huggingface_hub apscheduler tokenizers"
    assert [name for name in slow.split() if f"'{name}'" in loaded] == []


@pytest.fixture(scope="module")
def origins(tmp_path_factory):
    """Three of the demo's models, the mean of two of them, and one that was never the base."""
    folder = tmp_path_factory.mktemp("origins")
    names = ("add", "sort", "max")
    for name in (*names, "mix", "alien"):
        shutil.copytree(demo.HUB / "demo" / (name if name in names else "add"), folder / name)
    add, sort = (load_file(folder / name / "model.safetensors") for name in ("add", "sort"))
    mix = {n: ((add[n].float() + sort[n].float()) / 2).to(add[n].dtype) for n in add}
    chance = torch.Generator().manual_seed(0)
    alien = {
        n: x if x.ndim < 2 else (torch.randn(x.shape, generator=chance) * x.float().std()).to(x)
        for n, x in add.items()
    }
    for name, tensors in {"mix": mix, "alien": alien}.items():
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    return [folder / name for name in (*names, "mix", "alien")]


def test_ancestry_says_who_is_a_merge_of_whom_and_who_is_no_descendant(origins, call, answer):
    asked = (*origins, "--base", demo.HUB / demo.BASE, "--sample", "0.1", "--ancestry")
    found = {each["model"].rpartition("/")[2]: each for each in answer(*asked)["ancestry"]}
    assert [name for name, each in found.items() if each["stranger"]] == ["alien"]
    assert [name for name, each in found.items() if each["merge"]] == ["mix"]
    parts = {p["model"].rpartition("/")[2]: p["coefficient"] for p in found["mix"]["parts"]}
    assert parts == pytest.approx({"add": 0.5, "sort": 0.5}, abs=0.005)
    lines = call(*asked).out.splitlines()
    (mix,) = (line for line in lines if line.startswith("mix: "))
    assert "a merge: 0.500 ± " in mix
    (alien,) = (line for line in lines if line.startswith("alien: "))
    assert "no descendant" in alien
    assert "not made of the others" in alien
    assert not any("ancestry" in key for key in answer(*asked[:-1]))


@pytest.mark.parametrize("given", [(), ("--sample", "0.1", "--format", "csv")])
def test_ancestry_is_told_from_a_sample_and_not_as_csv(given, call):
    result = call("demo/add", "demo/max", "--base", "demo", "--ancestry", *given)
    assert result.code == 2
    assert "--sample 0.002" in result.err
