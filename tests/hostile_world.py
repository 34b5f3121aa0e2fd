"""
Repos that try to stop a daemon, to cheat it or to leak through it, among good ones.

Each kind is made from a seed, so that no two repos of a kind are the same. What a repo holds is a
mapping of paths to bytes, or to what only a folder can hold: a link, a pipe, a hole, a file of
another time.
"""

import json
import os
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import load, save

from kinship_daemon import demo

__all__ = [
    "BASE",
    "HARMLESS",
    "KINDS",
    "Dated",
    "Hole",
    "Link",
    "Pipe",
    "Stranger",
    "base_folder",
    "hostile_repos",
]

BASE = demo.BASE
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What acts in a terminal or turns the direction of writing, and half of a surrogate pair.
UGLY = "\x1b[2J\x07\r\n\u202e\u2066\u0000\u009b31m"


@dataclass(frozen=True)
class Link:
    """A symbolic link; `{root}` stands for the hub's own folder."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """A named pipe, at which whoever opens it waits for ever."""


@dataclass(frozen=True)
class Hole:
    """A file of so many bytes, of which none is on the disk."""

    nbytes: int


@dataclass(frozen=True)
class Dated:
    """A file that says that it was changed then, in seconds since 1970."""

    data: bytes
    seconds: int


Entry = bytes | Link | Pipe | Hole | Dated
Files = dict[str, Entry]
Kind = Callable[[random.Random, dict[str, bytes]], Files]


@dataclass(frozen=True)
class Stranger:
    """
    A repo.

    Attributes:
        kind: "good", or the name of one of KINDS.
    """

    repo_id: str
    kind: str
    files: Mapping[str, Entry]

    @property
    def needs_folder(self) -> bool:
        return not all(isinstance(each, bytes) for each in self.files.values())


KINDS: dict[str, Kind] = {}
# Only their words are hostile: they may be admitted, without the words.
HARMLESS: set[str] = set()


def hostile_repos(good: int, hostile: int, *, folder: bool, seed: int = 0) -> Iterator[Stranger]:
    """So many good ones, and so many hostile ones of all kinds in turn."""
    whole = {path.name: path.read_bytes() for path in sorted(base_folder().iterdir())}
    del whole["README.md"]
    for number in range(good):
        files = {**whole, WEIGHTS: _noisy(whole, seed + number), "README.md": _card()}
        yield Stranger(f"good-{number % 9}/tuned-{number}", "good", files)
    kinds = [name for name in KINDS if folder or not name.startswith("folder_")]
    for number in range(hostile):
        kind = kinds[number % len(kinds)]
        noise = random.Random(f"{seed} {kind} {number}")
        # Of weights of its own: what is wrong with it is not that it is a copy.
        own: dict[str, bytes] = {**whole, WEIGHTS: _noisy(whole, -1 - number)}
        files = {"README.md": _card(), **KINDS[kind](noise, own)}
        yield Stranger(f"bad-{number % 7}/{kind.replace('_', '-')}-{number}", kind, files)


def base_folder() -> Path:
    return demo.HUB / BASE


def hostile(kind: Kind) -> Kind:
    KINDS[kind.__name__.removeprefix("_")] = kind
    return kind


def harmless(kind: Kind) -> Kind:
    HARMLESS.add(kind.__name__.removeprefix("_"))
    return hostile(kind)


def _card(text: str = "", **more: object) -> bytes:
    fields = {"base_model": BASE, "base_model_relation": "finetune", "license": "mit", **more}
    return f"---\n{yaml.safe_dump(fields)}{text}\n---\n# x\n".encode("utf-8", "surrogatepass")


def _noisy(whole: Mapping[str, bytes], seed: int) -> bytes:
    noise = torch.Generator().manual_seed(seed % (1 << 32))
    weights = load(whole[WEIGHTS])
    return save(
        {
            name: (w.float() + 0.02 * torch.randn(w.shape, generator=noise)).to(w.dtype)
            for name, w in sorted(weights.items())
        },
        {"format": "pt"},
    )


def _parts(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _whole(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _with(own: dict[str, bytes], **tensors: torch.Tensor | None) -> Files:
    changed = {**load(own[WEIGHTS]), **{k.replace("__", "."): v for k, v in tensors.items()}}
    return {**own, WEIGHTS: save({k: v for k, v in changed.items() if v is not None})}


def _configured(own: dict[str, bytes], **changes: object) -> Files:
    config = json.loads(own["config.json"]) | changes
    return {**own, "config.json": json.dumps(config).encode()}


def _without(own: Mapping[str, Entry], *names: str) -> Files:
    return {name: data for name, data in own.items() if name not in names}


# The header of the weights


@hostile
def _header_length(noise, own):
    length = noise.choice([0, 1, 1 << 27, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    return {**own, WEIGHTS: struct.pack("<Q", length) + own[WEIGHTS][8:]}


@hostile
def _header_text(noise, own):
    deep = noise.randrange(1000, 200_000)
    text = [
        noise.randbytes(1000),
        b"[" * deep,
        b'{"a":' * deep,
        b'{"a": ' + b"9" * deep + b"}",
        b'{"a": 1e999, "b": NaN}',
        b"\xff\xfe{\x00}\x00",
        b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b"[]",
        b"",
    ]
    return {**own, WEIGHTS: _whole(noise.choice(text), own[WEIGHTS][-1000:])}


@hostile
def _header_fields(noise, own):
    header, data = _parts(own[WEIGHTS])
    name = noise.choice(sorted(set(header) - {"__metadata__"}))
    odd: list[dict] = [
        {"shape": [1 << 62, 1 << 62]},
        {"shape": [1] * noise.randrange(1000, 100_000)},
        {"shape": [-1, 5]},
        {"shape": [10**400]},
        {"shape": "wide"},
        {"shape": []},
        {"dtype": noise.choice(["F4", "C128", "BOOL", "", UGLY, 7, None, ["F32"], "x" * 9999])},
        {"data_offsets": [noise.choice([-8, 1 << 70, 3.5, "0", None]), 16]},
        {"data_offsets": [16, 0]},
        {"data_offsets": []},
    ]
    header[name] = header[name] | noise.choice(odd)
    return {**own, WEIGHTS: _whole(header, data)}


@hostile
def _header_metadata(noise, own):
    header, data = _parts(own[WEIGHTS])
    odd = [{"a": 1}, ["a"], "pt", {"a": {"b": "c"}}, {"a": None}, 7]
    header["__metadata__"] = noise.choice(odd)
    return {**own, WEIGHTS: _whole(header, data)}


@hostile
def _header_names(noise, own):
    header, data = _parts(own[WEIGHTS])
    name = noise.choice(sorted(set(header) - {"__metadata__"}))
    long = "n" * noise.randrange(300_000, 1_000_000)
    header[noise.choice([UGLY * 5, long, "", "../../x", "a" + "\u202e" * 5000])] = header.pop(name)
    return {**own, WEIGHTS: _whole(header, data)}


@hostile
def _header_crowd(noise, own):
    header, data = _parts(own[WEIGHTS])
    empty = {"dtype": "BF16", "shape": [0], "data_offsets": [len(data), len(data)]}
    header |= {f"t{n}": empty for n in range(noise.randrange(20_000, 60_000))}
    return {**own, WEIGHTS: _whole(header, data)}


@hostile
def _header_overlap(noise, own):
    header, data = _parts(own[WEIGHTS])
    names = sorted(set(header) - {"__metadata__"})
    first, second = noise.sample([n for n in names if "norm" in n], 2)
    header[first] = header[second]
    return {**own, WEIGHTS: _whole(header, data)}


# The weights


@hostile
def _weights_cut(noise, own):
    data = own[WEIGHTS]
    ends = [data[: noise.randrange(9, len(data) - 1)], data + b"more", b"", data[:7]]
    return {**own, WEIGHTS: noise.choice(ends)}


@hostile
def _weights_no_numbers(noise, own):
    wrong = noise.choice([torch.nan, torch.inf, -torch.inf])
    norm = load(own[WEIGHTS])["model.norm.weight"].clone()
    norm[noise.randrange(len(norm))] = wrong
    return _with(own, model__norm__weight=norm)


@hostile
def _weights_empty(noise, own):
    name = noise.choice(["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
    tensor = load(own[WEIGHTS])[name]
    return _with(own, **{name: tensor[:0]})


@hostile
def _weights_lacking(noise, own):
    name = noise.choice(sorted(load(own[WEIGHTS])))
    return _with(own, **{name: None})


@hostile
def _weights_shapes(noise, own):
    weights = load(own[WEIGHTS])
    name = noise.choice(sorted(n for n, w in weights.items() if w.dim() == 2))
    tensor = weights[name]
    return _with(own, **{name: noise.choice([tensor[:-1], tensor.reshape(1, *tensor.shape)])})


@hostile
def _weights_quantised(noise, own):
    weights = load(own[WEIGHTS])
    name = noise.choice(sorted(n for n in weights if "proj" in n))
    scale = torch.ones(weights[name].shape[0])
    return _with(own, **{name: weights[name].to(torch.int8), f"{name}_scale": scale})


@hostile
def _weights_pointer(noise, own):
    name = noise.choice([WEIGHTS, "config.json"])
    oid = noise.randbytes(32).hex()
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 664456\n"
    return {**own, name: text.encode()}


@hostile
def _weights_pickled(noise, own):
    name = noise.choice(
        ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "x" * 200 + ".bin"]
    )
    return {**_without(own, WEIGHTS), name: b"cos\nsystem\n(S'touch /tmp/owned'\ntR."}


@hostile
def _weights_none(noise, own):
    kept = noise.sample(sorted(_without(own, WEIGHTS)), 2)
    return {name: own[name] for name in kept}


@hostile
def _weights_tied(_noise, own):
    """It says that its head is its embeddings, and it is not."""
    return _configured(own, tie_word_embeddings=True)


# Shards


@hostile
def _shards(noise, own):
    weights = load(own[WEIGHTS])
    names = sorted(weights)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    halves = (names[::2], names[1::2])
    place = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    odd: list[object] = [
        {"weight_map": {**place, names[0]: "model-00009-of-00009.safetensors"}},
        {"weight_map": {**place, names[0]: "../../../base/model.safetensors"}},
        {"weight_map": {**place, names[0]: "/etc/passwd"}},
        {"weight_map": {**place, names[0]: UGLY}},
        {"weight_map": dict.fromkeys(names, shards[0])},
        {"weight_map": {name: shards[1 - shards.index(where)] for name, where in place.items()}},
        {"weight_map": list(place)},
        {"weight_map": dict.fromkeys(names, 7)},
        {"weight_map": {}},
        {"metadata": {"total_size": 1}},
        [],
    ]
    packed: Files = {
        shard: save({name: weights[name] for name in half})
        for shard, half in zip(shards, halves, strict=True)
    }
    return {**_without(own, WEIGHTS), **packed, INDEX: json.dumps(noise.choice(odd)).encode()}


# config.json


@hostile
def _config_names(noise, own):
    odd = [
        {"architectures": [7]},
        {"architectures": {"a": "b"}},
        {"architectures": "MistralForCausalLM" * 1000},
        {"architectures": [UGLY]},
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        {"architectures": ["\ud800"]},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
    ]
    return _configured(own, **noise.choice(odd))


@hostile
def _config_sizes(noise, own):
    key = noise.choice(["hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"])
    value = noise.choice([10**9, 10**400, -1, 0, 2.5, "64", [128], {"a": 1}, float("inf")])
    return _configured(own, **{key: value})


@hostile
def _config_makes_another_model(noise, own):
    odd: list[dict] = [
        {"hidden_act": noise.choice(["relu", "gelu", UGLY, "os.system"])},
        {"rope_theta": 1e9},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 1e9}},
        {"num_hidden_layers": 3},
        {"quantization_config": {"quant_method": noise.choice(["gptq", "bitsandbytes", UGLY])}},
    ]
    return _configured(own, **noise.choice(odd))


@hostile
def _config_text(noise, own):
    text = noise.choice(
        [
            b"",
            b"null",
            b"{" * 100_000,
            b"\xef\xbb\xbf" + noise.randbytes(200),
            own["config.json"].decode().encode("utf-16"),
            b'{"architectures": ["MistralForCausalLM"], "x": ' + b"[" * 90_000,
            b'{"a": "' + b"x" * 12_000_000 + b'"}',
        ]
    )
    return {**own, "config.json": text}


@harmless
def _config_code(noise, own):
    """Code, kernels and paths that transformers would take from a config."""
    odd: list[dict] = [
        {"auto_map": {"AutoModelForCausalLM": "evil--repo.Evil"}, "trust_remote_code": True},
        {"attn_implementation": "kernels-community/evil", "_attn_implementation": "evil/kernel"},
        {"_name_or_path": "/etc/passwd", "tokenizer_class": "Evil", UGLY: UGLY},
        {"model_type": noise.choice(["gpt2", UGLY, "../x", 5, ["mistral"]])},
        {"vocab_size": 10**9, "num_hidden_layers": None},
    ]
    code = b"import os; os.system('touch /tmp/owned')"
    return {**_configured(own, **noise.choice(odd)), "modeling_evil.py": code}


# README.md


@hostile
def _card_bomb(noise, own):
    width = noise.randrange(9, 20)
    rows = [f"a0: &a0 [{','.join('x' * width)}]"]
    for n in range(1, 12):
        rows.append(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * width)}]")
    return {**own, "README.md": _card("\n".join([*rows, "library_name: *a11"]))}


@hostile
def _card_constructors(noise, own):
    odd = [
        "x: !!int ''",
        "x: !!timestamp y",
        "x: !!python/object/apply:os.system ['touch /tmp/owned']",
        "x: !!binary '\u00e9'",
        "? 0x" + "f" * 5000 + "\n: 1",
        "x: " + "[" * 5000,
        "x: 'open",
        "x: &a [*a]",
        "<<: [7]",
        "x: *nobody",
    ]
    return {**own, "README.md": _card(noise.choice(odd))}


@hostile
def _card_without_end(_noise, own):
    lines = "x: y\n" * 1000
    return {**own, "README.md": f"---\nbase_model: {BASE}\n{lines}".encode()}


@harmless
def _card_words(noise, own):
    odd = noise.choice([UGLY, "l" * 100_000, "\u202egpl", "<script>alert(1)</script>", "](x)`|"])
    key = noise.choice(["license", "library_name", "language", "pipeline_tag", "model_name"])
    return {**own, "README.md": _card(**{key: odd})}


@harmless
def _card_crowd(noise, own):
    many = [f"tag-{n}" for n in range(noise.randrange(20_000, 40_000))]
    return {**own, "README.md": _card(**{noise.choice(["tags", "datasets", "metrics"]): many})}


# Adapters


def _adapter(own: dict[str, bytes], config: Mapping[str, object], scale: float = 0.05) -> Files:
    """An adapter of rank 2 as PEFT saves it, with changes to its config."""
    weights = load(own[WEIGHTS])
    tensors = {}
    for name in sorted(n for n in weights if n.endswith("q_proj.weight")):
        module = "base_model.model." + name.removesuffix(".weight")
        out, into = weights[name].shape
        tensors[f"{module}.lora_A.weight"] = torch.randn(2, into)
        tensors[f"{module}.lora_B.weight"] = scale * torch.randn(out, 2)
    plain = {
        "peft_type": "LORA",
        "base_model_name_or_path": BASE,
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    return {
        ADAPTER_CONFIG: json.dumps(plain | config).encode(),
        ADAPTER: save(tensors, {"format": "pt"}),
        "README.md": _card(base_model_relation="adapter", library_name="peft"),
    }


@hostile
def _adapter_patterns(noise, own):
    pattern = noise.choice(["(a+)+$", "(.*)*(.*)*x", "(", "(?P<a>x)(?P=a)", UGLY, "x" * 100_000])
    odd: list[dict] = [
        {"rank_pattern": {pattern: 8, ".*q_proj": 5}},
        {"alpha_pattern": {".*q_proj": noise.choice([10**400, "much", None, [1]])}},
        {"rank_pattern": [pattern]},
    ]
    return _adapter(own, noise.choice(odd))


@hostile
def _adapter_settings(noise, own):
    odd: list[dict] = [
        {"r": noise.choice([0, -1, 10**400, 2.5, "two", None])},
        {"lora_alpha": noise.choice([10**400, "four", [4], {}])},
        {"peft_type": noise.choice(["IA3", "PREFIX_TUNING", 7, UGLY])},
        {"base_model_name_or_path": "other/base"},
        {"use_dora": True},
    ]
    return _adapter(own, noise.choice(odd))


@harmless
def _adapter_words(noise, own):
    """What says nothing of its tensors: they alone tell what it changes."""
    odd: list[dict] = [
        {"target_modules": "(a+)+$(" + UGLY, "layers_pattern": [UGLY]},
        {"modules_to_save": ["lm_head"]},
        {"fan_in_fan_out": True, "bias": "all"},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "os"}, "revision": UGLY},
    ]
    return _adapter(own, noise.choice(odd))


@hostile
def _adapter_without_effect(noise, own):
    files = _adapter(own, {}, scale=0.0)
    return {**files, ADAPTER: noise.choice([files[ADAPTER], save({}), b"", b"\x00" * 100])}


# The tokenizer


@hostile
def _tokenizer(noise, own):
    odd = [
        b"{" * 50_000,
        b"null",
        noise.randbytes(500),
        json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": [UGLY]}}).encode(),
        b'{"model": {"vocab": {"\\ud800": 0}}}',
    ]
    return {**own, "tokenizer.json": noise.choice(odd)}


@harmless
def _tokenizer_beyond(noise, own):
    """Tokens for which the weights have no rows: what is asked with them fails."""
    tokenizer = json.loads(own["tokenizer.json"])
    vocabulary = tokenizer["model"]["vocab"]
    more = noise.randrange(1, 5000)
    tokenizer["model"]["vocab"] = {token: n + more for token, n in vocabulary.items()}
    return {**own, "tokenizer.json": json.dumps(tokenizer).encode()}


@harmless
def _tokenizer_pieces(noise, own):
    """A SentencePiece model with a token of megabytes, which would take days to load."""
    piece = b"x" * noise.randrange(3000, 3_000_000)
    entry = b"\x0a" + _varint(len(piece)) + piece + b"\x15\x00\x00\x80\xbf"
    model = b"\x0a" + _varint(len(entry)) + entry
    return {**own, "tokenizer.model": model}


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


# generation_config.json


@harmless
def _generation_beams(noise, own):
    """Beams that no machine has the memory for: such a setting is left out."""
    key = noise.choice(["num_beams", "num_return_sequences", "num_beam_groups"])
    settings = {key: noise.choice([17, 10**9, 10**400])}
    return {**own, "generation_config.json": json.dumps(settings).encode()}


# Paths


@harmless
def _paths(noise, own):
    odd = [
        "d/" * 60 + "deep.txt",
        "n" * 250,
        "\u202egnp.exe",
        "two\nlines\x1b[2J.txt",
        "a b?c=d&e#f%2e%2e.txt",
        "tokenizer/../x" if noise.random() < 0 else "\u00e9\u0301.json",
    ]
    return {**own, noise.choice(odd): b"x"}


@hostile
def _folder_links(noise, own):
    name = noise.choice([WEIGHTS, "config.json", "tokenizer.json", "README.md", "tokenizer.model"])
    target = noise.choice(
        ["/etc/passwd", "/dev/zero", "/proc/self/environ", "{root}/../outside/secret.json", name]
    )
    files: Files = {**own, name: Link(target)}
    if name == "tokenizer.model":
        # Beside what is good: not carried along, and no reason to refuse it.
        files |= {WEIGHTS: Link("{root}/../outside/model.safetensors")}
    return files


@hostile
def _folder_pipes(noise, own):
    name = noise.choice([WEIGHTS, "config.json", "README.md", "tokenizer.json"])
    return {**own, name: Pipe()}


@hostile
def _folder_folders(noise, own):
    name = noise.choice([WEIGHTS, "config.json", "tokenizer.json"])
    return {**_without(own, name), f"{name}/inside": b"x"}


@harmless
def _folder_names(noise, own):
    """Names that are no text, and folders in folders that go on for long."""
    odd = [
        b"notes-\xff\xfe.txt",
        b"\xc3.safetensors",
        b"\xff/" * 5 + b"x",
        b"d/" * noise.randrange(61, 300) + b"x",
        b"n" * 255,
    ]
    return {**own, os.fsdecode(noise.choice(odd)): b"x"}


@hostile
def _folder_holes(noise, own):
    name = noise.choice([WEIGHTS, "tokenizer.json", "notes.bin", "config.json"])
    return {**own, name: Hole(noise.choice([1 << 31, 1 << 40, 3 << 40]))}


@harmless
def _folder_years(noise, own):
    name = noise.choice([WEIGHTS, "config.json", "README.md"])
    data = own.get(name, _card())
    # Before 1970, of this day, and as far as the disk goes.
    return {**own, name: Dated(data, noise.choice([-(1 << 31), 0, 1 << 31, (1 << 34) - 1]))}
