"""Tokenizers of strangers: within limits, without code and places, and never through a link out."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

import tiny
from kinship_daemon.errors import ModelError, machine_words
from kinship_daemon.model_files import most_bytes
from kinship_daemon.weights.checkpoint import read_json
from kinship_daemon.weights.materialise import leaf_assembly, write
from kinship_daemon.weights.pieces import longest_piece
from kinship_daemon.weights.tokenizer import load_tokenizer, tokenizer_files, tokens_of

JINJA = "additional_chat_templates/tool.jinja"
FILES = [
    *("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", JINJA),
]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "hub" / "org" / "model"
    tiny.tokenizer(made, chat_template="{{ messages }}")
    return made


def edited(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(said | changes))


def refused(folder: Path, match: str) -> None:
    start = time.process_time()
    with pytest.raises(ModelError, match=match) as error:
        load_tokenizer(folder)
    assert time.process_time() - start < 5  # transformers may be imported in it
    assert error.value.cause == "model"
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_an_ordinary_tokenizer_is_loaded_as_transformers_loads_it(folder):
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.get_vocab() == theirs.get_vocab() == tokens_of(folder)
    assert ours.chat_template == theirs.chat_template
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours("abc=1").input_ids == theirs("abc=1").input_ids


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_too_large_is_refused_before_it_is_read(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    os.truncate(folder / name, 10**12)  # takes no scratch; to read it would take hours
    refused(folder, f"{name}: over {most_bytes(name)} bytes, which no such file needs")


NESTED = "[" * 100_000 + "]" * 100_000
CORE = '{"model": {"type": "BPE", "vocab": %s, "merges": []}, "added_tokens": %s}'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", NESTED, "cannot be read"),
        ("tokenizer.json", CORE % (NESTED, "[]"), "cannot be read"),
        ("tokenizer.json", CORE % ('{"a": 1.5}', "[]"), "cannot be read: not of the kind"),
        ("tokenizer.json", CORE % ('{"a": ' + "9" * 5000 + "}", "[]"), "cannot be read"),
        ("tokenizer.json", CORE % ("{" + '"a": 1,' * 1_300_000 + '"b": 2}', "[]"), "items"),
        ("tokenizer.json", CORE % ("[" + "[]," * 1_300_000 + "[]]", "[]"), "items"),
        (
            "tokenizer.json",
            CORE % ("{}", "[" + '{"id": 1, "content": "a"},' * 100_001 + '{"id":1,"content":""}]'),
            "adds 100002 tokens; the most allowed is 100000",
        ),
        ("tokenizer.json", '{"added_tokens": []}', "cannot be read: .*model"),
        ("tokenizer.json", "\ud800".encode("utf-8", "surrogatepass"), "cannot be read"),
        ("tokenizer_config.json", NESTED, "cannot be read"),
        ("tokenizer_config.json", '{"a": ' + "[" * 100_000, "cannot be read"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 3}}', "cannot be read"),
        (
            "tokenizer_config.json",
            json.dumps({"added_tokens_decoder": {i: {"content": "a"} for i in range(100_001)}}),
            "adds 100001 tokens",
        ),
        ("tokenizer_config.json", '{"tokenizer_class": ["a"]}', "cannot be loaded"),
        ("added_tokens.json", '{"a": {"b": 1}}', "cannot be read"),
        ("special_tokens_map.json", "[]", "cannot be read"),
        ("chat_template.jinja", b"\xff\xfe", "cannot be read: not UTF-8"),
        (JINJA, b"\xff\xfe", "cannot be read: not UTF-8"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_in_one_line(folder, name, text, said):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder, said)


def test_more_templates_than_anyone_needs_are_refused(folder):
    (folder / JINJA).parent.mkdir()
    for number in range(51):
        (folder / JINJA).with_name(f"{number}.jinja").touch()
    refused(folder, "over 50 chat templates")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "merges.txt"])
@pytest.mark.parametrize("target", ["../../../secret", "../../secret", "../other/secret"])
def test_a_link_out_of_the_model_is_not_followed(folder, tmp_path, name, target):
    secret = folder / target
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret.resolve())
    if name == "tokenizer.json":
        refused(folder, "is a link out of the model's folder, which is not followed")
    else:
        # There is a tokenizer without it: it is not the model's.
        assert name not in tokenizer_files(folder)
        load_tokenizer(folder)


@pytest.mark.parametrize("target", ["../../../secret", "../other/secret", "config.json", "pipe"])
def test_a_config_that_is_a_link_elsewhere_or_no_file_is_refused(folder, target):
    path = folder / "config.json"
    path.unlink(missing_ok=True)
    if target == "pipe":
        os.mkfifo(path)  # whoever reads it waits for ever
    else:
        (folder / target).parent.mkdir(exist_ok=True)
        path.symlink_to((folder / target).absolute())
    with pytest.raises(ModelError, match=r"a link out of|is no file|cannot be read"):
        read_json(path)


def test_what_a_generation_config_links_to_is_not_published(tiny_base, tmp_path):
    leaf = tiny.finetune(tiny_base, tmp_path / "leaf", 1)
    secret = tmp_path / "secret.json"
    (leaf / "generation_config.json").replace(secret)
    (leaf / "generation_config.json").symlink_to(secret)
    write(leaf_assembly(leaf, "x"), tmp_path / "out")
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_files_that_two_models_of_a_hub_share_are_read(folder):
    copy = folder.with_name("copy")
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    assert load_tokenizer(copy).get_vocab() == tokens_of(folder)


def test_a_snapshot_of_the_hubs_cache_is_read(folder, tmp_path):
    cache = tmp_path / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blob := cache / "blobs" / f"{number:040}")
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    assert load_tokenizer(snapshot).get_vocab() == tokens_of(folder)


REACHING = {
    "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
    "vocab_file": "/etc/passwd",
    "tokenizer_file": "/etc/passwd",
    "special_tokens_map_file": "/etc/passwd",
    "fast_tokenizer_files": ["tokenizer.4.0.0.json"],
    "_name_or_path": "/home/evil",
}


def test_settings_that_choose_code_or_files_are_neither_followed_nor_carried(folder, tmp_path):
    before = load_tokenizer(folder)
    edited(folder, "tokenizer_config.json", **REACHING)
    (folder / "tokenizer.4.0.0.json").write_text("{}")
    found = load_tokenizer(folder)
    assert found.get_vocab() == before.get_vocab()
    assert found.chat_template == before.chat_template
    found.save_pretrained(tmp_path / "out")
    text = "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))
    assert not [word for word in ("evil", "passwd", "4.0.0") if word in text]


def test_a_sentencepiece_model_is_read_and_a_broken_one_refused(tmp_path):
    tiny.base(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    edited(tmp_path / "model", "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    texts = tmp_path / "texts"
    texts.write_text("the cat sat on the mat\nthe dog ate the frog\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(tmp_path / "model" / "tokenizer"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    found = tokens_of(tmp_path / "model")
    assert {"▁the", "<unk>"} <= found.keys()
    model = tmp_path / "model" / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:200])
    refused(tmp_path / "model", "cannot be read: neither SentencePiece's nor tiktoken's")
    with pytest.raises(ModelError, match="cannot be read"):
        tokens_of(tmp_path / "model")
    # What transformers would take days to split at every place.
    length = b"\x80\x89\x7a"  # 2,000,000
    model.write_bytes(b"\n" + length + bytes(2_000_000))
    refused(tmp_path / "model", "has a token of 2000000 bytes; the most allowed is 2000")


@pytest.mark.parametrize(
    ("content", "longest"),
    [
        (b"\n\x05\n\x03abc\n\x03\n\x01a\x12\x04spec\x18\x01", 5),
        (b"IQ== 0\nIg== 1\n", 6),
        (b"", None),
        (b"\n\x05\n\x03ab", None),  # cut
        (b"\x0b", None),  # a group, which no such file has
        (b"\xff" * 30, None),
        (b"\x08\x01" * 1_000_001, None),
    ],
)
def test_the_longest_token_of_a_sentencepiece_file(content, longest):
    assert longest_piece(content) == longest


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        Exception("Too many open files (os error 24)"),  # as the library in Rust says it
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_a_tokenizer(folder, monkeypatch, fault):
    def fail(*_arguments, **_more):
        raise ValueError("cannot be loaded") from fault

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(OSError, match=r"No |Too many") as caught:
        load_tokenizer(folder)
    assert machine_words(caught.value).endswith(", then start again")


def test_a_stranger_cannot_tell_of_what_the_machine_lacks(folder, monkeypatch):
    def fail(*_arguments, **_more):
        raise ValueError("no token 'Too many open files (os error 24)'")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match="cannot be loaded: no token"):
        load_tokenizer(folder)
