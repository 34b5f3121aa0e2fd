"""The harness scores what a direct forward pass scores, every time, and says what is wrong."""

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path

import datasets
import lm_eval.tasks
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import lmtasks
import tiny
from kinship_daemon.errors import EvaluationFailed, KinshipError, ModelError, Transient, UsageError
from kinship_daemon.evaluate.harness import Harness
from kinship_daemon.evaluate.scoring import score_split
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.weights.materialise import leaf_assembly, write

LETTERS = "abcdefghij"


def settings(folder: Path, *tasks: str | Task, **changes) -> Settings:
    """Everything whole to selection; validation is asked of a copy in the same words."""
    return lmtasks.settings(tasks, (), **{"include_path": (folder,), **changes})


def answers(scores):
    """What was answered, whatever the weights and settings are called."""
    return [(each.task, each.score, each.samples) for each in scores]


def score(config: Settings, folder: Path, split="selection"):
    (found,) = score_split(Harness(config), leaf_assembly(folder, f"sha256:{folder.name}"), split)
    return found


def values(found) -> list[float]:
    return [value for _, value in found.samples]


def prompts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) + "=" for _ in range(count)]


def documents(count: int, seed: int = 0) -> list[dict[str, object]]:
    rng = random.Random(seed + 1)
    answers = ["".join(rng.choices(LETTERS, k=3)) for _ in range(count)]
    return [
        {"prompt": prompt, "answer": answer}
        for prompt, answer in zip(prompts(count, seed), answers, strict=True)
    ]


class Direct:
    """A model asked without any harness, one example at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def greedy(self, prompt: str, tokens: int) -> str:
        """What the model itself would go on with, where that is text."""
        ids = self.tokenizer(prompt).input_ids
        begin = len(ids)
        for _ in range(tokens):
            logits = self.model(torch.tensor([ids])).logits[0, -1]
            logits[: len(tiny.SPECIAL)] = -math.inf
            ids.append(int(logits.argmax()))
        return self.tokenizer.decode(ids[begin:])

    def matches(self, prompt: str, answer: str) -> bool:
        begin = len(self.tokenizer(prompt).input_ids)
        ids = self.tokenizer(prompt + answer).input_ids
        logits = self.model(torch.tensor([ids])).logits[0]
        return logits[begin - 1 : -1].argmax(-1).tolist() == ids[begin:]


def half_right(direct: Direct, count: int) -> list[dict[str, object]]:
    """The model's own greedy answers, every third one spoilt at a random place."""
    rng = random.Random(5)
    made = []
    for i, prompt in enumerate(prompts(count)):
        answer = direct.greedy(prompt, 1 + i % 3)
        if i % 3 == 0:
            place = rng.randrange(len(answer))
            answer = answer[:place] + rng.choice(LETTERS) + answer[place + 1 :]
        made.append({"prompt": prompt, "answer": answer})
    return [document for document in made if str(document["answer"]).strip()]


@pytest.fixture
def with_bos(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base with a tokenizer that begins every text with BOS, as Mistral's does."""
    folder = tmp_path / "bos"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    core = tokenizer.backend_tokenizer
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids[0] == 1
    return folder


@pytest.mark.parametrize("convention", ["without BOS", "with BOS"])
def test_it_agrees_with_a_direct_forward_pass(convention, tiny_base, with_bos, tmp_path):
    folder = tiny_base if convention == "without BOS" else with_bos
    direct = Direct(folder)
    asked = half_right(direct, 60)
    found = score(settings(lmtasks.task(tmp_path / "tasks", "echo", asked), "echo"), folder)
    truth = [direct.matches(document["prompt"], document["answer"]) for document in asked]
    assert values(found) == [float(right) for right in truth]
    assert 0.4 < found.score < 0.9  # it means something: some right, some wrong
    assert found.score == sum(truth) / len(truth)
    assert found.stderr == pytest.approx(
        math.sqrt(found.score * (1 - found.score) / (len(truth) - 1))
    )
    assert (found.metric, found.task_version, found.split) == ("acc,none", "2.0", "selection")


def test_every_value_belongs_to_its_document_in_both_halves(tiny_base, tmp_path):
    folder = lmtasks.probe(tmp_path / "tasks", "show", documents(40))
    spec = Task(task="show", metric="index")
    harness = Harness(settings(folder, spec, validation=(spec,), limit=15))
    asked = leaf_assembly(tiny_base, "sha256:base")
    seen = [score_split(harness, asked, split)[0].samples for split in ("selection", "validation")]
    for samples in seen:
        assert len(samples) == 15
        assert all(doc == value for doc, value in samples)
    assert not set(seen[0]) & set(seen[1])


def test_the_same_model_gives_the_same_bits_whatever_was_asked_before(
    tiny_base, tiny_finetunes, tmp_path
):
    folder = lmtasks.probe(tmp_path / "tasks", "show", documents(40))
    lmtasks.probe(folder, "other", documents(25, seed=9))
    models = [leaf_assembly(path, f"sha256:{path.name}") for path in (tiny_base, tiny_finetunes[1])]
    harness = Harness(settings(folder, "other", Task(task="show", num_fewshot=2)))
    first, other, again = (score_split(harness, models[i], "selection") for i in (0, 1, 0))
    assert first == again
    assert first != other
    alone = Harness(settings(folder, Task(task="show", num_fewshot=2)))
    assert answers(score_split(alone, models[1], "selection")) == answers(other[1:])


def test_models_of_another_config_or_tokenizer_are_not_mixed_up(tiny_base, tmp_path):
    """Weights alone are equal here: what differs is how they are read."""
    folder = lmtasks.probe(tmp_path / "tasks", "show", documents(10))
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    parameters = json.loads((other / "config.json").read_text())["rope_parameters"]
    tiny.config(other, rope_parameters=parameters | {"rope_theta": 50.0})
    harness = Harness(settings(folder, "show"))
    plain, bent, again = (
        score_split(harness, leaf_assembly(path, "sha256:x"), "selection")[0]
        for path in (tiny_base, other, tiny_base)
    )
    assert plain != bent
    assert plain == again
    assert answers([bent]) == answers([score(settings(folder, "show"), other)])


def test_a_model_scores_as_the_folder_written_from_it(tiny_base, tiny_finetunes, tmp_path):
    """Half of each parent: the live model is rounded once, as the written one is."""
    plain = leaf_assembly(tiny_base, "recipe:half")
    halves = tuple((name, (0.0, 0.5, 0.5)) for name, _ in plain.coefficients)
    child = dataclasses.replace(plain, leaves=tuple(tiny_finetunes[:2]), coefficients=halves)
    write(child, tmp_path / "out")
    folder = lmtasks.probe(tmp_path / "tasks", "show", documents(10))
    config = settings(folder, "show", dtype="bfloat16")
    harness = Harness(config)
    score_split(harness, plain, "selection")  # so that the child is loaded in place
    written = [score(config, tmp_path / "out")]
    assert answers(score_split(harness, child, "selection")) == answers(written)


def test_multiple_choice_takes_the_likeliest(tiny_base, tmp_path):
    asked = [{**document, "choices": ["abc", "jjj", "ce"], "gold": 1} for document in documents(12)]
    folder = lmtasks.task(
        tmp_path / "tasks",
        "choose",
        asked,
        output_type="multiple_choice",
        doc_to_choice="choices",
        doc_to_target="gold",
        metric_list=[lmtasks.metric("acc"), lmtasks.metric("acc_norm")],
    )
    direct = Direct(tiny_base)

    def likelihood(prompt: str, choice: str) -> float:
        ids = direct.tokenizer(prompt + choice).input_ids
        logs = direct.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logs[i - 1, ids[i]].item() for i in range(len(ids) - len(choice), len(ids)))

    truth = [
        max(range(3), key=lambda i, d=document: likelihood(d["prompt"], d["choices"][i])) == 1
        for document in asked
    ]
    assert values(score(settings(folder, "choose"), tiny_base)) == [float(right) for right in truth]
    normed = score(settings(folder, Task(task="choose", metric="acc_norm")), tiny_base)
    assert normed.metric == "acc_norm,none"


def test_the_filter_is_the_tasks_first_or_the_one_that_is_named(tiny_base, tmp_path):
    direct = Direct(tiny_base)
    asked = [{"prompt": p, "answer": direct.greedy(p, 3)[:1]} for p in prompts(10)]

    def first(pattern):
        return [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]

    folder = lmtasks.task(
        tmp_path / "tasks",
        "write",
        asked,
        output_type="generate_until",
        metric_list=[lmtasks.metric("exact_match")],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 3},
        filter_list=[
            {"name": "whole", "filter": first("^(...)$")},
            {"name": "letter", "filter": first("^(.)")},
        ],
    )
    whole = score(settings(folder, "write"), tiny_base)
    letter = score(settings(folder, Task(task="write", filter="letter")), tiny_base)
    assert (whole.metric, letter.metric) == ("exact_match,whole", "exact_match,letter")
    assert whole.score == 0
    assert letter.score > 0.5
    with pytest.raises(UsageError, match="no filter 'strict'; it has: whole, letter"):
        Harness(settings(folder, Task(task="write", filter="strict")))


def test_few_shot_examples_change_the_answers_and_a_task_fixed_to_none_refuses_them(
    tiny_base, tmp_path
):
    folder = lmtasks.probe(tmp_path / "tasks", "show", documents(10))
    lmtasks.probe(folder, "fixed", documents(10), num_fewshot=0)
    none, two = (
        score(settings(folder, Task(task="show", num_fewshot=n)), tiny_base) for n in (None, 2)
    )
    assert none != two
    with pytest.raises(UsageError, match=r"'fixed' is fixed to zero examples.*leave it out"):
        Harness(settings(folder, Task(task="fixed", num_fewshot=2)))


def test_documents_are_told_apart_by_what_they_ask_and_which_examples_they_are_shown(tmp_path):
    folder, asked = tmp_path / "tasks", documents(10)
    shots = {"fewshot_config": {"sampler": "first_n", "samples": documents(3, seed=5)}}
    other = {"fewshot_config": {"sampler": "first_n", "samples": documents(3, seed=6)}}
    lmtasks.probe(folder, "plain", asked, **shots)
    lmtasks.probe(folder, "same", asked, **other)
    lmtasks.probe(folder, "reordered", asked[::-1])
    lmtasks.probe(folder, "shuffled", asked, process_docs=lmtasks.Function("shuffled"))
    names = ("plain", "same", "reordered", "shuffled")

    def found(count):
        tasks = [Task(task=name, num_fewshot=count if "sam" in name else None) for name in names]
        tasks[0] = Task(task="plain", num_fewshot=count)
        return Harness(settings(folder, *tasks)).found["selection"]

    bare, shown = found(None), found(2)
    assert bare == found(None)  # shuffled as it is, it is shuffled the same way every time
    assert bare["plain"] == bare["same"]
    assert len(set(bare.values())) == 3
    assert len({bare["plain"], shown["plain"], shown["same"]}) == 3


def test_what_is_there_twice_and_what_asks_about_one_text_is_one_cluster(tmp_path):
    folder, asked = tmp_path / "tasks", documents(10)
    # As data sets have them: another number, and the same question and answer.
    twice = [*asked[:4], asked[1], *asked[4:], asked[9]]
    texts = [{**document, "text": "ab"[place > 3]} for place, document in enumerate(asked)]
    numbered = [{"number": place, **document} for place, document in enumerate(twice)]
    for name, made in {"once": asked, "twice": numbered, "texts": texts}.items():
        lmtasks.probe(folder, name, made)
    tasks = [Task(task="once"), Task(task="twice"), Task(task="texts", cluster="text")]
    found = Harness(settings(folder, *tasks)).found["selection"]
    assert found["once"].clusters == ()
    assert found["twice"].clusters == (0, 1, 2, 3, 1, 5, 6, 7, 8, 9, 10, 10)
    assert found["texts"].clusters == (0, 0, 0, 0, 4, 4, 4, 4, 4, 4)
    with pytest.raises(UsageError, match=r"without a field 'txt' to cluster by; they have: .*text"):
        Harness(settings(folder, Task(task="texts", cluster="txt")))


def test_progress_counts_documents_to_the_end(tiny_base, tmp_path):
    folder = lmtasks.task(tmp_path / "tasks", "one", documents(20))
    lmtasks.task(folder, "two", documents(12, seed=3))
    seen = []
    harness = Harness(settings(folder, "one", "two"))
    asked = leaf_assembly(tiny_base, "sha256:base")
    score_split(harness, asked, "selection", lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {32}
    assert seen[-1] == (32, 32)
    assert len(seen) > 4


METRICS = [
    (
        {
            "metric_list": [
                lmtasks.metric("acc"),
                lmtasks.metric("perplexity", aggregation="median"),
            ]
        },
        "nope",
        "no metric 'nope'; these would work: acc",
    ),
    (
        {
            "metric_list": [
                lmtasks.metric("perplexity", aggregation="perplexity"),
                lmtasks.metric("acc"),
            ]
        },
        None,
        "'perplexity' is not a mean over documents.*these would work: acc",
    ),
    (
        {"metric_list": [lmtasks.metric("acc", aggregation=lmtasks.Function("median"))]},
        "acc",
        "would work: none; choose another task",
    ),
    (
        {"metric_list": [lmtasks.metric("acc", higher_is_better=False)]},
        "acc",
        "more is better",
    ),
]


@pytest.mark.parametrize(("yaml", "metric", "words"), METRICS)
def test_a_metric_that_is_no_mean_is_refused_with_those_that_work(yaml, metric, words, tmp_path):
    folder = lmtasks.task(tmp_path / "tasks", "echo", documents(4), **yaml)
    with pytest.raises(UsageError, match=words):
        Harness(settings(folder, Task(task="echo", metric=metric)))


def test_a_metric_that_only_looks_like_a_mean_is_found_out(tiny_base, tmp_path):
    sly = lmtasks.metric("loglikelihood", aggregation=lmtasks.Function("sly"))
    folder = lmtasks.probe(tmp_path / "tasks", "sly", documents(4), metric_list=[sly])
    with pytest.raises(UsageError, match=r"'loglikelihood' is 7\.0, but the mean over"):
        score(settings(folder, "sly"), tiny_base)


def test_a_group_is_refused_with_its_members(tmp_path):
    folder = lmtasks.task(tmp_path / "tasks", "one", documents(4), tag="singles")
    lmtasks.task(folder, "two", documents(4))
    (folder / "all.yaml").write_text("group: all\ntask: [inner, two]\n")
    (folder / "inner.yaml").write_text("group: inner\ntask: [one]\n")
    with pytest.raises(UsageError, match=r"'all' is a group of tasks.*you want: one, two$"):
        Harness(settings(folder, "all"))
    with pytest.raises(UsageError, match=r"'singles' is a group.*you want: one$"):
        Harness(settings(folder, "singles"))


def test_a_task_that_runs_the_models_code_is_refused_before_it_is_loaded(tmp_path):
    loads = {"unsafe_code": True, "dataset_kwargs": {"file": "not-looked-for.json"}}
    folder = lmtasks.task(tmp_path / "tasks", "program", documents(4), **loads)
    with pytest.raises(UsageError, match="'program' runs code that models write"):
        Harness(settings(folder, "program"))


def test_an_unknown_task_is_refused_with_the_nearest_of_all_that_lm_eval_has(tmp_path):
    folder = lmtasks.task(tmp_path / "tasks", "echo", documents(4))
    with pytest.raises(UsageError, match="no evaluation task 'winogrand'; nearest: winogrande"):
        Harness(settings(folder, "echo", "winogrand"))


@pytest.mark.parametrize(
    ("yaml", "kind", "words"),
    [
        ({"dataset_kwargs": {"file": "gone.json"}}, KinshipError, "FileNotFoundError.*gone.json"),
        ({"doc_to_text": "{{prompt}"}, KinshipError, "TemplateSyntaxError"),
        (
            {"custom_dataset": None, "dataset_kwargs": None, "dataset_path": "org/not-here"},
            Transient,
            "org/not-here",
        ),
    ],
)
def test_data_that_cannot_be_loaded_is_one_line_naming_task_and_cause(yaml, kind, words, tmp_path):
    folder = lmtasks.task(tmp_path / "tasks", "echo", documents(4), **yaml)
    with pytest.raises(kind, match=f"task 'echo' could not be loaded: .*{words}") as caught:
        Harness(settings(folder, "echo"))
    assert "\n" not in str(caught.value)


def test_nan_weights_give_an_error_that_names_the_model_and_no_score(tiny_base, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(tiny_base, bad)
    name = "model.layers.0.mlp.down_proj.weight"
    tiny.edit(bad, {name: tiny.tensors(bad)[name] * math.nan})
    folder = lmtasks.task(tmp_path / "tasks", "echo", documents(4))
    harness = Harness(settings(folder, "echo"))
    with pytest.raises(ModelError, match="sha256:bad: its logits reach nan"):
        score_split(harness, leaf_assembly(bad, "sha256:bad"), "selection")
    good = leaf_assembly(tiny_base, "sha256:base")
    assert score_split(harness, good, "selection")[0] == score(settings(folder, "echo"), tiny_base)


def test_a_model_without_tokenizer_is_refused_by_name(tiny_base, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_base, bare, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    folder = lmtasks.task(tmp_path / "tasks", "echo", documents(4))
    with pytest.raises(ModelError, match=r"bare.*tokenizer"):
        score(settings(folder, "echo"), bare)


def test_a_tokenizer_with_more_tokens_than_the_model_fails_that_model(tmp_path):
    small = tiny.base(tmp_path / "small", vocab_size=8)
    folder = lmtasks.task(tmp_path / "tasks", "echo", documents(4))
    with pytest.raises(
        ModelError,
        match="sha256:small: the harness failed while answering document 0 of task 'echo'",
    ):
        score(settings(folder, "echo"), small)


def test_a_token_that_spans_question_and_answer_costs_no_evaluation(tiny_base, tmp_path):
    """lm-eval asserts that something is left of the answer; then the answer is encoded alone."""
    folder = tmp_path / "spanning"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    core = json.loads((folder / "tokenizer.json").read_text())
    core["model"] = {
        "type": "WordPiece",
        "unk_token": tiny.SPECIAL[-1],
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 100,
        "vocab": {**vocabulary, "ab": vocabulary["j"]},
    }
    core["model"]["vocab"].pop("j")
    core["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(core))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("a").input_ids) == len(tokenizer("ab").input_ids)
    asked = [{"prompt": "a", "answer": "b"}, *documents(5)]
    found = score(settings(lmtasks.probe(tmp_path / "tasks", "likely", asked), "likely"), folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    begin = tokenizer("a").input_ids
    with torch.no_grad():
        logits = model(torch.tensor([begin])).logits[0, -1].log_softmax(-1)
    (alone,) = tokenizer("b", add_special_tokens=False).input_ids
    assert found.samples[0][1] == pytest.approx(float(logits[alone]), abs=1e-4)


def test_the_document_that_the_harness_fails_at_is_named(tiny_base, tmp_path):
    fails = {"process_results": lmtasks.Function("fail_at_5")}
    folder = lmtasks.task(tmp_path / "tasks", "echo", documents(12), **fails)
    message = r"the harness failed while answering document 5 of task 'echo': ValueError: not five"
    with pytest.raises(EvaluationFailed, match=message) as caught:
        score(settings(folder, "echo"), tiny_base)
    assert caught.value.document == ("echo", 5)


def test_a_text_that_nothing_precedes_needs_a_token_to_begin_with(tiny_base, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_base, bare)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    for key in ("bos_token", "eos_token", "additional_special_tokens"):
        config.pop(key, None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    (bare / "special_tokens_map.json").unlink(missing_ok=True)
    folder = lmtasks.task(tmp_path / "tasks", "echo", [{"prompt": "", "answer": "ab"}] * 4)
    with pytest.raises(ModelError, match="neither BOS nor EOS"):
        score(settings(folder, "echo"), bare)


def test_a_chat_template_is_used_only_when_asked_for_and_then_needed(tiny_base, tmp_path):
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}="
    chatty = tmp_path / "chatty"
    shutil.copytree(tiny_base, chatty)
    tiny.tokenizer(chatty, chat_template=template)
    folder = lmtasks.probe(tmp_path / "tasks", "show", documents(4))
    plain = settings(folder, "show")
    chat = plain.but(apply_chat_template=True)
    assert answers([score(plain, chatty)]) == answers([score(plain, tiny_base)])
    assert answers([score(chat, chatty)]) != answers([score(plain, chatty)])
    with pytest.raises(ModelError, match="sha256:base: base has no chat template"):
        score(chat, tiny_base)


def test_out_of_memory_names_the_setting_that_helps(tiny_base, tmp_path, monkeypatch):
    folder = lmtasks.task(tmp_path / "tasks", "echo", documents(4))
    harness = Harness(settings(folder, "echo"))

    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr("transformers.MistralForCausalLM.forward", full)
    with pytest.raises(ModelError, match=r"out of memory.*evaluate.batch_size below 8"):
        score_split(harness, leaf_assembly(tiny_base, "sha256:base"), "selection")


def test_the_papers_tasks_are_scored_by_the_metrics_we_say(tmp_path, monkeypatch):
    """lm-eval's own YAML files on a few documents of the right shape, as there is no network."""
    data = {
        "allenai/winogrande": [
            {"sentence": f"the {n} is _ here", "option1": "red", "option2": "blue", "answer": "1"}
            for n in ("cat", "dog", "sun")
        ],
        "openai/gsm8k": [
            {"question": f"what is {n} + 1?", "answer": f"it is #### {n + 1}"} for n in range(7)
        ],
        "truthfulqa/truthful_qa": [
            {
                "question": f"is {n} a number?",
                "mc1_targets": {"choices": ["yes", "no"], "labels": [1, 0]},
                "mc2_targets": {"choices": ["yes", "it is", "no"], "labels": [1, 1, 0]},
            }
            for n in range(3)
        ],
    }

    def load(path, **_):
        made = datasets.Dataset.from_list(data[path])
        return dict.fromkeys(("train", "validation", "test"), made)

    monkeypatch.setattr(datasets, "load_dataset", load)
    model = tiny.base(tmp_path / "model", max_position_embeddings=4096)
    own = Path(lm_eval.tasks.__file__).parent
    specs = (
        Task(task="winogrande", num_fewshot=2),
        Task(task="gsm8k"),
        Task(task="truthfulqa_mc2"),
    )
    folders = tuple(own / name for name in ("winogrande", "gsm8k", "truthfulqa"))
    config = settings(tmp_path, *specs, include_path=folders)
    found = score_split(Harness(config), leaf_assembly(model, "sha256:x"), "selection")
    assert [(one.task, one.metric, len(one.samples)) for one in found] == [
        ("winogrande", "acc,none", 3),
        ("gsm8k", "exact_match,strict-match", 7),
        ("truthfulqa_mc2", "acc,none", 3),
    ]
    assert all(one.task_version for one in found)
    assert 0 < found[2].score < 1


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits_twice(tiny_base, tiny_finetunes, tmp_path):
    folder = lmtasks.probe(tmp_path / "tasks", "show", documents(20))
    harness = Harness(settings(folder, "show", device="auto"))
    models = [leaf_assembly(path, "sha256:x") for path in (tiny_base, tiny_finetunes[0])]
    first, other, again = (score_split(harness, models[i], "selection") for i in (0, 1, 0))
    assert first == again
    assert first != other
