"""Weights made in live models and on disk: right, whole, deterministic, and loadable by anyone."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ledgers
import reference
import tiny
from kinship_daemon import durable
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import KinshipError, ModelError, UsageError
from kinship_daemon.weights import materialise, shard
from kinship_daemon.weights.checkpoint import Checkpoint, compare
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.live_model import live_model, load_into
from kinship_daemon.weights.materialise import (
    Assembly,
    assemble,
    leaf_assembly,
    write,
)
from kinship_daemon.weights.recipe import Recipe, combine, leaf
from kinship_daemon.weights.tokenizer import load_tokenizer

TOKENS = torch.tensor([[4, 9, 23, 40, 31, 7]])


def merged(base: Path, leaves: list[Path], method="slerp", **parameters) -> Assembly:
    """The assembly of a merge of two leaves."""
    ledger = ledgers.of(base, {folder.name: folder for folder in leaves})
    names = tuple(folder.name for folder in leaves)
    recipe = Recipe(method, names, parameters or {"t": 0.4})
    child = combine(ledger, recipe, [leaf(ledger, name) for name in names])
    folders = {folder.name: folder for folder in leaves}
    return assemble(ledger, child, base, folders, "recipe:child", donor=leaves[0])


@pytest.fixture(scope="module")
def child(tiny_base, tiny_finetunes):
    return merged(tiny_base, tiny_finetunes[:2])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def test_a_written_child_is_a_model_like_any_other(tmp_path, child, tiny_base):
    write(child, tmp_path / "child")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "child")
    assert model.dtype == torch.bfloat16
    live = live_model(child, dtype=torch.bfloat16, device="cpu")
    assert torch.equal(logits(model), logits(live))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "child")
    expected = AutoTokenizer.from_pretrained(tiny_base)
    assert tokenizer("7+5=12").input_ids == expected("7+5=12").input_ids
    compare(Checkpoint.open(tiny_base), Checkpoint.open(tmp_path / "child"))


def test_every_weight_is_rounded_once(tmp_path, child, tiny_finetunes):
    write(child, tmp_path / "child")
    first, second = (tiny.tensors(folder) for folder in tiny_finetunes[:2])
    for name, tensor in tiny.tensors(tmp_path / "child").items():
        exact = reference.slerp(0.4, first[name], second[name])
        # Half of the distance to the next bf16 (8 bits), and the float32 sum's own error.
        half = torch.finfo(torch.bfloat16).eps / 2 * exact.abs() * (1 + 1e-3) + 1e-9
        assert bool(((tensor.double() - exact).abs() <= half).all())


def test_a_plain_checkpoint_is_handed_on_unchanged(tmp_path, tiny_finetunes):
    for folder in tiny_finetunes[:2]:
        out = tmp_path / folder.name
        write(leaf_assembly(folder, "sha256:x"), out)
        before, after = tiny.tensors(folder), tiny.tensors(out)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        model = live_model(leaf_assembly(folder, "x"), dtype=torch.bfloat16, device="cpu")
        assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(folder)))


def test_where_the_base_drops_out_it_is_not_read(tmp_path, tiny_base, tiny_finetunes):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    assembly = merged(base, tiny_finetunes[:2], "linear", weight=[0.1, 0.2])
    assert all(weights[0] == 0 for _, weights in assembly.coefficients)
    tiny.edit(base, {name: t * torch.nan for name, t in tiny.tensors(base).items()})
    write(assembly, tmp_path / "child")
    first, second = (tiny.tensors(folder) for folder in tiny_finetunes[:2])
    for name, tensor in tiny.tensors(tmp_path / "child").items():
        exact = reference.linear([0.1, 0.2], [first[name], second[name]], normalize=True)
        assert torch.allclose(tensor.double(), exact, rtol=2**-8, atol=1e-9)


def test_shards_hold_the_same_model(tmp_path, child):
    write(child, tmp_path / "one")
    files = write(child, tmp_path / "many", shard_bytes=9_000)
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    sizes = [(tmp_path / "many" / name).stat().st_size for name in shards]
    assert max(sizes) < 9_000 + 2_000  # and the header
    one, many = tiny.tensors(tmp_path / "one"), tiny.tensors(tmp_path / "many")
    assert all(torch.equal(one[name], many[name]) for name in one | many)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == Checkpoint.open(tmp_path / "one").nbytes
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "many")]
    assert torch.equal(*map(logits, models))


def test_the_same_child_has_the_same_bytes(tmp_path, child, tiny_base, tiny_finetunes):
    files = write(child, tmp_path / "one")
    assert files == {path.name: hash_file(path) for path in sorted((tmp_path / "one").iterdir())}
    assert write(child, tmp_path / "two") == files
    assert write(pickle.loads(pickle.dumps(child)), tmp_path / "three") == files
    reverse = Recipe("slerp", ("a", "b"), {"t": 0.4})
    ledger = ledgers.of(tiny_base, {folder.name: folder for folder in tiny_finetunes[::-1]})
    again = combine(ledger, reverse, [leaf(ledger, "a"), leaf(ledger, "b")])
    folders = {folder.name: folder for folder in tiny_finetunes}
    other = assemble(ledger, again, tiny_base, folders, "recipe:child", donor=tiny_finetunes[0])
    assert write(other, tmp_path / "four") == files


def test_progress_tells_every_byte(tmp_path, child):
    seen = []
    write(child, tmp_path / "child", progress=seen.append)
    assert sum(seen) == Checkpoint.open(tmp_path / "child").nbytes


def test_a_live_model_takes_one_child_after_another(child, tiny_finetunes):
    model = live_model(child, dtype=torch.bfloat16, device="cpu")
    first = logits(model)
    load_into(model, leaf_assembly(tiny_finetunes[2], "c"), device="cpu")
    expected = AutoModelForCausalLM.from_pretrained(tiny_finetunes[2])
    assert torch.equal(logits(model), logits(expected))
    load_into(model, child, device="cpu")
    assert torch.equal(logits(model), first)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_in_float32_the_child_is_not_rounded(child, tiny_finetunes):
    model = live_model(child, dtype=torch.float32, device="cpu")
    first, second = (tiny.tensors(folder) for folder in tiny_finetunes[:2])
    for name, tensor in model.state_dict().items():
        exact = reference.slerp(0.4, first[name], second[name])
        assert torch.allclose(tensor.double(), exact, rtol=1e-6, atol=1e-6)


def test_building_a_model_draws_no_random_numbers(child):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    live_model(child, dtype=torch.bfloat16, device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("tied")
    base = tiny.base(scratch / "base", tied=True)
    return base, [tiny.finetune(base, scratch / name, seed) for seed, name in enumerate("ab", 1)]


def test_tied_embeddings_stay_tied(tmp_path, tied):
    assembly = merged(*tied)
    assert "lm_head.weight" not in dict(assembly.coefficients)
    model = live_model(assembly, dtype=torch.bfloat16, device="cpu")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    write(assembly, tmp_path / "child")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "child")
    assert torch.equal(logits(model), logits(loaded))


def test_a_second_copy_of_tied_embeddings_is_ignored(tmp_path, tied):
    base, leaves = tied
    doubled = shutil.copytree(leaves[0], tmp_path / "a")
    copy = tiny.tensors(doubled)["model.embed_tokens.weight"].clone()
    tiny.edit(doubled, {"lm_head.weight": copy})
    compare(Checkpoint.open(base), Checkpoint.open(doubled))
    expected = live_model(merged(base, leaves), dtype=torch.bfloat16, device="cpu")
    model = live_model(merged(base, [doubled, leaves[1]]), dtype=torch.bfloat16, device="cpu")
    assert torch.equal(logits(model), logits(expected))


@pytest.mark.parametrize("silent", [False, True])
def test_a_head_that_differs_from_its_tied_embeddings_is_refused(tmp_path, tied, silent):
    base, leaves = (shutil.copytree(f, tmp_path / f.name) for f in (tied[0], tied[1][0]))
    head = tiny.tensors(leaves)["model.embed_tokens.weight"].clone()
    head[3, 5] += 1
    tiny.edit(leaves, {"lm_head.weight": head})
    if silent:
        for folder in (base, leaves):
            tiny.config(folder, tie_word_embeddings=None)
    with pytest.raises(ModelError, match=r"its lm_head\.weight differs from model\.embed_tok"):
        descend(Checkpoint.open(base), leaves)


def test_templates_and_generation_settings_are_the_donors_and_the_config_the_bases(
    tmp_path, tiny_base
):
    donor = tiny.finetune(tiny_base, tmp_path / "a", 1)
    other = tiny.finetune(tiny_base, tmp_path / "b", 2)
    tiny.tokenizer(donor, chat_template="{{ messages[0].content }}")
    tiny.config(
        donor,
        rms_norm_eps=1e-5,
        auto_map={"AutoModel": "evil.Model"},
        _name_or_path="/x",
        pad_token_id=7,
    )
    settings = json.loads((donor / "tokenizer_config.json").read_text())
    (donor / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": {"x": "evil"}}))
    generation = json.loads((donor / "generation_config.json").read_text())
    (donor / "generation_config.json").write_text(json.dumps(generation | {"max_new_tokens": 3}))
    (donor / "modeling_evil.py").write_text("raise SystemExit")
    (donor / "training_args.bin").write_bytes(b"pickle")
    assembly = merged(tiny_base, [donor, other])
    files = write(assembly, tmp_path / "child")
    assert set(files) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((tmp_path / "child" / "config.json").read_text())
    own = json.loads((tiny_base / "config.json").read_text())
    assert config["rms_norm_eps"] == own["rms_norm_eps"] != 1e-5
    assert config["pad_token_id"] == 7
    assert "auto_map" not in config
    assert "_name_or_path" not in config
    assert "evil" not in (tmp_path / "child" / "tokenizer_config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "child")
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "hi"
    live = live_model(assembly, dtype=torch.bfloat16, device="cpu")
    assert live.generation_config.max_new_tokens == 3


def test_another_dtype_is_written_and_declared(tmp_path, child):
    write(child, tmp_path / "child", dtype=torch.float16)
    assert {t.dtype for t in tiny.tensors(tmp_path / "child").values()} == {torch.float16}
    assert AutoConfig.from_pretrained(tmp_path / "child").dtype == torch.float16


def test_extra_files_come_with_the_folder(tmp_path, child):
    files = write(child, tmp_path / "child", extra={"README.md": "# A child\n"})
    assert files["README.md"] == hash_file(tmp_path / "child" / "README.md")


# What goes wrong


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_a_value_that_does_not_fit_leaves_nothing(tmp_path, tiny_base, tiny_finetunes):
    assembly = merged(tiny_base, tiny_finetunes[:2], "linear", weight=[1e6, 1e6], normalize=False)
    with pytest.raises(ModelError, match=r"does not fit torch\.float16"):
        write(assembly, tmp_path / "child", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_model_is_not_taken_for_one_that_does_not_fit(tmp_path, tiny_finetunes):
    broken = shutil.copytree(tiny_finetunes[0], tmp_path / "broken")
    tiny.edit(broken, {"model.norm.weight": torch.full((32,), torch.nan, dtype=torch.bfloat16)})
    with pytest.raises(ModelError, match=r"model.norm.weight of the merge holds NaN"):
        write(leaf_assembly(broken, "broken"), tmp_path / "out")


def test_a_donor_without_tokenizer_is_refused(tmp_path, tiny_base, tiny_finetunes):
    donor = shutil.copytree(tiny_finetunes[0], tmp_path / "a")
    (donor / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        write(merged(tiny_base, [donor, tiny_finetunes[1]]), tmp_path / "child")
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize("target", ["folder", "file"])
def test_what_is_there_is_never_overwritten(tmp_path, child, target):
    out = tmp_path / "child"
    if target == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(KinshipError, match="exists and is not empty"):
        write(child, out)
    assert (out if target == "file" else out / "mine").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path, child):
    (tmp_path / "child").mkdir()
    assert "model.safetensors" in write(child, tmp_path / "child")


def test_an_empty_folder_may_be_the_working_one_or_behind_a_link(tmp_path, child, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("there")
    monkeypatch.chdir(tmp_path / "here")
    write(child, Path())
    write(child, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    assert compare(Checkpoint.open(tmp_path / "here"), Checkpoint.open(tmp_path / "there")) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link", "there"]


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path, child):
    out = tmp_path / "child"

    def another(_):
        out.mkdir(exist_ok=True)
        (out / "theirs").write_text("theirs")

    with pytest.raises(KinshipError, match="exists and is not empty"):
        write(child, out, progress=another)
    assert [path.name for path in tmp_path.iterdir()] == ["child"]  # nor is ours left beside it
    assert [path.name for path in out.iterdir()] == ["theirs"]


def test_too_little_room_is_known_before_a_byte_is_written(tmp_path, child, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(materialise.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(KinshipError, match=r"needs .* GB, the disk has .* GB free"):
        write(child, tmp_path / "deep" / "child")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")]
)
def test_a_disk_that_refuses_leaves_nothing(tmp_path, child, monkeypatch, code, said):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shard, "encode_header", refuse)
    with pytest.raises(KinshipError, match=said):
        write(child, tmp_path / "child")
    assert visible(tmp_path) == []  # what is finished waits, hidden, for the next try


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from kinship_daemon.weights.materialise import write
assembly = pickle.loads(Path(sys.argv[1]).read_bytes())
count = [0]
def progress(_):
    count[0] += 1
    if count[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
write(assembly, Path(sys.argv[2]), shard_bytes=9000, progress=progress)
"""


def test_a_killed_write_leaves_nothing_under_the_name_and_is_cleaned_up(tmp_path, child):
    (tmp_path / "assembly").write_bytes(pickle.dumps(child))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = [str(tmp_path / "assembly"), str(scratch / "child"), "10"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    (leftover,) = scratch.iterdir()
    assert leftover.name.startswith(".child.partial-")
    finished = {path.name: path.stat().st_ino for path in leftover.glob("model*")}
    assert len(finished) > 1
    write(child, scratch / "child")
    assert [path.name for path in scratch.iterdir()] == ["child"]


def test_shards_that_a_killed_write_had_finished_are_kept(tmp_path, child):
    (tmp_path / "assembly").write_bytes(pickle.dumps(child))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = [str(tmp_path / "assembly"), str(scratch / "child"), "10"]
    subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    (leftover,) = scratch.iterdir()
    finished = {path.name: path.stat().st_ino for path in leftover.glob("model*")}
    assert len(finished) > 1
    files = write(child, scratch / "child", shard_bytes=9000)
    kept = {name: (scratch / "child" / name).stat().st_ino for name in finished}
    assert kept == finished
    assert files == write(child, tmp_path / "fresh", shard_bytes=9000)
    assert files == {path.name: hash_file(path) for path in sorted((scratch / "child").iterdir())}


def test_what_was_made_is_told_tensor_by_tensor(tmp_path, child):
    told = {}
    write(child, tmp_path / "out", made=lambda name, tensor: told.update({name: tensor.clone()}))
    written = tiny.tensors(tmp_path / "out")
    assert told.keys() == written.keys()
    assert all(torch.equal(told[name], written[name]) for name in told)


def test_the_folder_of_a_writer_at_work_is_left_alone(tmp_path, child):
    with durable.whole_folder(tmp_path / "child") as ours:
        (ours / "half").write_text("written")
        write(child, tmp_path / "child")
        assert (ours / "half").exists()
        shutil.rmtree(tmp_path / "child")
    assert [path.name for path in (tmp_path / "child").iterdir()] == ["half"]


def test_a_missing_leaf_is_named(tiny_base, tiny_finetunes):
    ledger = ledgers.of(tiny_base, {"a": tiny_finetunes[0]})
    with pytest.raises(UsageError, match="no folder is known for the leaf a"):
        assemble(ledger, leaf(ledger, "a"), tiny_base, {}, "x", donor=tiny_base)


def test_a_model_of_other_shapes_is_not_loaded_into(tmp_path, child):
    model = live_model(child, dtype=torch.bfloat16, device="cpu")
    wide = tiny.base(tmp_path / "wide", hidden=64)
    with pytest.raises(ModelError, match=r"lm_head.weight \[51, 64\] has no place"):
        load_into(model, leaf_assembly(wide, "wide"), device="cpu")


def test_a_tensor_the_model_needs_must_be_there(tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "short")
    tiny.edit(folder, {"model.norm.weight": None})
    with pytest.raises(ModelError, match=r"lacks the tensor model\.norm\.weight"):
        live_model(leaf_assembly(folder, "short"), dtype=torch.bfloat16, device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "unheard_of"},
        {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.Config"}},
        {"num_attention_heads": "many"},
        {"hidden_act": "unheard_of"},
    ],
)
def test_a_config_that_cannot_be_used_is_a_model_error(tmp_path, tiny_base, change):
    folder = shutil.copytree(tiny_base, tmp_path / "odd")
    (folder / "evil.py").write_text("raise SystemExit('ran the code of a stranger')")
    tiny.config(folder, **change)
    with pytest.raises(ModelError, match="odd"):
        live_model(leaf_assembly(folder, "odd"), dtype=torch.bfloat16, device="cpu")


def test_a_broken_generation_config_is_a_model_error(tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "odd")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"odd/generation_config\.json"):
        live_model(leaf_assembly(folder, "odd"), dtype=torch.bfloat16, device="cpu")


@pytest.mark.gpu
def test_a_gpu_makes_the_same_model(child):
    model = live_model(child, dtype=torch.bfloat16, device="cuda")
    expected = live_model(child, dtype=torch.bfloat16, device="cpu")
    for name, tensor in model.state_dict().items():
        near = expected.state_dict()[name]
        assert torch.allclose(tensor.cpu().float(), near.float(), rtol=2**-7, atol=1e-6)


def test_messages_name_the_donor_and_no_passing_folder(tmp_path, tiny_base):
    odd = tiny.config(shutil.copytree(tiny_base, tmp_path / "odd"), model_type="none-such")
    said = set()
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            live_model(leaf_assembly(odd, "odd"), dtype=torch.bfloat16, device="cpu")
        said.add(str(caught.value))
    (words,) = said  # the same fault has the same words
    assert words.startswith(f"{odd}: its config cannot be used")
    assert tempfile.gettempdir() not in words.replace(str(odd), "")
    broken = shutil.copytree(tiny_base, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        load_tokenizer(broken, tmp_path / "source")
    assert str(broken) not in str(caught.value)
