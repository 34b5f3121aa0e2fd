"""Rubbish in: a clear line or a quarantined model, no traceback, no half a file, and it goes on."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import command
import tiny
import turns
import warm_workers
from kinship_daemon import config, startup
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.report import JsonReporter

CARD = {"base_model": "org/base", "base_model_relation": "finetune", "license": "apache-2.0"}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def opened(hub, home, base="org/base", **overrides):
    loaded = config.load(
        base=str(base),
        hub=str(hub),
        home=home,
        overrides=[f"{key}={value}" for key, value in overrides.items()],
    )
    return startup.opened(loaded, JsonReporter(open(os.devnull, "w")))  # noqa: PTH123


def polled(hub, home):
    """Every model's status and reason after one look at the hub and one read of the weights."""
    with opened(hub, home) as d:
        turns.poll(d)
        turns.take(d, "refetch", "ledger")
        return {m.id: (m.status, m.reason) for m in d.lineage.models(kind="finetune")}


def broken(hub: Path, name: str, source: Path) -> Path:
    """A copy of a good fine-tune, listed first, to be broken by the test."""
    return tiny.repo(hub, f"org/{name}", source, CARD)


def the_good_go_on(found):
    return all(found[name] == ("admitted", None) for name in ("org/a", "org/b", "org/c"))


def truncated(repo):
    file = repo / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def header_too_long(repo):
    file = repo / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])


def header_rubbish(repo):
    (repo / "model.safetensors").write_bytes(struct.pack("<Q", 10) + b"\xff" * 100)


def empty_file(repo):
    (repo / "model.safetensors").write_bytes(b"")


def nan(repo):
    tensors = load_file(repo / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, repo / "model.safetensors", {"format": "pt"})


def other_shapes(repo):
    tensors = load_file(repo / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(7)
    save_file(tensors, repo / "model.safetensors", {"format": "pt"})


def other_architecture(repo):
    settings = json.loads((repo / "config.json").read_text())
    (repo / "config.json").write_text(json.dumps(settings | {"architectures": ["GPT2LMHeadModel"]}))


def pickle_only(repo):
    (repo / "model.safetensors").rename(repo / "pytorch_model.bin")


def no_tokenizer(repo):
    for file in repo.glob("*token*"):
        file.unlink()


def no_config(repo):
    (repo / "config.json").unlink()


def card_rubbish(repo):
    (repo / "README.md").write_text("---\nbase_model: org/base\n  bad: [\n---\n")


def quantised(repo):
    settings = json.loads((repo / "config.json").read_text())
    quantisation = {"quantization_config": {"quant_method": "gptq"}}
    (repo / "config.json").write_text(json.dumps(settings | quantisation))


def a_twin(repo):
    shutil.copyfile(repo.parent / "a" / "model.safetensors", repo / "model.safetensors")


BREAK = {
    truncated: "model.safetensors",
    header_too_long: "model.safetensors",
    header_rubbish: "model.safetensors",
    empty_file: "model.safetensors",
    nan: "model.norm.weight",
    other_shapes: "model.norm.weight",
    other_architecture: "GPT2LMHeadModel",
    pickle_only: "only pickle weights",
    no_tokenizer: "no tokenizer",
    no_config: "no config.json",
    card_rubbish: "README.md",
    quantised: "quantization_config",
    a_twin: "the same weights as org/a",
}


@pytest.mark.parametrize("harm", BREAK, ids=lambda f: f.__name__)
def test_a_bad_finetune_is_set_aside_with_its_reason_and_the_others_go_on(
    harm, tiny_hub, tiny_base, home
):
    fresh = tiny.finetune(tiny_base, home.parent / "fresh", seed=9)
    harm(broken(tiny_hub, "zz", fresh))
    found = polled(tiny_hub, home)
    status, reason = found["org/zz"]
    assert status in {"refused", "quarantined"}
    assert BREAK[harm] in reason
    assert "\n" not in reason
    assert the_good_go_on(found)


def test_one_that_was_set_aside_is_not_asked_again(tiny_hub, tiny_base, home):
    nan(broken(tiny_hub, "zz", tiny.finetune(tiny_base, home.parent / "fresh", seed=9)))
    before = polled(tiny_hub, home)
    with opened(tiny_hub, home) as d:
        attempts = {job.key: job.attempts for job in d.lineage.jobs(kind="admit")}
    assert polled(tiny_hub, home) == before
    with opened(tiny_hub, home) as d:
        assert {job.key: job.attempts for job in d.lineage.jobs(kind="admit")} == attempts


def test_a_finetune_changed_on_disk_is_set_aside_and_its_new_weights_are_another_model(
    tiny_hub, home
):
    assert the_good_go_on(polled(tiny_hub, home))
    file = tiny_hub / "org" / "a" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    found = polled(tiny_hub, home)
    assert found["org/a"][0] == "quarantined"
    assert [v[0] for k, v in found.items() if k.startswith("org/a@")] == ["admitted"]


def test_an_unknown_base_names_the_nearest(monkeypatch, capfd):
    result = command.call(["run", "--base", "mistral-7"], monkeypatch, capfd)
    assert result.code == 2
    assert "mistral-7b" in result.err
    assert result.err.count("\n") == 1
    assert re.fullmatch(r"\S+ start: loading\n", result.out)


def test_a_run_tells_of_its_start_before_what_is_slow_is_imported():
    code = "import sys, kinship_daemon.cli.run; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_base_that_the_hub_does_not_have_is_named(tiny_hub, home):
    with pytest.raises(UsageError, match="org/nobody"), opened(tiny_hub, home, "org/nobody"):
        pass


def test_a_base_that_is_broken_is_named(tiny_hub, home):
    truncated(tiny_hub / "org" / "base")
    with pytest.raises(KinshipError, match=r"base.*model\.safetensors"), opened(tiny_hub, home):
        pass


def test_an_unreachable_hub_ends_a_first_run_with_one_line(home):
    arguments = ["run", "--base", "org/x", "--hub", "http://127.0.0.1:9", "--home", home]
    result = command.run(arguments, home.parent)
    assert result.code == 3
    assert "http://127.0.0.1:9" in result.err
    assert result.err.count("\n") == 1


def test_a_home_of_another_base_is_refused(tiny_hub, home, tiny_finetunes):
    polled(tiny_hub, home)
    with pytest.raises(UsageError, match="org/base"), opened(tiny_hub, home, "org/a"):
        pass


def test_a_home_whose_base_changed_is_refused(tiny_hub, home):
    polled(tiny_hub, home)
    nan(tiny_hub / "org" / "base")
    with pytest.raises(KinshipError, match="changed"), opened(tiny_hub, home):
        pass


def test_a_second_daemon_on_one_home_is_refused(tiny_hub, home):
    with (
        opened(tiny_hub, home),
        pytest.raises(KinshipError, match="held by another"),
        opened(tiny_hub, home),
    ):
        pass


def test_a_damaged_ledger_says_what_helps(tiny_hub, home):
    polled(tiny_hub, home)
    (home / "ledger.safetensors").write_bytes(b"rubbish")
    with pytest.raises(KinshipError, match="remove it"), opened(tiny_hub, home):
        pass


def test_a_ledger_that_was_removed_is_computed_again(tiny_hub, home):
    polled(tiny_hub, home)
    before = (home / "ledger.safetensors").read_bytes()
    (home / "ledger.safetensors").unlink()
    assert the_good_go_on(polled(tiny_hub, home))
    assert (home / "ledger.safetensors").read_bytes() == before


def test_a_lineage_that_is_no_database_says_so(tiny_hub, home):
    home.mkdir()
    (home / "lineage.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(KinshipError, match="not a database"), opened(tiny_hub, home):
        pass


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("merge.method", "slurp", "slerp"),
        ("merge.parameters", "{tt: 0.5}", "tt"),
        ("policy.use", "topk-kinshp", "topk-kinship"),
        ("policy.kk", "3", "kk"),
        ("policy.k", "0", "k"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_fetched(tiny_hub, home, key, value, said):
    with pytest.raises(UsageError, match=said), opened(tiny_hub, home, **{key: value}):
        pass


def test_a_task_that_does_not_exist_is_refused_before_anything_is_fetched(tiny_hub, home):
    result = warm_workers.run(
        [
            *("run", "--base", "org/base", "--hub", tiny_hub, "--home", home, "--once"),
            *(
                "--set",
                "evaluate.selection=[winogrand]",
                "--set",
                "evaluate.validation=[winogrand]",
            ),
        ],
        home.parent,
    )
    assert result.code == 2
    assert "winogrande" in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, which can really be full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_no_half_file_and_work_goes_on_when_there_is_room(tiny_hub, small_disk):
    home = small_disk / "home"
    with opened(tiny_hub, home) as d:
        turns.poll(d)
        filler = small_disk / "filler"
        fill(filler)
        with pytest.raises(KinshipError, match="disk is full"):
            turns.take(d, "refetch", "ledger")
    assert not (home / "ledger.safetensors").exists()
    filler.unlink()
    assert the_good_go_on(polled(tiny_hub, home))
    assert (home / "ledger.safetensors").exists()


def test_a_read_only_home_is_one_line(monkeypatch, capfd, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    arguments = ["run", "--base", "demo", "--home", small_disk / "home", "--once"]
    result = command.call(arguments, monkeypatch, capfd)
    assert result.code == 3
    assert str(small_disk) in result.err
    assert result.err.count("\n") == 1


def fill(path):
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with pytest.raises(OSError, match="No space left"):
                write_for_ever(file, size)


def write_for_ever(file, size):
    while file.write(bytes(size)):
        pass


def test_a_home_that_cannot_be_written_is_named(monkeypatch, capfd, tmp_path):
    (tmp_path / "file").write_text("in the way")
    arguments = ["run", "--base", "demo", "--home", tmp_path / "file" / "home", "--once"]
    result = command.call(arguments, monkeypatch, capfd)
    assert result.code == 3
    assert "--home" in result.err
    assert result.err.count("\n") == 1
