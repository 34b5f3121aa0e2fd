"""`kinship-daemon kinship`: its views and pictures, and what it does without."""

import csv
import io
import json
import shutil
import subprocess
import sys

import pytest
import torch

import command
import reference
import tiny
from test_adapter import adapter


@pytest.fixture
def call(monkeypatch, capfd):
    return lambda *arguments: command.call(arguments, monkeypatch, capfd)


@pytest.fixture
def of_three(call, tiny_base, tiny_finetunes):
    def kinship(*arguments):
        result = call("kinship", *tiny_finetunes, "--base", tiny_base, *arguments)
        assert result.code == 0, result.err
        return result.out

    return kinship


@pytest.fixture
def adapters(tiny_base, tmp_path):
    """Two of the same base, one of which says that it was trained on another model."""
    for name, said in (("one", "org/base"), ("two", "other/model")):
        folder = tmp_path / name
        adapter(tiny_base, folder, seed=len(said), target_modules=["q_proj"])
        path = folder / "adapter_config.json"
        saved = json.loads(path.read_text()) | {"base_model_name_or_path": said}
        path.write_text(json.dumps(saved))
    return tmp_path / "one", tmp_path / "two"


def cached(tiny_base, tmp_path):
    """A base as a snapshot of the Hub's cache, whose folder tells its id."""
    place = tmp_path / "models--org--base" / "snapshots" / ("a" * 40)
    return shutil.copytree(tiny_base, place)


def test_an_adapter_of_another_model_of_the_hub_is_refused(call, adapters, tiny_base, tmp_path):
    base = cached(tiny_base, tmp_path)
    for sample in ((), ("--sample", "0.5")):
        told = call("kinship", *adapters, "--base", base, *sample)
        assert told.code == 3
        assert told.err.splitlines()[-1] == (
            f"kinship-daemon: {adapters[1]}: its adapter_config.json says that it was trained on "
            "other/model, not on org/base"
        )


def test_where_a_folder_does_not_tell_which_model_it_holds_one_is_warned(
    call, adapters, tiny_base, tmp_path
):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    told = call("kinship", *adapters, "--base", base)
    assert told.code == 0
    (line,) = (line for line in told.err.splitlines() if line.startswith("warning"))
    assert line == (
        f"warning: {adapters[1]}: it says that it was trained on other/model; "
        f"is that what {base} holds?"
    )


@pytest.mark.parametrize("sample", [(), ("--sample", "0.5")])
def test_another_rope_is_refused_unless_it_is_allowed(
    call, tiny_base, tiny_finetunes, tmp_path, sample
):
    other = shutil.copytree(tiny_finetunes[0], tmp_path / "other")
    tiny.config(other, rope_parameters={"rope_theta": 1e6, "rope_type": "default"})
    asked = ["kinship", other, tiny_finetunes[1], "--base", tiny_base, *sample]
    told = call(*asked)
    assert told.code == 3
    assert "rope_theta is 1000000.0, the base's is" in told.err
    told = call(*asked, "--allow-other-calculation")
    assert told.code == 0
    if not sample:
        assert "the base's is taken of: rope_theta 1000000.0 (base" in told.err


def exact(metric, folders, base, names):
    """Kinship of the first two folders on some tensors."""
    part = [{n: t for n, t in tiny.tensors(f).items() if n in names} for f in (*folders, base)]
    return reference.kinship(metric, part[0], part[1], part[-1])


@pytest.mark.parametrize("metric", ["pcc", "cosine", "euclidean"])
def test_json_by_layer(metric, of_three, tiny_base, tiny_finetunes):
    found = json.loads(of_three("--by", "layer", "--format", "json", "--metric", metric))
    assert [part["layer"] for part in found["layers"]] == [0, 1, None]
    assert sum(part["parameters"] for part in found["layers"]) == found["parameters"]
    names = tiny.tensors(tiny_base)
    for part in found["layers"]:
        own = [n for n in names if f"layers.{part['layer']}." in n]
        own = own or [n for n in names if "layers." not in n]
        truth = exact(metric, tiny_finetunes, tiny_base, own)
        values = torch.tensor(part["matrix"], dtype=torch.float64)
        assert float(values[0, 1]) == pytest.approx(truth, abs=5e-6, rel=5e-6)
        mean = float(values[[0, 0, 1], [1, 2, 2]].mean())
        assert part["mean"] == pytest.approx(mean, rel=1e-12)


def test_json_by_kind(of_three, tiny_base, tiny_finetunes):
    found = json.loads(of_three("--by", "kind", "--format", "json"))
    kinds = {part["kind"]: part for part in found["kinds"]}
    assert list(kinds) == ["attention", "mlp", "embeddings", "norms"]
    assert sum(part["parameters"] for part in found["kinds"]) == found["parameters"]
    own = [n for n in tiny.tensors(tiny_base) if ".mlp." in n]
    truth = exact("pcc", tiny_finetunes, tiny_base, own)
    assert kinds["mlp"]["matrix"][0][1] == pytest.approx(truth, abs=5e-6)
    pairs = [found["matrix"][i][j] for i in range(3) for j in range(i)]
    assert found["mean"] == pytest.approx(sum(pairs) / 3, rel=1e-12)


def test_csv_by_layer_has_a_line_for_each_pair(of_three):
    header, *rows = csv.reader(io.StringIO(of_three("--by", "layer", "--format", "csv")))
    assert header == ["layer", "parameters", "a", "b", "kinship"]
    assert [row[0] for row in rows] == ["0"] * 3 + ["1"] * 3 + ["outside"] * 3
    assert all(-1 <= float(row[4]) <= 1 for row in rows)


def test_folders_are_shown_by_their_last_part(of_three, tiny_base):
    shown = of_three("--by", "kind")
    assert str(tiny_base.parent) not in shown
    assert shown.splitlines()[0] == "pcc of deltas from base"
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["a", "b", "c"]
    assert [line.split()[-1] for line in shown.splitlines()[6:10]] == [
        "attention",
        "mlp",
        "embeddings",
        "norms",
    ]


def test_folders_of_the_same_last_part_are_shown_in_full(call, tmp_path, tiny_base, tiny_finetunes):
    other = tiny.finetune(tiny_base, tmp_path / "x" / "a", seed=9)
    shown = call("kinship", tiny_finetunes[0], other, "--base", tiny_base).out.splitlines()
    assert [line.split()[0] for line in shown[1:3]] == [str(tiny_finetunes[0]), str(other)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Pearson correlation of weight changes"),
        (("--by", "layer"), "a \N{EN DASH} b"),
        (("--by", "layer", "--metric", "euclidean"), "Euclidean distance"),
    ],
)
def test_a_plot_is_drawn_and_the_table_still_printed(arguments, said, of_three, tmp_path):
    picture = tmp_path / "kin.svg"
    assert "parameters" in of_three("--plot", picture, *arguments)
    first = picture.read_bytes()
    assert said in first.decode()
    assert "deltas from base" in first.decode()
    of_three("--plot", picture, *arguments)
    assert picture.read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["kin.svg"]


def test_a_png_can_be_asked_for(of_three, tmp_path):
    of_three("--plot", tmp_path / "kin.png")
    assert (tmp_path / "kin.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("plot", "said"), [("kin.pdf", ".png or .svg"), ("kin", ".png or .svg"), ("no/k.png", "folder")]
)
def test_a_plot_that_cannot_be_is_refused_before_anything_is_read(plot, said, call, tmp_path):
    result = call("kinship", "./no", "./nowhere", "--base", "./none", "--plot", tmp_path / plot)
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1


_LOADED = """
import sys
from kinship_daemon.cli import app
app(sys.argv[1:], standalone_mode=False)
print(sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def test_without_a_plot_nothing_slow_is_imported_but_torch(tiny_base, tiny_finetunes, tmp_path):
    arguments = ["kinship", *map(str, tiny_finetunes), "--base", str(tiny_base), "--by", "layer"]
    ran = subprocess.run(
        [sys.executable, "-c", _LOADED, *arguments],
        env=command.environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = ran.stderr.splitlines()[-1]
    assert "'torch'" in loaded
    slow = "transformers lm_eval scipy matplotlib pydantic huggingface_hub apscheduler tokenizers"
    assert [name for name in slow.split() if f"'{name}'" in loaded] == []
