"""Strangers' texts: whatever they hold, they are read within limits or refused in plain words."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

import fuzz
from kinship_daemon.errors import ModelError
from kinship_daemon.foreign.json_text import parse_json
from kinship_daemon.foreign.limits import Limits, Malformed
from kinship_daemon.foreign.patterns import Patterns
from kinship_daemon.foreign.shown import clean, one_line, shown
from kinship_daemon.foreign.yaml_text import parse_yaml
from kinship_daemon.hub.front_matter import front_matter
from kinship_daemon.weights.header import read_header

SMALL = Limits(nbytes=20_000, depth=20, items=1000, string=5000)


@given(st.text(st.characters(), max_size=400) | st.integers() | st.lists(st.text()))
def test_what_is_shown_is_one_short_line_that_can_be_written(value):
    line = shown(value)
    assert line.isprintable()
    assert len(line) <= 200
    line.encode()


def test_plain_words_are_shown_as_they_are_and_others_escaped():
    assert shown("Größe 日本") == "Größe 日本"
    assert shown("a\n\x1b[2J\u202e\ud800") == r"a\n\x1b[2J\u202e\ud800"
    assert shown(10**5000) == "a number of 16610 bits"
    assert one_line("x" * 5000).endswith("...")
    assert clean({"a": ["b\n", 3]}) == {"a": ["b\\n", 3]}


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
)


@given(NESTED)
def test_sound_json_is_read_as_pythons_own_parser_reads_it(value):
    text = json.dumps(value)
    try:
        assert parse_json(text, SMALL) == value
    except Malformed:
        assert r"\ud" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 1500, "deep"),
        ("[" * 30 + "]" * 30, "deep"),
        ("9" * 5000, "digits"),
        ("1." + "9" * 5000, "digits"),
        (r'"\ud800"', "surrogate"),
        ("[" + "1," * 2000 + "1]", "items"),
        ('"' + "x" * 6000 + '"', "5000 characters"),
        (" " * 30_000, "too long"),
        ("{,}", "not JSON"),
    ],
)
def test_json_beyond_the_limits_is_refused_in_plain_words(text, words):
    with pytest.raises(Malformed, match=words):
        parse_json(text, SMALL)


def test_only_where_it_is_asked_for_must_a_name_stand_once():
    assert parse_json('{"a": 1, "a": 2}', SMALL) == {"a": 2}
    with pytest.raises(Malformed, match="twice"):
        parse_json('{"a": 1, "a": 2}', SMALL, strict=True)


LAUGHS = "a0: &a0 [x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}], y{i}: 1}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        MERGES,
        "a: &a [*a]",
        "a: *b",
        "x: !!int ''",
        "x: !!bool y",
        "x: !!timestamp y",
        "x: 2024-13-45",
        "x: !!s" + "9" * 5000 + " y",
        "x: !!python/object:os.system y",
        "x: !!set {a}",
        "x: !!binary aGk=",
        "x: 0x" + "f" * 5000,
        "x: " + "1:" * 4000 + "1",
        "? 0x" + "f" * 5000 + "\n: 1",
        "? [a]\n: 1",
        "[" * 900,
        "x: " + "y" * 6000,
        "a: 1\n---\nb: 2",
    ],
)
def test_yaml_that_is_hostile_is_refused_at_once(text):
    start = time.process_time()
    with pytest.raises(Malformed):
        parse_yaml(text, SMALL)
    assert time.process_time() - start < 1


def test_yaml_with_anchors_and_dates_is_read():
    assert parse_yaml("a: &a [1, x]\nb: *a\nc: 2024-12-31", SMALL) == {
        "a": [1, "x"],
        "b": [1, "x"],
        "c": "2024-12-31",
    }


def test_what_is_wrong_with_front_matter_is_named_by_the_readmes_own_lines():
    _, problem = front_matter("---\na: 1\nb: [\n---\n")
    assert problem is not None
    assert "line 4" in problem


def test_patterns_match_as_pefts_and_the_first_counts():
    patterns = Patterns(["q_proj", r"layers\.\d\..*", "(k|v)_proj"])
    assert patterns.first("model.layers.3.q_proj") == "q_proj"
    assert patterns.first("model.layers.3.mlp") == r"layers\.\d\..*"
    assert patterns.first("model.k_proj") == "(k|v)_proj"
    assert patterns.first("model.my_k_proj") is None


@pytest.mark.parametrize(
    "pattern",
    ["((((a*)*)*)*)*b", "(a|aa)+$", "(.*)(.*)(.*)(.*)x", "(a?){200}b", "(([a-z0-9_.]+)+)!"],
)
def test_a_pattern_that_takes_others_days_is_answered_at_once(pattern):
    start = time.process_time()
    try:
        found = Patterns([pattern]).first("a" * 200)
    except Malformed:
        found = None  # refused: fine, too
    assert found in {None, pattern}
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "pattern", ["(", "a)|(b", r"(a)\1", "(?=a)", "x" * 2000, "((a{999}){999})"]
)
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(Malformed, match="pattern"):
        Patterns([pattern])


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_our_header_check_admits_the_safetensors_library_opens(tmp_path_factory, chance):
    file = tmp_path_factory.getbasetemp() / "header.safetensors"
    text = fuzz.mutated(chance, fuzz.HEADERS)
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(22))
    try:
        read_header(file)
    except ModelError:
        return
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise AssertionError(f"{error}: {text!r}") from error


@pytest.mark.parametrize("name", sorted(fuzz.PARSERS))
def test_mutations_are_read_or_refused_but_raise_nothing_else(name):
    # Those that read folders take milliseconds.
    wrong, _ = fuzz.fuzz(name, 400 if name in {"adapter config", "task file"} else 2000, seed=1)
    assert wrong == []
