"""
Every parser of strangers' texts, fed with seeded mutations of real ones.

`python -m tests.fuzz --inputs 200000` tries so many for each parser and ends with 1 if one raised
what it must not, took over a second of CPU, or let this process grow by 200 MB. With `--large` each
is given hostile texts of many megabytes instead.
"""

import argparse
import json
import os
import random
import resource
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from kinship_daemon.errors import KinshipError, ModelError, UsageError
from kinship_daemon.evaluate.task_files import TaskFiles
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.patterns import Patterns
from kinship_daemon.foreign.shown import LONGEST_WORDS, shown
from kinship_daemon.foreign.yaml_text import parse_yaml
from kinship_daemon.hub.answers import Request, message_of
from kinship_daemon.hub.description import described
from kinship_daemon.hub.front_matter import declared_bases, front_matter, relation, tags
from kinship_daemon.hub.licence import declared
from kinship_daemon.web.webhook import PATH as WEBHOOK
from kinship_daemon.web.webhook import Webhook
from kinship_daemon.weights.adapter import Adapter
from kinship_daemon.weights.checkpoint import Checkpoint, parse_json
from kinship_daemon.weights.header import parse_header
from kinship_daemon.weights.model_config import (
    built_from,
    generation_settings,
    other_calculation,
    other_settings,
)
from kinship_daemon.weights.pieces import longest_piece
from kinship_daemon.weights.tokenizer import load_tokenizer, tokenizer_files
from kinship_daemon.weights.vocabulary import Vocabulary

MOST_SECONDS, MOST_BYTES = 1.0, 200_000_000
PATH = PurePosixPath("model.safetensors")
HEX = "0123456789abcdef" * 4

CARDS = [
    b"---\nbase_model: [demo/base]\nlicense: mit\ntags: [merge, 4bit]\ndate: 2024-01-01\n---\nx\n",
    b"---\na: &a [x, 1, 1.5, 1:30:20, 0x1f, null, ~, yes]\nb: [*a, *a]\nc: {<<: {d: *a}}\n---\n",
    b"---\n? !!set {a, b}\n: !!int '7'\nx: !!bool y\ny: !!binary aGk=\nz: |\n  text\n---\n",
]
HEADERS = [
    json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b.c": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
        }
    ).encode()
]
CONFIGS = [
    b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 5, "rope_scaling": {"factor": 1e3}}',
    b'{"model": {"vocab": {"\\u00e9": 0, "b": 1}, "merges": [["a", "b"]]}, "added_tokens": []}',
]
ANSWERS = [
    json.dumps(
        {
            "sha": HEX[:40],
            "lastModified": "2024-01-01T00:00:00.000Z",
            "cardData": {"base_model": "a/b", "license": "mit"},
            "config": {"architectures": ["x"]},
            "siblings": [
                {"rfilename": "a.safetensors", "size": 3, "lfs": {"sha256": HEX, "size": 3}},
                {"rfilename": "config.json", "size": 9, "blobId": HEX[:40]},
            ],
            "error": "none",
        }
    ).encode()
]
ADAPTERS = [
    json.dumps(
        {
            "peft_type": "LORA",
            "base_model_name_or_path": "org/base",
            "r": 2,
            "lora_alpha": 4,
            "rank_pattern": {"^model.layers.[0-9].*q_proj": 2},
            "alpha_pattern": {"q_proj": 8},
            "target_modules": ["q_proj"],
            "modules_to_save": None,
            "use_rslora": False,
            "init_lora_weights": True,
        }
    ).encode()
]
# The file's name, and what is in it.
TOKENIZERS = [
    b"tokenizer.json\n" + CONFIGS[1],
    b'tokenizer.json\n{"model": {"vocab": [["a", -1.5], ["b", 0]]}, "added_tokens": [{"id": 2, '
    b'"content": "<s>", "special": true}]}',
    b'vocab.json\n{"a": 0, "\\u0120b": 1}',
    b"vocab.txt\n[PAD]\na\n##b\n",
    b'added_tokens.json\n{"<s>": 1}',
    b'tokenizer_config.json\n{"added_tokens_decoder": {"0": {"content": "<s>", "special": true}}, '
    b'"chat_template": "{{ messages }}", "auto_map": {"AutoTokenizer": ["x.Y", null]}}',
    b'special_tokens_map.json\n{"bos_token": {"content": "<s>"}}',
]
TASKS = [
    b"task: own\ninclude: [other.yaml]\ncustom_dataset: !function code.load\n"
    b"doc_to_text: '{{prompt}}'\nmetric_list:\n"
    b"  - {metric: acc, aggregation: !function code.mean}\n",
    b"group: all\ntask: [own, {task: x, include: &a ../x.yaml}]\nmetadata: {version: 1.0, y: *a}\n",
]
MESSAGES = [
    b"POST /webhook HTTP/1.1\r\nX-Webhook-Secret: secret\r\nContent-Length: 62\r\n\r\n"
    b'{"event": {"action": "update"}, "repo": {"name": "a/b\\u00e9"}}',
    b"POST /webhook HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"GET / HTTP/1.0\r\n\r\n",
]
PIECES_OF_MODELS = [
    b"\n\x0a\n\x03abc\x15\x00\x00\x80\xbf\n\x08\n\x01a\x15\x00\x00\x80\xbf\x12\x04spec\x18\x01",
    b"IQ== 0\nIg== 1\n",
]
PATTERNS = [
    rb"(?:model|base)\.layers\.[0-9]+\.q_proj",
    rb"((a*)*)*b",
    rb"(x{20}){20}",
    rb"(?i)\w+$",
]
PIECES = [b"[" * 200, b"9" * 5000, b"\\ud800", b"\\u0000", b"&a ", b"*a", b"<<: ", b"!!int ", b"-0"]
PIECES += [
    b"!!timestamp ",
    b"{",
    b"}",
    b"]",
    b'"',
    b"\x1b[2J",
    "\u202e".encode(),
    b"\xff",
    b"1e999",
]
PIECES += [b"NaN", b"null", b"true", b"{1000}", b"(", b")*", b"1:" * 60, b"\n", b": ", b"- ", b","]


def try_card(data):
    text = data.decode("utf-8", errors="replace")
    card, problem = front_matter(text)
    relation(card)
    said = [shown(word) for word in (*declared_bases(card), *tags(card), declared(card) or "")]
    json.dumps([card, said]).encode()
    assert problem is None or problem.isprintable()


def try_header(data):
    for info in parse_header(PATH, data, 8 + len(data) + 22).values():
        assert 0 <= info.nbytes <= 22
        assert info.name.isprintable()


def try_answer(data):
    message_of(data)
    described("a/b", Request("http://hub", "http://hub/x", "a/b").parsed(data))


def try_patterns(data):
    Patterns(data.decode("utf-8", errors="replace").split("\n")).first("model.layers.3.q_proj" * 4)


def try_yaml(data):
    parse_yaml(data.decode("utf-8", errors="replace"), Limits(nbytes=200_000, items=50_000))


@cache
def scratch():
    """A folder of this process, with an adapter's weights and their base's; it goes with it."""
    memory = Path("/dev/shm")  # a disk that others use, too, takes longer than what is tried
    kept = TemporaryDirectory(prefix="fuzz", dir=memory if memory.is_dir() else None)
    folder = Path(kept.name)
    for name in ("base", "adapter", "tokenizer", "tasks"):
        (folder / name).mkdir()
    projection = "model.layers.0.self_attn.q_proj"
    save_file({f"{projection}.weight": torch.ones(4, 4)}, folder / "base" / "model.safetensors")
    (folder / "base" / "config.json").write_text("{}")
    factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(4, 2)}
    save_file(
        {f"base_model.model.{projection}.{name}.weight": each for name, each in factors.items()},
        folder / "adapter" / "adapter_model.safetensors",
    )
    (folder / "tasks" / "other.yaml").write_text("test_split: test\n")
    (folder / "tasks" / "code.py").touch()
    return kept, folder


def try_config(data):
    config = parse_json(PATH, data)
    said = [*other_calculation({}, config), *other_calculation(config, {"hidden_act": "silu"})]
    said += [other_settings({}, config) or "", other_settings({"x": 1, **config}, config) or ""]
    assert all(line.isprintable() for line in said)
    json.dumps([built_from(config, config, 3), generation_settings(config)]).encode()


def try_adapter(data):
    folder = scratch()[1]
    (folder / "adapter" / "adapter_config.json").write_bytes(data)
    Adapter.open(Checkpoint.open(folder / "base"), folder / "adapter")


def try_tokenizer(data, load=False):
    folder = scratch()[1] / "tokenizer"
    name, _, content = data.partition(b"\n")
    seeds = [seed.partition(b"\n")[0] for seed in TOKENIZERS]
    name = name if name in seeds else seeds[0]
    for path in folder.iterdir():
        path.unlink()
    (folder / name.decode()).write_bytes(content)
    if b"vocab" not in name and name != seeds[0]:
        (folder / "vocab.txt").write_text("a\nb\n")
    for token, row in (Vocabulary(folder, 3).ids or {}).items():
        assert isinstance(token, str)
        assert row >= 0
    tokenizer_files(folder)
    if load:
        load_tokenizer(folder)


def try_task(data):
    folder = scratch()[1] / "tasks"
    (folder / "own.yaml").write_bytes(data)
    files = TaskFiles([folder])
    files.check()
    files.check_task(folder / "own.yaml")
    files.with_code()


def try_message(data):
    """What the server in front hands on: headers that it could read, and any body."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    headers = [(name.lower(), value.strip()) for name, _, value in lines]
    scope = {
        "type": "http",
        "method": "POST",
        "path": WEBHOOK,
        "query_string": b"",
        "headers": headers,
    }
    asked, answers = [], []

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        answers.append(message)

    receiver = Webhook("secret", lambda: asked.append(1))
    with suppress(StopIteration):  # it waits for nothing: a loop of events would take longer
        receiver.app(scope, receive, send).send(None)
    receiver.close()
    assert answers[0]["status"] in {202, 400, 401, 413}, answers
    assert bool(asked) == (answers[0]["status"] == 202)


# By name: what is tried, what it may raise, what the mutations begin with.
PARSERS = {
    "front matter": (try_card, (), CARDS),
    "yaml": (try_yaml, (Malformed,), CARDS),
    "header": (try_header, (ModelError,), HEADERS),
    "config": (try_config, (ModelError,), CONFIGS),
    "adapter config": (try_adapter, (ModelError,), ADAPTERS),
    "tokenizer": (try_tokenizer, (ModelError,), TOKENIZERS),
    "sentencepiece": (longest_piece, (), PIECES_OF_MODELS),
    "task file": (try_task, (UsageError,), TASKS),
    "webhook": (try_message, (), MESSAGES),
    "hub answer": (try_answer, (KinshipError,), ANSWERS),
    "patterns": (try_patterns, (Malformed,), PATTERNS),
}


def large():
    """Hostile texts of many megabytes: of what, and one after another."""
    yield "100 MB of brackets", b"[" * 100_000_000
    yield "100 MB of one text", b'{"a": "' + b"x" * 100_000_000 + b'"}'
    yield "100 MB of digits", b'{"a": ' + b"9" * 100_000_000 + b"}"
    yield "5 million lists", b'{"a": [' + b"[]," * 5_000_000 + b"[]]}"
    yield "1 million lists", b'{"a": [' + b"[]," * 990_000 + b"[]]}"
    yield "1 million numbers", b'{"a": [' + b"1," * 990_000 + b"1]}"
    for many in (490_000, 590_000, 990_000):  # just below what some parser still reads
        names = b",".join(b'"%x": 1' % number for number in range(many))
        yield f"{many} names", b"{" + names + b"}"
        yield f"{many} tokens", b'{"model": {"vocab": {' + names + b"}}}"
        entries = b",".join(b'["%x", 1]' % number for number in range(many))
        yield f"{many} entries", b'{"model": {"vocab": [' + entries + b"]}}"
    merges = b'["a", "b"],' * 990_000
    yield "merges", b'{"model": {"merges": [' + merges + b'["a", "b"]], "vocab": {}}}'
    added = b",".join(b'{"id": %d, "content": "%x"}' % (n, n) for n in range(99_000))
    yield "99,000 added tokens", b'{"model": {"vocab": {}}, "added_tokens": [' + added + b"]}"
    most = 2**63 - 1
    shape = b'"dtype": "F32", "shape": [%d, %d], "data_offsets": [0, %d]' % (most, most, most)
    yield (
        "64-bit shapes",
        b"{" + b",".join(b'"%x": {%b}' % (n, shape) for n in range(79_000)) + b"}",
    )
    far = b'"dtype": "F32", "shape": [], "data_offsets": [0, 4]'
    yield (
        "300,000 tensors",
        b"{" + b",".join(b'"%x": {%b}' % (n, far) for n in range(300_000)) + b"}",
    )
    ones = b",".join([b"1"] * 1_900_000)
    yield "a million dimensions", b'{"a": {"dtype": "F32", "shape": [%b]}}' % ones
    yield "YAML in 90,000 levels", b"a: " + b"{a: " * 90_000
    yield "200 kB of YAML items", b"- \n" * 66_000
    yield "10 MB of YAML", b"- a\n" * 2_500_000


def measured(attempt, fine, data):
    """Try one text in a process of its own. Returns what was wrong in it; CPU seconds; bytes."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        before, start, wrong = grown(), time.process_time(), ""
        try:
            attempt(data)
        except fine:
            pass
        except BaseException as error:
            wrong = repr(error)[:300]
        told = json.dumps([wrong, time.process_time() - start, grown() - before])
        os.write(into, told.encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as told:
        text = told.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else ["it died", 0.0, 0]


def try_large(names):
    """The worst of every parser, by its name: what was wrong, CPU seconds, bytes."""
    found = {name: [[], 0.0, 0] for name in names}
    scratch()
    for what, data in large():
        for name in names:
            attempt, fine, seeds = PARSERS[name]
            # The tokenizer's texts begin with the name of a file.
            files = {seed.partition(b"\n")[0] + b"\n" for seed in seeds if name == "tokenizer"}
            for file in files or {b""}:
                wrong, seconds, more = measured(attempt, fine, file + data)
                if wrong or seconds > MOST_SECONDS or more > MOST_BYTES:
                    words = wrong or f"{seconds:.1f} s, {more / 1e6:.0f} MB"
                    found[name][0].append(f"{what} {file.decode()}: {words}")
                found[name][1:] = max(seconds, found[name][1]), max(more, found[name][2])
    return found


def mutated(chance, seeds):
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((0, 1, 1, 4, 20)))
        match chance.randrange(4):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at:at] = chance.choice(PIECES)
            case 2:
                del data[at:end]
            case _:
                begin = chance.randrange(len(data) + 1)
                data[at:at] = data[begin : begin + chance.choice((4, 20, 200))]
    return bytes(data)


def fuzz(name, inputs, seed=0):
    """
    Try a parser.

    Returns:
        What was wrong, in words; the longest time that one input took, CPU seconds.
    """
    attempt, fine, seeds = PARSERS[name]
    chance, wrong, longest = random.Random(f"{name}{seed}"), [], 0.0
    for _ in range(inputs):
        data = mutated(chance, seeds)
        start = time.process_time()  # of a machine that is busy otherwise
        try:
            attempt(data)
        except fine as error:
            if not str(error).isprintable() or len(str(error)) > 2 * LONGEST_WORDS + 200:
                wrong.append(f"says {str(error)!r} of {data[:300]!r}")
        except Exception as error:
            wrong.append(f"{error!r} of {data[:300]!r}")
        took = time.process_time() - start
        longest = max(longest, took)
        if took > MOST_SECONDS:
            wrong.append(f"{took:.1f} s for {data[:300]!r}")
    return wrong, longest


def grown():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PARSERS, action="append")
    parser.add_argument("--large", action="store_true", help="hostile texts of many megabytes")
    options = parser.parse_args()
    bad, names = 0, options.only or [*PARSERS]
    if options.large:
        for name, (wrong, seconds, more) in try_large(names).items():
            bad += len(wrong)
            print(f"{name}: at most {seconds:.2f} s and {more / 1e6:.0f} MB", *wrong, sep="\n  ")
        sys.exit(bool(bad))
    for name in names:
        before, start = grown(), time.perf_counter()
        wrong, longest = fuzz(name, options.inputs, options.seed)
        more, took = grown() - before, time.perf_counter() - start
        bad += len(wrong) + (more > MOST_BYTES)
        figures = f"{took:.0f} s, longest {1000 * longest:.0f} ms, {more / 1e6:.0f} MB more"
        print(f"{name}: {options.inputs} inputs, {len(wrong)} wrong, {figures}", flush=True)
        for words in wrong[:5]:
            print(f"  {words}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
