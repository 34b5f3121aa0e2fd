"""Refusals, and what a card declares."""

import re
from datetime import UTC, datetime

import pytest

from kinship_daemon.hub.front_matter import front_matter, relation
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.records import Listing, Repo, RepoFile
from kinship_daemon.hub.triage import Refusal, Rules, listed_refusal, refusal, remarks

BASE = "org/base"
GOOD = {"config.json": 500, "tokenizer.json": 900, "model.safetensors": 10**9}


def repo(card=None, files=GOOD, **attributes):
    return Repo(
        **{
            "id": "org/tuned",
            "revision": "0" * 40,
            "modified": datetime(2025, 1, 1, tzinfo=UTC),
            "card": {"base_model": BASE} | (card or {}),
            "files": tuple(RepoFile(path, size) for path, size in files.items()),
        }
        | attributes
    )


def without(*names):
    return {path: size for path, size in GOOD.items() if path not in names}


def test_an_ordinary_fine_tune_may_be_fetched_whatever_its_licence():
    assert refusal(repo(), BASE, Rules()) is None
    assert refusal(repo({"license": "cc-by-nc-4.0"}), BASE, Rules()) is None
    assert refusal(repo(card={"base_model": [BASE]}), BASE, Rules()) is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (repo(disabled=True), "disabled"),
        (repo(gated=True), "gated .triage.allow_gated"),
        (repo(problem="README.md's front matter cannot be read: not YAML"), "front matter"),
        (repo(id=BASE), "the base itself"),
        (repo({"base_model_relation": "quantized"}), "a quantised copy"),
        (repo({"base_model_relation": "merge"}), "a merge .triage.allow_merges"),
        (repo({"base_model": [BASE, "org/another"]}), "a merge"),
        (repo({"tags": ["merge"]}), "a merge"),
        (repo(files={"adapter_config.json": 1}), "no weights"),
        (repo(files={"adapter_config.json": 1, "adapter_model.bin": 9}), "only pickle weights"),
        (repo(files=GOOD | {"model.gguf": 1}), "a quantised copy"),
        (repo({"tags": ["GPTQ"]}), "a quantised copy"),
        (repo(id="TheBloke/Tuned-7B-AWQ"), "quantised, by its name or tags .awq"),
        (repo(id="org/tuned-4bit"), "quantised, by its name or tags .4bit"),
        (repo(config={"quantization_config": {"bits": 4}}), "has a quantization_config"),
        (repo(files=without("config.json")), "no config.json"),
        (repo(files=without("tokenizer.json")), "no tokenizer files"),
        (repo(files=without("tokenizer.json") | {"vocab.json": 1}), "no tokenizer files"),
        (
            repo(files=without("model.safetensors") | {"pytorch_model.bin": 9}),
            r"only pickle weights \(pytorch_model.bin\); model.safetensors is needed",
        ),
        (repo(files=without("model.safetensors")), "no weights"),
        (
            repo(files=without("model.safetensors") | {"consolidated.safetensors": 1}),
            "no weights; model.safetensors is needed, or shards with their index",
        ),
        (repo(files=GOOD | {"model.safetensors": 50 * 10**9}), "weights of 50.0 GB, more than"),
        (
            repo(files=GOOD | {"tokenizer.json": 10**9}),
            "tokenizer.json of 1000.0 MB; the most allowed is 64 MB",
        ),
        (repo(files=GOOD | {"chat_template.jinja": 2_000_000}), "jinja of 2.0 MB; the most"),
        (
            repo(files=GOOD | {f"additional_chat_templates/{n}.jinja": 1 for n in range(51)}),
            "over 50 chat templates",
        ),
    ],
)
def test_a_refusal_says_why(candidate, reason):
    assert re.search(reason, refusal(candidate, BASE, Rules()).reason)


@pytest.mark.parametrize(
    ("card", "files"),
    [
        ({}, {"adapter_config.json": 500, "adapter_model.safetensors": 10**7}),
        ({"base_model_relation": "adapter"}, GOOD),
        ({"library_name": "peft"}, GOOD | {"adapter_config.json": 500}),
    ],
)
def test_adapters_are_admitted_unless_the_user_says_no(card, files):
    """They have their base's config and tokenizer, and need not bring them."""
    assert refusal(repo(card, files), BASE, Rules()) is None
    reason = refusal(repo(card, files), BASE, Rules(allow_adapters=False))
    assert reason == Refusal(
        "an adapter (triage.allow_adapters admits such)", "settings", "triage.allow_adapters"
    )


def test_a_whole_model_beside_its_adapter_counts_as_one():
    both = GOOD | {"adapter_config.json": 500, "adapter_model.safetensors": 10**7}
    found = refusal(repo(files=both), BASE, Rules(max_gb=0.5))
    assert "weights of 1.0 GB" in found.reason
    assert (found.cause, found.setting) == ("settings", "triage.max_gb")
    without_config = {name: size for name, size in both.items() if name != "config.json"}
    assert refusal(repo(files=without_config), BASE, Rules()) == Refusal("no config.json")


def test_what_the_user_allows_is_admitted():
    allowed = Rules(max_gb=60, allow_gated=True, allow_merges=True)
    big = GOOD | {"model.safetensors": 50 * 10**9}
    merge = repo({"base_model_relation": "merge"}, files=big, gated=True)
    assert refusal(merge, BASE, allowed) is None


def test_only_files_that_would_be_loaded_count_as_size():
    shards = {f"model-0000{i}-of-00002.safetensors": 10**9 for i in (1, 2)}
    index = {"model.safetensors.index.json": 100}
    rest = {"consolidated.safetensors": 10**11, "pytorch_model.bin": 10**11}
    files = without("model.safetensors") | shards | index | rest
    assert refusal(repo(files=files), BASE, Rules(max_gb=2.5)) is None
    assert "weights of 2.0 GB" in refusal(repo(files=files), BASE, Rules(max_gb=1.5)).reason


def test_a_name_that_only_contains_such_letters_is_no_quantisation():
    assert refusal(repo(id="org/seagull-bnbx-8bits2"), BASE, Rules()) is None
    assert refusal(repo({"tags": ["hawqs"]}), BASE, Rules()) is None


def test_another_architecture_is_known_before_anything_is_fetched():
    llama = repo(config={"architectures": ["LlamaForCausalLM"]})
    reason = refusal(llama, BASE, Rules(), architectures=["MistralForCausalLM"]).reason
    assert reason == "another architecture (LlamaForCausalLM, the base has MistralForCausalLM)"
    assert refusal(repo(), BASE, Rules(), architectures=["MistralForCausalLM"]) is None


def test_code_in_a_repo_is_remarked_on():
    found = remarks(
        repo(config={"auto_map": {"AutoModel": "modeling.X"}}, files=GOOD | {"a.bin": 1})
    )
    assert "never run" in found[0]
    assert "a.bin" in found[1]


def test_a_declared_relation_goes_before_a_guess():
    assert relation({"base_model": ["a/b", "c/d"], "base_model_relation": "finetune"}) == "finetune"
    assert relation({"base_model": ["a/b", "c/d"], "base_model_relation": "nonsense"}) == "merge"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("---\nlicense: [mit\n---\n", "not YAML"),
        ("---\nlicense: mit\n", "has no end"),
        ("---\n- a\n- b\n---\n", "not a mapping"),
        ("---\ndate: 2024-13-45\n---\n", "not YAML"),
        ("---\na: " + "[" * 1500 + "\n---\n", "not YAML"),
        ("---\n" + "a: b\n" * 50_000 + "---\n", "too long"),
        ("---\na: !!python/object/apply:os.system [id]\n---\n", "not YAML"),
    ],
)
def test_broken_front_matter_is_a_problem_in_words(text, problem):
    card, said = front_matter(text)
    assert card == {}
    assert problem in said


@pytest.mark.parametrize("text", ["", "# A model\n", "---\n---\n# A model", "---\n# c\n---\n"])
def test_no_front_matter_is_no_problem(text):
    assert front_matter(text) == ({}, None)


def test_windows_line_ends_and_a_mark_do_not_matter():
    assert front_matter("\ufeff---\r\nlicense: mit\r\n---\r\n# x") == ({"license": "mit"}, None)


@pytest.mark.parametrize(
    "between", ["license: cc-by-nc-4.0\nlicense: mit", "license: mit\x0c---\nx: y"]
)
def test_a_milder_licence_does_not_hide_another(between):
    card, problem = front_matter(f"---\n{between}\n---\n")
    assert (card, declared(card)) == ({}, None)
    assert "front matter cannot be read" in problem


def listing(*tags, **attributes):
    given = {"id": "org/tuned", "revision": "0" * 40, "modified": datetime(2025, 1, 1, tzinfo=UTC)}
    return Listing(**{**given, "tags": tags, **attributes})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (listing(id=BASE), "the base itself"),
        (listing(disabled=True), "disabled by the hub"),
        (listing(gated=True), "gated .triage.allow_gated"),
        (listing(f"base_model:quantized:{BASE}"), "a quantised copy"),
        (listing(f"base_model:merge:{BASE}", f"base_model:{BASE}"), "a merge .triage.allow_merges"),
        (listing("gguf", "transformers"), "quantised, by its name or tags .gguf"),
        (listing("4-bit"), "quantised, by its name or tags .4-bit"),
        (listing(id="TheBloke/Tuned-7B-AWQ"), "quantised, by its name or tags .awq"),
    ],
)
def test_a_line_of_a_listing_is_enough_to_refuse(line, reason):
    assert re.search(reason, listed_refusal(line, BASE, Rules()).reason)


def test_a_line_that_says_nothing_against_a_repo_lets_it_wait():
    fine = [
        listing(),
        listing("merge-of-thoughts", "safetensors", f"base_model:{BASE}"),
        listing(f"base_model:finetune:{BASE}", "region:us"),
        listing("base_model:TheBloke/Base-AWQ", f"base_model:{BASE}"),
        listing(id="gptq/tuned"),
        listing(private=True),
    ]
    assert [listed_refusal(line, BASE, Rules()) for line in fine] == [None] * len(fine)


def test_the_rules_hold_for_lines_too():
    adapter = listing(f"base_model:adapter:{BASE}")
    assert listed_refusal(adapter, BASE, Rules()) is None
    refused = listed_refusal(adapter, BASE, Rules(allow_adapters=False))
    assert refused.setting == "triage.allow_adapters"
    both = listing(f"base_model:adapter:{BASE}", f"base_model:finetune:{BASE}")
    assert listed_refusal(both, BASE, Rules(allow_adapters=False)) is None
    allowed = Rules(allow_gated=True, allow_merges=True)
    assert listed_refusal(listing(f"base_model:merge:{BASE}", gated=True), BASE, allowed) is None
