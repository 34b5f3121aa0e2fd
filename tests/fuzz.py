"""
Every parser of strangers' texts, fed with seeded mutations of real ones.

`python -m tests.fuzz --inputs 200000` tries so many for each parser and ends with 1 if one raised
what it must not, took over a second, or let this process grow by 200 MB.
"""

import argparse
import json
import random
import resource
import sys
import time
from pathlib import PurePosixPath

from kinship_daemon.errors import KinshipError, ModelError
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.patterns import Patterns
from kinship_daemon.foreign.shown import LONGEST_WORDS, shown
from kinship_daemon.foreign.yaml_text import parse_yaml
from kinship_daemon.hub.answers import Request, message_of
from kinship_daemon.hub.description import described
from kinship_daemon.hub.front_matter import declared_bases, front_matter, relation, tags
from kinship_daemon.hub.licence import declared
from kinship_daemon.weights.checkpoint import parse_json
from kinship_daemon.weights.header import parse_header

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


# By name: what is tried, what it may raise, what the mutations begin with.
PARSERS = {
    "front matter": (try_card, (), CARDS),
    "yaml": (try_yaml, (Malformed,), CARDS),
    "header": (try_header, (ModelError,), HEADERS),
    "config": (lambda data: parse_json(PATH, data), (ModelError,), CONFIGS),
    "hub answer": (try_answer, (KinshipError,), ANSWERS),
    "patterns": (try_patterns, (Malformed,), PATTERNS),
}


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
        What was wrong, in words; the longest time that one input took, seconds.
    """
    attempt, fine, seeds = PARSERS[name]
    chance, wrong, longest = random.Random(f"{name}{seed}"), [], 0.0
    for _ in range(inputs):
        data = mutated(chance, seeds)
        start = time.perf_counter()
        try:
            attempt(data)
        except fine as error:
            if not str(error).isprintable() or len(str(error)) > 2 * LONGEST_WORDS + 200:
                wrong.append(f"says {str(error)!r} of {data[:300]!r}")
        except Exception as error:
            wrong.append(f"{error!r} of {data[:300]!r}")
        took = time.perf_counter() - start
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
    options = parser.parse_args()
    bad = 0
    for name in PARSERS:
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
