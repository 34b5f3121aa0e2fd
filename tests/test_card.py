from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from kinship_daemon.hub.card import (
    CardFacts,
    GateFacts,
    Kin,
    Node,
    Result,
    Source,
    model_card,
)
from kinship_daemon.hub.front_matter import declared_bases, front_matter, relation
from kinship_daemon.hub.licence import declared

SHA = "ab" * 32


def result(model, task, score, split="validation", stderr=0.01):
    return Result(model, task, split, "acc", score, stderr, n=256, task_version="1.0")


FACTS = CardFacts(
    name="model-2-1",
    repo="kinship/demo-model-2-1",
    base="demo/base",
    licence="apache-2.0",
    base_models=("demo/add", "demo/sort"),
    parents=("model-1-1", "demo/sort"),
    why="pair of the top 3",
    results=(
        result("model-2-1", "sort", 0.8),
        result("model-2-1", "add", 0.7),
        result("model-1-1", "add", 0.65),
        result("model-1-1", "sort", 0.5),
        result("demo/sort", "sort", 0.9, stderr=float("nan")),
        result("model-2-1", "add_select", 0.75, "selection"),
    ),
    gate=GateFacts(True, "model-1-1", 0.031, 0.012, 0.05, 0.95, 512, "low end above 0"),
    family=(
        Node("model-2-1", "merge", 2, ("model-1-1", "demo/sort")),
        Node("demo/sort", "finetune", 0),
        Node("model-1-1", "merge", 1, ("demo/add", "demo/sort")),
        Node("demo/add", "finetune", 0),
    ),
    metric="pcc",
    kinships=(Kin("model-1-1", "demo/sort", 0.8123456), Kin("demo/add", "demo/sort", None)),
    sources=(
        Source("demo/add", "c" * 40, "apache-2.0", (("model.safetensors", SHA),)),
        Source("demo/sort", "d" * 40, None),
    ),
    made="merge_method: slerp\nparameters:\n  t: 0.5\n",
    collapsed="merge_method: linear\nparameters:\n  normalize: false\n",
    version="0.1.0",
    settings={"lm-eval": "0.4.13", "seed": "0", "few-shot": "0"},
)


def test_the_hubs_own_client_reads_the_card():
    data = ModelCard(model_card(FACTS)).data
    assert data.license == "apache-2.0"
    assert data.base_model == ["demo/add", "demo/sort"]
    assert data["base_model_relation"] == "merge"
    assert {"merge", "kinship-daemon"} <= set(data.tags)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.model_name == "demo-model-2-1"
    scores = {(r.dataset_type, r.dataset_split): r.metric_value for r in data.eval_results}
    assert scores == {
        ("add", "validation"): 0.7,
        ("sort", "validation"): 0.8,
        ("add_select", "selection"): 0.75,
    }


def test_a_watching_daemon_sees_a_merge_with_its_parents_and_licence():
    card, problem = front_matter(model_card(replace(FACTS, licence="qwen-research")))
    assert problem is None
    assert declared_bases(card) == FACTS.base_models
    assert relation(card) == "merge"
    assert declared(card) == "qwen-research"


def test_every_parent_stands_beside_the_child_with_intervals():
    lines = model_card(FACTS).splitlines()
    header = next(line for line in lines if line.startswith("| task"))
    assert header == "| task | metric | documents | **model-2-1** | model-1-1 | demo/sort |"
    rows = [line for line in lines if line.startswith(("| add ", "| sort "))]
    assert rows == [
        "| add (version 1.0) | acc | 256 | 0.7000 (0.6804 to 0.7196) "
        "| 0.6500 (0.6304 to 0.6696) | - |",
        "| sort (version 1.0) | acc | 256 | 0.8000 (0.7804 to 0.8196) "
        "| 0.5000 (0.4804 to 0.5196) | 0.9000 |",
    ]


def test_the_card_says_what_a_reader_needs_to_trust_or_repeat_it():
    text = " ".join(model_card(FACTS).split())
    for fact in (
        "gains +0.0310 over its best parent, model-1-1, ",
        "with a 95% interval from +0.0120 to +0.0500",
        "It passed: low end above 0",
        "pair of the top 3",
        "| model-1-1 | demo/sort | 0.8123 |",
        "| demo/add | demo/sort | undefined |",
        f"| demo/add | model.safetensors | `{SHA}` |",
        f"| demo/sort | `{'d' * 40}` | unknown |",
        "| lm-eval | 0.4.13 |",
        "kinship-daemon merge mergekit_config.yml OUT",
    ):
        assert fact in text


def test_the_recipes_in_the_card_are_the_recipes():
    blocks = model_card(FACTS).split("```yaml\n")[1:]
    recipes = [yaml.safe_load(block.partition("```")[0]) for block in blocks]
    assert recipes == [yaml.safe_load(FACTS.made), yaml.safe_load(FACTS.collapsed)]


def test_the_family_tree_draws_every_parent_once():
    tree = model_card(FACTS).partition("```mermaid\n")[2].partition("```")[0]
    names = {
        line.split("[")[0].strip(): line.split('"')[1].split("<br/>")[0]
        for line in tree.splitlines()
        if "[" in line
    }
    edges = [tuple(line.split()[::2]) for line in tree.splitlines() if "-->" in line]
    drawn = sorted((names[parent], names[child]) for parent, child in edges)
    assert drawn == sorted((p, node.name) for node in FACTS.family for p in node.parents)


def test_equal_facts_in_another_order_give_the_same_text():
    shuffled = replace(
        FACTS, results=FACTS.results[::-1], family=FACTS.family[::-1], kinships=FACTS.kinships[::-1]
    )
    assert model_card(shuffled) == model_card(FACTS)


def test_strangers_words_stay_words():
    nasty = "mit |\n---\n<script>alert(1)</script>"
    facts = replace(FACTS, why=nasty, sources=(Source("demo/add", "c" * 40, nasty),))
    text = model_card(facts)
    assert "<script>" not in text
    assert text.count("\n---\n") == 1
    assert ModelCard(text).data.license == "apache-2.0"


@pytest.mark.parametrize("url", [None, "https://huggingface.co"])
def test_links_lead_to_the_hub_the_models_are_on(url):
    text = model_card(replace(FACTS, hub_url=url))
    assert ("](https://huggingface.co/demo/add)" in text) == (url is not None)


def test_a_merge_without_gate_or_scores_has_a_card_too():
    text = model_card(replace(FACTS, gate=None, results=(), kinships=(), settings={}))
    assert "without a gate" in text
    assert "NaN" not in text
    assert ModelCard(text).data.base_model == ["demo/add", "demo/sort"]
