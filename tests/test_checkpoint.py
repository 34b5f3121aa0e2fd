"""Opening model folders: what is found in good ones, and what is said of bad ones."""

import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

import tiny
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import ModelError
from kinship_daemon.weights.checkpoint import Checkpoint, compare, weights_identity

FEW = {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.ones(4).bfloat16()}


def header_of(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(path: Path, header, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def open_with(folder: Path, change) -> Checkpoint:
    """Open FEW after `change(header)` of its header."""
    tiny.bare(folder, FEW)
    header, data = header_of(folder / "model.safetensors")
    changed = change(header)
    with_header(folder / "model.safetensors", header if changed is None else changed, data)
    return Checkpoint.open(folder)


def test_names_are_sorted_and_counted(tiny_base):
    checkpoint = Checkpoint.open(tiny_base)
    assert list(checkpoint.tensors) == sorted(tiny.tensors(tiny_base))
    assert checkpoint.parameters == sum(t.numel() for t in tiny.tensors(tiny_base).values())
    assert checkpoint.nbytes == 2 * checkpoint.parameters
    assert checkpoint.files == ("model.safetensors",)


def test_tensors_come_from_every_shard_as_they_are(tiny_finetunes):
    checkpoint = Checkpoint.open(tiny_finetunes[1])
    assert len(checkpoint.files) > 1
    for name, expected in tiny.tensors(tiny_finetunes[1]).items():
        assert torch.equal(checkpoint.tensor(name), expected)
        assert checkpoint.tensor(name).dtype == expected.dtype


def test_a_tensor_is_mapped_not_copied(tmp_path):
    def private_kb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0])

    tiny.bare(tmp_path, {"big": torch.zeros(1 << 25).bfloat16()})
    before = private_kb()
    tensor = Checkpoint.open(tmp_path).tensor("big")
    assert float(tensor.view(torch.int16).max()) == 0  # every page was touched
    assert private_kb() - before < 16 * 1024


def test_what_was_read_of_a_file_stays_no_longer_than_the_tensor(tmp_path):
    tiny.bare(tmp_path, FEW)
    file = str(tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    tensor = checkpoint.tensor("a")
    assert file in Path("/proc/self/maps").read_text()
    del tensor
    assert file not in Path("/proc/self/maps").read_text()


@contextmanager
def no_more_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_the_machine_lacks_is_no_fault_of_the_model(tmp_path):
    tiny.bare(tmp_path, FEW)
    checkpoint = Checkpoint.open(tmp_path)
    why = f"model.safetensors: cannot be read: {os.strerror(errno.EMFILE)}"
    for read in (lambda: checkpoint.tensor("a"), lambda: Checkpoint.open(tmp_path)):
        with no_more_descriptors(), pytest.raises(ModelError, match=why) as found:
            read()
        assert found.value.cause == "world"


def test_a_file_that_becomes_shorter_is_said(tmp_path):
    tiny.bare(tmp_path, FEW)
    checkpoint = Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be read: it is shorter than it was"):
        checkpoint.tensor("b")


def test_a_file_cut_short_is_truncated(tmp_path):
    tiny.bare(tmp_path, FEW)
    content = (tmp_path / "model.safetensors").read_bytes()
    for length in range(len(content)):
        (tmp_path / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(ModelError, match="truncated"):
            Checkpoint.open(tmp_path)


def test_bytes_after_the_last_tensor_are_corrupt(tmp_path):
    tiny.bare(tmp_path, FEW)
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="1 bytes after its last tensor"):
        Checkpoint.open(tmp_path)


def test_an_absurd_header_length_is_refused_unread(tmp_path):
    tiny.bare(tmp_path, FEW)
    (tmp_path / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="not a safetensors file"):
        Checkpoint.open(tmp_path)


def test_too_many_tensors_are_refused(tmp_path):
    def many(_):
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        return {str(n): empty for n in range(100_001)}

    with pytest.raises(ModelError, match="over 80000 tensors"):
        open_with(tmp_path, many)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["a"].update(shape=[2, 4]), "needs 32 bytes, its offsets give 24"),
        (lambda h: h["a"].update(shape=[2, -3]), "a size that is no size"),
        (lambda h: h["a"].update(shape=[2, 3.0]), "a size that is no size"),
        (lambda h: h["a"].update(shape=[True, 6]), "a size that is no size"),
        (lambda h: h["a"].update(shape=6), "no dtype, shape, offsets"),
        (lambda h: h["a"].update(dtype="Q4_K"), "unknown dtype Q4_K"),
        (lambda h: h["a"].pop("data_offsets") and None, "no dtype, shape, offsets"),
        (lambda h: h["b"].update(data_offsets=h["b"]["data_offsets"][::-1]), "needs 8 bytes"),
        (lambda h: h.update(b=dict(h["a"])), "overlaps"),
        (lambda h: h.pop("a") and None, "gap"),
        (lambda h: h.update(c=7), "tensor c has no dtype"),
        (lambda _: [1], "not a JSON object"),
        (lambda _: b"{", "not valid JSON"),
        (lambda _: b"[" * 100_000, "not valid JSON"),
        (lambda _: b"\xff{}", "not valid JSON"),
        (lambda _: b'{"a":1,"a":1}', "a name appears twice"),
        (lambda _: {}, "after its last tensor"),
    ],
)
def test_a_corrupt_header_is_explained(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        open_with(tmp_path, change)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=9))
def test_damaged_bytes_are_refused_or_read_as_the_library_reads_them(tmp_path, place, damage):
    content = save(FEW)
    place %= len(content)
    damaged = content[:place] + damage + content[place + len(damage) :]
    (tmp_path / "model.safetensors").write_bytes(damaged)
    try:
        checkpoint = Checkpoint.open(tmp_path)
    except ModelError:
        return
    for name in checkpoint.tensors:  # whatever passed our checks, the library can map
        assert tuple(checkpoint.tensor(name).shape) == checkpoint.tensors[name].shape


def test_pickle_files_are_named_and_never_read(tmp_path):
    for name in ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"):
        (tmp_path / name).write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"only pickle weights \(pytorch_model-00001-of-00002.bin"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no weights"),
        (["adapter_model.safetensors"], "holds only an adapter"),
        (["model-00001-of-00002.safetensors"], "neither model.safetensors nor"),
    ],
)
def test_a_folder_without_weights_says_what_it_has(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match=message):
        Checkpoint.open(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        Checkpoint.open(tmp_path / "absent")


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "x" * 300 + ".safetensors"],
)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path, shard):
    index = {"weight_map": {"a": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no file of this folder"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}', "two.safetensors is"),
        ('{"weight_map": {"a": "one.safetensors", "c": "one.safetensors"}}', "holds c, but"),
        ('{"weight_map": {}}', "has no weight_map"),
        ("[]", "not a JSON object"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_an_index_that_disagrees_with_its_shards(tmp_path, index, message):
    save_file({"a": FEW["a"]}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=message):
        Checkpoint.open(tmp_path)


def test_one_name_in_two_shards_is_refused(tmp_path):
    for shard in ("one", "two"):
        save_file(FEW, tmp_path / f"{shard}.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"tensor a is in one\.safetensors and two"):
        Checkpoint.open(tmp_path)


def test_computed_and_doubled_tensors_are_left_out(tmp_path):
    tiny.base(tmp_path / "m", tied=True)
    plain = Checkpoint.open(tmp_path / "m")
    extra = {
        "lm_head.weight": plain.tensor("model.embed_tokens.weight").clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    assert list(Checkpoint.open(tiny.edit(tmp_path / "m", extra)).tensors) == list(plain.tensors)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        ("model.rotary_emb.original_inv_freq", torch.ones(4)),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", torch.ones(1, 1, 8, 4)),
        ("model.layers.0.self_attn.rotary_emb.sin_cached", torch.ones(1, 1, 8, 4)),
        ("transformer.h.0.attn.bias", torch.ones(1, 1, 8, 8)),
        ("transformer.h.0.attn.bias", torch.ones(8, 8, dtype=torch.bool)),
        ("gpt_neox.layers.0.attention.bias", torch.ones(1, 1, 8, 8, dtype=torch.uint8)),
        ("transformer.h.0.attn.masked_bias", torch.tensor(-1e9)),
        ("model.embeddings.position_ids", torch.arange(8)[None]),
    ],
)
def test_buffers_that_follow_from_the_config_count_on_neither_side(tmp_path, name, tensor):
    plain, doubled = tiny.bare(tmp_path / "a", FEW), tiny.bare(tmp_path / "b", FEW | {name: tensor})
    base, other = Checkpoint.open(plain), Checkpoint.open(doubled)
    assert list(other.tensors) == ["a", "b"]
    compare(base, other)
    compare(other, base)


@pytest.mark.parametrize("name", ["layers.0.attn.bias", "layers.0.attn.q_proj.bias", "attn.scale"])
def test_what_was_learnt_is_no_buffer(tmp_path, name):
    folder = tiny.bare(tmp_path, FEW | {name: torch.ones(8)})
    assert name in Checkpoint.open(folder).tensors


def test_embeddings_tied_on_one_side_only_are_refused(tmp_path):
    tied = Checkpoint.open(tiny.base(tmp_path / "tied", tied=True))
    untied = Checkpoint.open(tiny.base(tmp_path / "untied"))
    with pytest.raises(ModelError, match=r"untied: has an lm_head\.weight of its own, the base's"):
        compare(tied, untied)
    with pytest.raises(ModelError, match=r"tied: has no lm_head\.weight \(tied embeddings\)"):
        compare(untied, tied)


def test_a_missing_head_is_not_taken_for_a_tied_one(tmp_path, tiny_base):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    tiny.edit(other, {"lm_head.weight": None})
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        compare(Checkpoint.open(tiny_base), Checkpoint.open(other))


def test_rows_may_differ_where_that_is_allowed(tmp_path):
    base = Checkpoint.open(tiny.bare(tmp_path / "a", FEW))
    longer = tiny.bare(tmp_path / "b", FEW | {"a": torch.ones(5, 3)})
    compare(base, Checkpoint.open(longer), resizable=["a"])
    wider = tiny.bare(tmp_path / "c", FEW | {"a": torch.ones(2, 4)})
    with pytest.raises(ModelError, match="a is 2x4, the base's is 2x3"):
        compare(base, Checkpoint.open(wider), resizable=["a"])


def test_a_descendant_fits_its_base_whatever_its_shards(tiny_base, tiny_finetunes):
    for folder in tiny_finetunes:
        compare(Checkpoint.open(tiny_base), Checkpoint.open(folder))


def test_the_first_three_differences_are_named(tmp_path, tiny_base):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    tiny.edit(
        other,
        {
            "lm_head.weight": torch.zeros(52, 32).bfloat16(),
            "model.embed_tokens.weight": torch.zeros(52, 32).bfloat16(),
            "model.extra": torch.zeros(1),
            "model.norm.weight": None,
            "zzz": torch.zeros(1),
        },
    )
    with pytest.raises(ModelError) as caught:
        compare(Checkpoint.open(tiny_base), Checkpoint.open(other))
    said = str(caught.value).partition("base's: ")[2]
    assert said == (
        "lm_head.weight is 52x32, the base's is 51x32; "
        "model.embed_tokens.weight is 52x32, the base's is 51x32; "
        "model.extra is not in the base; and 2 more"
    )


def test_another_architecture_is_refused(tmp_path, tiny_base):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    tiny.config(other, architectures=["LlamaForCausalLM"])
    with pytest.raises(ModelError, match="'LlamaForCausalLM', the base's is 'MistralForCausalLM'"):
        compare(Checkpoint.open(tiny_base), Checkpoint.open(other))


@pytest.mark.parametrize("config", [None, "{", "[]", "{}"])
def test_a_broken_config_is_a_model_error(tmp_path, tiny_base, config):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    base = Checkpoint.open(tiny_base)
    checkpoint = Checkpoint.open(other)
    (other / "config.json").unlink()
    if config is not None:
        (other / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"config\.json"):
        compare(base, checkpoint)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_half_a_surrogate_pair_is_no_text(tmp_path, file):
    """It can be neither printed nor stored, so no message may come to hold it."""
    folder = tiny.base(tmp_path / "base")
    if file != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / file).write_text('{"architectures": ["\\ud800"], "weight_map": {"a": "\\ud800"}}')
    with pytest.raises(ModelError, match="surrogates not allowed") as caught:
        compare(Checkpoint.open(folder), Checkpoint.open(folder))
    assert str(caught.value).encode()


def test_a_tensors_name_is_printable(tmp_path):
    header = b'{"\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0"
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"is no name of a tensor|surrogates not allowed"):
        Checkpoint.open(tmp_path)


def test_quantised_weights_do_not_fit(tmp_path, tiny_base):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    tiny.edit(other, {"model.norm.weight": torch.zeros(32, dtype=torch.int8)})
    with pytest.raises(
        ModelError, match=r"weights are quantised \(model.norm.weight is I8\); only f"
    ):
        compare(Checkpoint.open(tiny_base), Checkpoint.open(other))


@pytest.mark.parametrize(
    "packed",
    [
        {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 64, dtype=torch.int32)},
        {"model.layers.0.mlp.up_proj.weight": torch.zeros(1024, 1, dtype=torch.uint8)},
        {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(64)},
        {"model.layers.0.mlp.up_proj.weight": torch.zeros(64, 32).to(torch.float8_e4m3fn)},
    ],
)
def test_packed_weights_are_called_quantised_on_either_side(tmp_path, tiny_base, packed):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    tiny.edit(other, packed)
    for base, leaf in ((tiny_base, other), (other, tiny_base)):
        with pytest.raises(ModelError, match=r"other: its weights are quantised \(model\.layers"):
            compare(Checkpoint.open(base), Checkpoint.open(leaf))


def test_the_identity_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"one")
    (tmp_path / "y").write_bytes(b"two")
    one, two = hash_file(tmp_path / "x"), hash_file(tmp_path / "y")
    assert one == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    identity = weights_identity({"model.safetensors": one, "b": two})
    assert identity == weights_identity({"p": two, "q": one})
    assert identity != weights_identity({"p": two})
    assert identity.startswith("sha256:")


@pytest.mark.parametrize("shape", [(0, 32), (32, 0), (0,)])
@pytest.mark.parametrize("lost", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_tensor_without_elements_is_refused(tmp_path, lost, shape):
    folder = tiny.edit(tiny.base(tmp_path / "a"), {lost: torch.zeros(shape)})
    with pytest.raises(ModelError, match=rf"its tensor {lost} .* has no elements"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("shard_size", [None, "40KB"])
def test_a_git_lfs_pointer_is_told_as_what_it_is(tmp_path, shard_size):
    folder = tiny.base(tmp_path / "a", shard_size=shard_size)
    file = sorted(folder.glob("*.safetensors"))[-1]
    oid = "a" * 64
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 4943\n")
    with pytest.raises(ModelError, match=rf"{file.name}: only a Git LFS pointer.*git lfs pull"):
        Checkpoint.open(folder)
