from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from kinship_daemon.hub.card import CardFacts, model_card
from kinship_daemon.hub.front_matter import declared_bases, front_matter, relation
from kinship_daemon.hub.licence import declared
from kinship_storage.records import File, Model, Score

SHA = "ab" * 32


def result(model, task, score, split="validation", stderr=0.01):
    return Score(
        weights=f"sha256:{model}",
        task=task,
        split=split,
        settings="fp",
        metric="acc",
        task_version="1.0",
        score=score,
        stderr=stderr,
        n=256,
        seed=0,
        harness="none",
    )


def finetune(name, revision="", licence=None):
    return Model(name, "finetune", "admitted", repo=name, revision=revision, license=licence)


def merge(name, generation, *parents, why=None):
    return Model(name, "merge", "admitted", generation=generation, parents=parents, why=why)


FACTS = CardFacts(
    model=merge("model-2-1", 2, "model-1-1", "demo/sort", why="pair of the top 3"),
    repo="kinship/demo-model-2-1",
    base="demo/base",
    licence="apache-2.0",
    base_models=("demo/add", "demo/sort"),
    scores={
        "model-2-1": (
            result("model-2-1", "sort", 0.8),
            result("model-2-1", "add", 0.7),
            result("model-2-1", "add_select", 0.75, "selection"),
        ),
        "model-1-1": (result("model-1-1", "add", 0.65), result("model-1-1", "sort", 0.5)),
        "demo/sort": (result("demo/sort", "sort", 0.9, stderr=float("nan")),),
    },
    verdict="passed: +0.0310 against model-1-1 (95 % interval +0.0120 to +0.0500)",
    family=(
        finetune("demo/sort", "d" * 40),
        merge("model-1-1", 1, "demo/add", "demo/sort"),
        finetune("demo/add", "c" * 40, "apache-2.0"),
    ),
    called={},
    metric="pcc",
    kinships=(("model-1-1", "demo/sort", 0.8123456), ("demo/add", "demo/sort", None)),
    sources=(
        (finetune("demo/add", "c" * 40, "apache-2.0"), (File("model.safetensors", 1, SHA),)),
        (finetune("demo/sort", "d" * 40), ()),
    ),
    made="merge_method: slerp\nparameters:\n  t: 0.5\n",
    collapsed="merge_method: linear\nparameters:\n  normalize: false\n",
    factors=(
        ("attention", "demo/add", 0.25),
        ("attention", "demo/sort", 0.75),
        ("norms", "demo/add", 0.5),
        ("norms", "demo/sort", 0.5),
    ),
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


def test_what_only_a_part_of_the_documents_says_is_told_so_with_how_many():
    whole = {
        ("validation", "add"): 256,
        ("validation", "sort"): 400,
        ("selection", "add_select"): 9,
    }
    scores = dict(FACTS.scores)
    scores["demo/sort"] = (replace(result("demo/sort", "sort", 0.9), n=160),)
    card = model_card(replace(FACTS, scores=scores, documents=whole))
    assert "| add (version 1.0) | acc | 256 | 0.7000 (0.6804 to 0.7196) |" in card
    assert "| sort (version 1.0) | acc | 256 of 400 | 0.8000 (0.7804 to 0.8196) |" in card
    assert "| 0.9000 (0.8804 to 0.9196; 160 documents) |" in card
    words = "Both are of the documents that were asked, not of all: as soon as they decide"
    assert card.count(words) == 1
    assert words not in model_card(FACTS)
    names = {r.dataset_type: r.metric_name for r in ModelCard(card).data.eval_results}
    assert names["sort"] == "acc (256 of 400 validation documents)"
    assert names["add_select"] == "acc (256 selection documents)"


def test_the_card_says_what_a_reader_needs_to_trust_or_repeat_it():
    text = " ".join(model_card(FACTS).split())
    for fact in (
        "It passed: +0.0310 against model-1-1 (95 % interval +0.0120 to +0.0500).",
        "| tensors | demo/add | demo/sort |",
        "| attention | 0.2500 | 0.7500 |",
        "every tensor's in `factors.csv`",
        "pair of the top 3",
        "| model-1-1 | demo/sort | 0.8123 |",
        "| demo/add | demo/sort | undefined |",
        f"| demo/add | model.safetensors | `{SHA}` |",
        f"| demo/sort | `{'d' * 40}` | unknown |",
        "| lm-eval | 0.4.13 |",
        "kinship-daemon merge mergekit_config.yml OUT",
    ):
        assert fact in text


def test_what_mergekit_lacks_is_not_said_to_be_made_with_it():
    text = " ".join(model_card(replace(FACTS, lacking=("iso_c", "tsv"))).split())
    assert "from the sources at the revisions above (mergekit has no iso_c and tsv)" in text
    assert "mergekit-yaml" not in text


def test_the_recipes_in_the_card_are_the_recipes():
    blocks = model_card(FACTS).split("```yaml\n")[1:]
    recipes = [yaml.safe_load(block.partition("```")[0]) for block in blocks]
    assert recipes == [yaml.safe_load(FACTS.made)]


def test_the_card_of_a_model_with_a_thousand_tensors_is_no_longer_for_it():
    """The full recipe is in a file of its own: at 7B it has hundreds of lines."""
    long = "".join(f"# tensor {number}\n" for number in range(1000))
    text = model_card(replace(FACTS, collapsed=FACTS.collapsed + long))
    assert len(text) == len(model_card(FACTS))


def test_an_interval_ends_where_scores_do():
    sure = {**FACTS.scores, "model-2-1": (result("model-2-1", "add", 0.995, stderr=0.01),)}
    assert "0.9950 (0.9754 to 1.0000)" in model_card(replace(FACTS, scores=sure))
    none = {**FACTS.scores, "model-2-1": (result("model-2-1", "add", 0.0, stderr=0.01),)}
    assert "0.0000 (0.0000 to 0.0196)" in model_card(replace(FACTS, scores=none))


def test_parents_that_are_published_are_named_by_their_repo():
    text = model_card(replace(FACTS, called={"model-1-1": "kinship/demo-model-1-1"}))
    assert "A merge of kinship/demo-model-1-1 and demo/sort" in text
    assert "| **model-2-1** | kinship/demo-model-1-1 | demo/sort |" in text
    assert '["kinship/demo-model-1-1<br/>merge, 1"]' in text


def test_a_merge_that_is_no_combination_has_no_factors():
    assert "What it takes from fine-tunes alone" in model_card(replace(FACTS, factors=()))


def test_the_family_tree_draws_every_parent_once():
    tree = model_card(FACTS).partition("```mermaid\n")[2].partition("```")[0]
    names = {
        line.split("[")[0].strip(): line.split('"')[1].split("<br/>")[0]
        for line in tree.splitlines()
        if "[" in line
    }
    edges = [tuple(line.split()[::2]) for line in tree.splitlines() if "-->" in line]
    drawn = sorted((names[parent], names[child]) for parent, child in edges)
    everyone = (*FACTS.family, FACTS.model)
    assert drawn == sorted((p, model.id) for model in everyone for p in model.parents)


def test_equal_facts_in_another_order_give_the_same_text():
    shuffled = replace(
        FACTS,
        scores={name: rows[::-1] for name, rows in reversed(FACTS.scores.items())},
        family=FACTS.family[::-1],
        kinships=FACTS.kinships[::-1],
    )
    assert model_card(shuffled) == model_card(FACTS)


def test_strangers_words_stay_words():
    nasty = "mit |\n---\n<script>alert(1)</script>"
    model = replace(FACTS.model, why=nasty)
    facts = replace(FACTS, model=model, sources=((finetune("demo/add", "c" * 40, nasty), ()),))
    text = model_card(facts)
    assert "<script>" not in text
    assert text.count("\n---\n") == 1
    assert ModelCard(text).data.license == "apache-2.0"


@pytest.mark.parametrize("url", [None, "https://huggingface.co"])
def test_links_lead_to_the_hub_the_models_are_on(url):
    text = model_card(replace(FACTS, hub_url=url))
    assert ("](https://huggingface.co/demo/add)" in text) == (url is not None)


def test_a_merge_without_gate_or_scores_has_a_card_too():
    text = model_card(replace(FACTS, verdict=None, scores={}, kinships=(), settings={}))
    assert "without a gate" in text
    assert "NaN" not in text
    assert ModelCard(text).data.base_model == ["demo/add", "demo/sort"]
