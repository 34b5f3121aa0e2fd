"""A model's headers through ranges of its files: all checks, and no more read than they take."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import tiny
from kinship_daemon.errors import ModelError
from kinship_daemon.hub.files import weight_files
from kinship_daemon.hub.records import RepoFile
from kinship_daemon.ranges import FolderRanges
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.remote import check_fits, open_remote

FEW = {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.ones(4).bfloat16()}


def remote(folder, name="org/model"):
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    return open_remote(name, FolderRanges(folder), files)


def listed(folder):
    return [RepoFile(path.name, path.stat().st_size) for path in folder.iterdir()]


def test_it_knows_what_a_checkpoint_knows(tiny_base, tiny_finetunes):
    for folder in (tiny_base, *tiny_finetunes):
        found, checkpoint = remote(folder), Checkpoint.open(folder)
        assert dict(found.tensors) == dict(checkpoint.tensors)
        assert list(found.tensors) == list(checkpoint.tensors)
        assert found.nbytes == checkpoint.nbytes
        assert found.config()["architectures"] == ["MistralForCausalLM"]


def test_a_tensors_offset_is_where_its_bytes_are(tiny_finetunes):
    found = remote(tiny_finetunes[1])
    for name, tensor in tiny.tensors(tiny_finetunes[1]).items():
        info = found.tensors[name]
        (data,) = found.ranges.read(info.file, [(info.offset, info.offset + info.nbytes)])
        assert data == tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_of_a_large_model_only_headers_are_read(tmp_path):
    tiny.bare(tmp_path, {f"layers.{n}.w": torch.zeros(1000, 1000).bfloat16() for n in range(5)})
    assert remote(tmp_path).ranges.bytes_read < 20_000


def test_a_header_longer_than_expected_is_read_to_its_end(tmp_path):
    many = {f"layers.{n}.{'x' * 100}": torch.ones(2) for n in range(300)}
    tiny.bare(tmp_path, many)
    found = remote(tmp_path)
    assert len(found.tensors) == 300
    config = (tmp_path / "config.json").stat().st_size
    header = 8 + int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert found.ranges.bytes_read == header + config


def test_of_shards_only_those_of_the_index_are_looked_at(tmp_path, tiny_finetunes):
    folder = shutil.copytree(tiny_finetunes[1], tmp_path / "m")
    (folder / "stray.safetensors").write_bytes(b"no header")
    assert len(remote(folder).tensors) == len(Checkpoint.open(folder).tensors)


def test_a_file_cut_short_is_truncated(tmp_path):
    tiny.bare(tmp_path, FEW)
    content = (tmp_path / "model.safetensors").read_bytes()
    for length in range(len(content)):
        (tmp_path / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(ModelError, match="truncated"):
            remote(tmp_path)


@pytest.mark.parametrize("length", [1 << 60, 50_000_000])
def test_an_absurd_header_length_is_refused_unread(tmp_path, length):
    tiny.bare(tmp_path, FEW)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(60_000_000)
    parts = FolderRanges(tmp_path)
    with pytest.raises(ModelError, match=r"org/m/model\.safetensors: not a safetensors file"):
        open_remote("org/m", parts, {"model.safetensors": 60_000_000})
    assert parts.bytes_read < 20_000


def test_headers_of_many_shards_are_bounded_together(tmp_path):
    files = {}
    for number in range(3):
        shard = tmp_path / f"model-{number}.safetensors"
        header = json.dumps({f"t{number}": entry(0, 8)}).encode().ljust(9_000_000)
        shard.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        files[f"t{number}"] = shard.name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(ModelError, match=r"model-2\.safetensors: .*claims 9000000 bytes"):
        remote(tmp_path)


def with_header(folder, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    content = len(text).to_bytes(8, "little") + text + bytes(40)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def entry(start, end, shape=None):
    return {"dtype": "U8", "shape": shape or [end - start], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry(0, 24), "b": entry(20, 40)}, "overlaps another tensor"),
        ({"a": entry(0, 20), "b": entry(24, 40)}, "leaves a gap"),
        ({"a": entry(0, 20)}, "20 bytes after its last tensor"),
        ({"a": entry(0, 50)}, "need 50 bytes of data, it has 40"),
        ({"a": entry(0, 40, [1 << 62, 1 << 62])}, "its offsets give 40"),
        ({"a": {**entry(0, 40), "dtype": "Q4_K"}}, "unknown dtype Q4_K"),
        ({"a\u202e": entry(0, 40)}, "is no name of a tensor"),
        ({str(n): entry(0, 0) for n in range(100_001)}, "over 80000 tensors"),
        (b"{", "not valid JSON"),
        ({}, "40 bytes after its last tensor"),
    ],
)
def test_absurd_headers_are_refused(tmp_path, header, said):
    with pytest.raises(ModelError, match=said):
        remote(with_header(tmp_path / "m", header))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"pytorch_model.bin": 5}, r"org/m: only pickle weights \(pytorch_model.bin\)"),
        ({"adapter_model.safetensors": 5}, "holds only an adapter"),
        ({"README.md": 5}, "has no weights"),
    ],
)
def test_what_has_no_weights_says_what_it_has(tmp_path, files, said):
    with pytest.raises(ModelError, match=said):
        open_remote("org/m", FolderRanges(tmp_path), files)


def test_an_index_of_more_files_than_any_model_has_is_refused(tmp_path):
    names = [f"model-{n:05d}-of-01001.safetensors" for n in range(1001)]
    for name in names:
        (tmp_path / name).write_bytes(b"never read")
    index = {"weight_map": {f"w{n}": name for n, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    for look in (remote, Checkpoint.open, lambda folder: weight_files(listed(folder), folder)):
        with pytest.raises(ModelError, match="names 1001 files; the most allowed is 1000"):
            look(tmp_path)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "two.safetensors"])
def test_an_index_names_files_of_the_model_alone(tmp_path, shard):
    save_file({"a": FEW["a"]}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"no file of this folder|is missing"):
        remote(tmp_path)


def test_a_huge_config_is_refused_unread(tmp_path):
    tiny.bare(tmp_path, FEW)
    (tmp_path / "config.json").write_text(" " * 1_000_001)
    with pytest.raises(ModelError, match=r"config\.json: over 1000000 bytes"):
        remote(tmp_path)


def test_descendants_fit_whatever_their_shards_and_the_base_may_be_here(tiny_base, tiny_finetunes):
    for folder in tiny_finetunes:
        for base in (remote(tiny_base), Checkpoint.open(tiny_base)):
            assert list(check_fits(base, remote(folder)).tensors) == list(base.tensors)


def test_the_first_three_differences_are_named(tmp_path, tiny_base):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    changes = {"model.extra": torch.zeros(1), "model.norm.weight": None, "zzz": torch.zeros(1)}
    tiny.edit(other, {**changes, "model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2)})
    with pytest.raises(ModelError, match="org/model: its weights do not fit") as caught:
        check_fits(remote(tiny_base), remote(other))
    said = str(caught.value).partition("base's: ")[2]
    assert said == (
        "model.extra is not in the base; "
        "model.layers.0.mlp.up_proj.weight is 2x2, the base's is 64x32; "
        "model.norm.weight is missing; and 1 more"
    )


def test_embeddings_may_have_other_rows_if_they_agree(tmp_path, tiny_base):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    longer = torch.zeros(52, 32).bfloat16()
    tiny.edit(other, {"model.embed_tokens.weight": longer})
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is 52x32"):
        check_fits(remote(tiny_base), remote(other))
    tiny.edit(other, {"lm_head.weight": longer.clone()})
    check_fits(remote(tiny_base), remote(other))


def test_another_architecture_is_refused(tmp_path, tiny_base):
    other = tiny.config(shutil.copytree(tiny_base, tmp_path / "o"), architectures=["Llama"])
    with pytest.raises(ModelError, match="'Llama', the base's is 'MistralForCausalLM'"):
        check_fits(remote(tiny_base), remote(other))


def test_a_second_copy_of_tied_embeddings_is_left_out(tmp_path):
    base = tiny.base(tmp_path / "base", tied=True)
    leaf = tiny.finetune(base, tmp_path / "leaf", 1)
    copy = tiny.tensors(leaf)["model.embed_tokens.weight"].clone()
    tiny.edit(leaf, {"lm_head.weight": copy})
    assert "lm_head.weight" not in remote(leaf).tensors
    for folder in (base, leaf):
        config = json.loads((folder / "config.json").read_text())
        config.pop("tie_word_embeddings")
        (folder / "config.json").write_text(json.dumps(config))
    assert "lm_head.weight" in remote(leaf).tensors
    assert "lm_head.weight" not in check_fits(remote(base), remote(leaf)).tensors


def test_names_with_the_models_prefix_and_without_are_the_same(tmp_path, tiny_base):
    bare = shutil.copytree(tiny_base, tmp_path / "bare")
    own = tiny.tensors(bare)
    names = {name.removeprefix("model."): tensor for name, tensor in own.items()}
    tiny.edit(bare, {**dict.fromkeys(own), **names})
    for base, other in ((tiny_base, bare), (bare, tiny_base)):
        fitting = check_fits(remote(base), remote(other))
        assert list(fitting.tensors) == list(remote(base).tensors)
        for name, info in fitting.tensors.items():
            (data,) = fitting.ranges.read(info.file, [(info.offset, info.offset + info.nbytes)])
            whole = own["model." + name.removeprefix("model.")] if name not in own else own[name]
            assert data == whole.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("silent", [False, True])
def test_a_head_that_differs_from_its_tied_embeddings_is_refused_from_afar(tmp_path, silent):
    base = tiny.base(tmp_path / "base", tied=True)
    leaf = tiny.finetune(base, tmp_path / "leaf", 1)
    copy = tiny.tensors(leaf)["model.embed_tokens.weight"]
    tiny.edit(leaf, {"lm_head.weight": copy + 0.01})
    if silent:
        for folder in (base, leaf):
            config = json.loads((folder / "config.json").read_text())
            config.pop("tie_word_embeddings")
            (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"org/model: its lm_head\.weight differs from model\.emb"):
        check_fits(remote(base), remote(leaf))


def test_of_a_large_second_copy_only_pieces_are_read(tmp_path):
    rows = torch.zeros(2000, 1000).bfloat16()
    tensors = {"model.embed_tokens.weight": rows, "lm_head.weight": rows.clone()}
    tiny.config(tiny.bare(tmp_path, tensors), tie_word_embeddings=True)
    found = remote(tmp_path)
    assert list(found.tensors) == ["model.embed_tokens.weight"]
    assert found.ranges.bytes_read < 100_000
