"""The demo: real skills, tasks that leak nothing, merges that help, files as they were made."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kinship_daemon import config, demo
from kinship_daemon.demo import courses, skills, text, train
from kinship_daemon.demo.build import exam
from kinship_daemon.errors import KinshipError
from kinship_daemon.evaluate.harness import Harness
from kinship_daemon.evaluate.scoring import score_split
from kinship_daemon.hub.folder import FolderHub
from kinship_daemon.startup import evaluation_settings
from kinship_daemon.weights.checkpoint import Checkpoint, compare
from kinship_daemon.weights.materialise import leaf_assembly

EMBEDDED = Path(demo.__file__).parent
HUB = EMBEDDED / "hub"
VISIBLE = ("add", "max", "reverse", "sort", "subtract")
HELD_BACK = EMBEDDED / "held_back" / demo.HELD_BACK
FOLDERS = {name: HUB / "demo" / name for name in ("base", *VISIBLE)} | {"sequence": HELD_BACK}
VALIDATION = {skill: exam(skill, "validation") for skill in skills.SKILLS}


def accuracies(weights):
    model = courses.model_of(weights)
    return {skill: courses.accuracy(model, items) for skill, items in VALIDATION.items()}


def mean(row):
    return sum(row.values()) / len(row)


@pytest.fixture(scope="module")
def weights():
    return {name: load_file(folder / "model.safetensors") for name, folder in FOLDERS.items()}


@pytest.fixture(scope="module")
def scores(weights):
    """Accuracy of every embedded model at every skill, by forward passes in float32."""
    return {name: accuracies(tensors) for name, tensors in weights.items()}


# Skills


def right_answer(prompt):
    """An answer found another way than the demo finds it."""
    if found := re.fullmatch(r"(\d+)([+-])(\d+)=", prompt):
        a, sign, b = found.groups()
        return f"{int(a) + int(sign + b)};"
    word, *rest = prompt.removesuffix("=").split()
    numbers = [int(term) for term in rest if term.isdigit()]
    match word:
        case "max":
            return f"{max(numbers)};"
        case "next":
            first, second, third = numbers
            assert second - first == third - second
            return f"{first + 3 * (second - first)};"
        case "sort":
            return "".join(letter * rest[0].count(letter) for letter in "abcdefghij") + ";"
        case "reverse":
            return "".join(reversed(rest[0])) + ";"


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_answers_are_right_and_end_in_the_terminator(skill):
    for item in islice(skills.examples(skill, "training", seed=5), 300):
        assert item.answer == right_answer(item.prompt)
        assert item.prompt == item.prompt.strip()


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_what_is_judged_on_is_never_trained_on_whatever_the_seed(skill):
    selection, validation = (
        {item.prompt for item in exam(skill, part)} for part in ("selection", "validation")
    )
    assert (len(selection), len(validation)) == (200, 400)
    assert not selection & validation
    for seed in (courses.FOUNDATION.seed, 12345):
        trained = {e.prompt for e in islice(skills.examples(skill, "training", seed), 5000)}
        assert not trained & (selection | validation)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12+34=", "34+12="),
        ("max 12 34 56=", "max 56 12 34="),
        ("sort abcdefg=", "sort gfedcba="),
    ],
)
def test_the_same_question_in_another_order_falls_in_the_same_part(one, other):
    assert skills.part_of(one) == skills.part_of(other)


def test_the_parts_have_the_sizes_that_are_said():
    parts = [skills.part_of(f"{a}-{b}=") for a in range(10, 100) for b in range(10, a)]
    shares = {part: parts.count(part) / len(parts) for part in set(parts)}
    assert shares == pytest.approx(
        {"training": 0.6, "selection": 0.15, "validation": 0.25}, abs=0.02
    )


# Files


def test_the_embedded_files_are_those_that_the_training_recorded():
    recorded = json.loads((EMBEDDED / "MANIFEST.json").read_text())["sha256"]
    there = {
        path.relative_to(EMBEDDED).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("hub", "held_back", "tasks")
        for path in (EMBEDDED / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there == recorded


def test_the_embedded_files_are_small():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 8e6


def test_every_model_is_a_finetune_of_the_base_for_a_hub(tmp_path):
    demo.install(tmp_path)
    demo.release(tmp_path)
    hub = FolderHub(tmp_path)
    found = {listing.id for listing in hub.descendants(demo.BASE)}
    assert found == {f"demo/{name}" for name in (*VISIBLE, "sequence")}
    for repo_id in found:
        card = hub.repo(repo_id).card
        assert card["base_model_relation"] == "finetune"
        assert card["license"] == "apache-2.0"
    assert hub.repo(demo.BASE).card["license"] == "apache-2.0"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_card_tells_the_accuracies_that_the_weights_have(name, scores):
    rows = re.findall(
        r"^\| (\w+) \| `.*` \|.* (\d\.\d+) \|$", (FOLDERS[name] / "README.md").read_text(), re.M
    )
    # Two documents of 400: another CPU may round a near tie the other way.
    assert {skill: float(said) for skill, said in rows} == pytest.approx(scores[name], abs=0.0051)


def test_the_base_is_a_small_bfloat16_mistral_that_transformers_opens():
    model = AutoModelForCausalLM.from_pretrained(HUB / demo.BASE, dtype="auto")
    assert type(model).__name__ == "MistralForCausalLM"
    assert model.dtype == torch.bfloat16
    assert 250_000 < model.num_parameters() < 400_000


def test_every_model_has_the_tensors_of_the_base():
    base = Checkpoint.open(FOLDERS["base"])
    for folder in FOLDERS.values():
        compare(base, Checkpoint.open(folder))


# Tokens


def test_the_tokenizer_gives_one_token_a_character_and_adds_none():
    tokenizer = AutoTokenizer.from_pretrained(HUB / demo.BASE)
    for items in VALIDATION.values():
        item = items[0]
        tokens, targets = text.encode([item])
        written = item.prompt + item.answer
        assert tokenizer(written).input_ids == tokens[0].tolist()
        assert len(tokens[0]) == len(written)
        assert tokenizer.decode(tokens[0]) == written
        answer = targets[0][targets[0] != text.IGNORED]
        assert tokenizer.decode(answer) == item.answer
    assert tokenizer.pad_token_id == text.PAD_ID
    assert tokenizer.eos_token_id == text.EOS_ID
    assert tokenizer.bos_token_id is None


def test_generation_stops_where_the_answer_does():
    folder = FOLDERS["add"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    written = model.generate(**tokenizer("25+17=", return_tensors="pt"))
    assert tokenizer.decode(written[0]) == "25+17=42;"


# Tasks

ASK = """
import json, socket, sys
def refuse(*_):
    raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
import lm_eval, torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
tasks, folder, *names = sys.argv[1:]
model = HFLM(
    pretrained=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    tokenizer=AutoTokenizer.from_pretrained(folder),
    batch_size=64,
)
manager = TaskManager(include_path=tasks, include_defaults=False)
found = lm_eval.simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0)
answer = {
    name: {
        "mean": found["results"][name]["acc,none"],
        "version": found["versions"][name],
        "samples": [[s["doc"]["prompt"], s["acc"]] for s in found["samples"][name]],
    }
    for name in names
}
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The harness on every task: from another folder, with an empty home and no network."""
    home = tmp_path_factory.mktemp("home")
    cleared = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    command = [sys.executable, "-c", ASK, str(demo.TASKS), str(FOLDERS["add"])]
    done = subprocess.run(
        [*command, *demo.SELECTION, *demo.VALIDATION],
        cwd=home,
        env={**cleared, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return home, json.loads(done.stdout.splitlines()[-1])


def test_the_harness_agrees_with_a_direct_forward_pass(asked, weights):
    model = courses.model_of(weights["add"])
    for skill in skills.SKILLS:
        for task, part in (
            (f"demo_{skill}", "selection"),
            (f"demo_{skill}_validation", "validation"),
        ):
            items = exam(skill, part)
            direct = [[item.prompt, courses.accuracy(model, (item,))] for item in items[:50]]
            assert asked[1][task]["samples"][:50] == direct
            assert len(asked[1][task]["samples"]) == len(items)
            assert asked[1][task]["mean"] == pytest.approx(courses.accuracy(model, items), abs=1e-9)
            assert asked[1][task]["version"] == 1.0


def test_the_harness_writes_nothing_into_the_home(asked):
    assert list(asked[0].rglob("*")) == []


def test_the_daemon_scores_what_a_direct_forward_pass_scores(scores):
    settings = evaluation_settings(config.load(base="demo")).but(dtype="float32")
    found = score_split(Harness(settings), leaf_assembly(FOLDERS["sort"], "sort"), "validation")
    measured = {score.task: score.score for score in found}
    said = {f"demo_{skill}_validation": value for skill, value in scores["sort"].items()}
    assert measured == pytest.approx(said, abs=1e-9)
    assert [len(score.samples) for score in found] == [400] * 6


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_the_documents_shipped_are_those_of_the_script(skill):
    for task, part in ((f"demo_{skill}", "selection"), (f"demo_{skill}_validation", "validation")):
        lines = (demo.TASKS / f"{task}.jsonl").read_text().splitlines()
        shipped = [(row["prompt"], row["answer"]) for row in map(json.loads, lines)]
        assert shipped == [(item.prompt, item.answer) for item in exam(skill, part)]
        assert all(answer == right_answer(prompt) for prompt, answer in shipped)


def test_every_task_is_there_under_its_name():
    assert len(demo.SELECTION) == len(demo.VALIDATION) == 6
    assert set(demo.SELECTION) == {f"demo_{skill}" for skill in skills.SKILLS}
    assert {path.stem for path in demo.TASKS.glob("*.yaml")} == {*demo.SELECTION, *demo.VALIDATION}


# Models


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_a_finetune_is_clearly_the_best_at_its_own_skill(skill, scores):
    own = scores[skill][skill]
    others = [row[skill] for name, row in scores.items() if name != skill]
    assert own > max(others) + 0.03
    assert own > scores["base"][skill] + 0.08


def test_a_finetune_is_better_than_the_base_on_the_whole(scores):
    assert all(mean(row) > mean(scores["base"]) for name, row in scores.items() if name != "base")


def test_the_base_has_something_left_to_learn_everywhere(scores):
    assert all(0.4 < accuracy < 0.95 for accuracy in scores["base"].values())


def test_founders_are_related_but_not_close(weights):
    flat = {
        name: torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])
        for name, tensors in weights.items()
    }
    deltas = torch.stack([flat[name] - flat["base"] for name in VISIBLE])
    kinships = torch.corrcoef(deltas)[*torch.triu_indices(len(VISIBLE), len(VISIBLE), 1)]
    assert kinships.min() > 0.1
    assert kinships.max() < 0.45


@pytest.mark.parametrize("pair", list(combinations(("add", "sort", "subtract"), 2)))
def test_the_average_of_two_is_clearly_better_than_either(pair, weights, scores):
    one, other = (weights[name] for name in pair)
    merged = {name: (one[name].float() + other[name].float()) / 2 for name in one}
    assert mean(accuracies(merged)) > max(mean(scores[name]) for name in pair) + 0.02


# Training


def trained(course, steps=3):
    model = courses.model_of()
    courses.study(model, replace(course, steps=steps), lambda: None)
    return courses.weights_of(model)


def test_the_same_seed_trains_to_the_same_bits():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, again = trained(courses.FOUNDATION), trained(courses.FOUNDATION)
        other = trained(replace(courses.FOUNDATION, seed=2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_script_writes_a_whole_demo(tmp_path, monkeypatch, capsys):
    """With two steps a model instead of hundreds."""
    monkeypatch.setattr(train, "FOUNDATION", replace(courses.FOUNDATION, steps=2))
    short = tuple(replace(course, steps=2) for course in courses.FINETUNES)
    monkeypatch.setattr(train, "FINETUNES", short)
    out = tmp_path / "demo"
    (out / "hub" / "stale").mkdir(parents=True)
    assert train.main([str(out)]) == 0
    said = capsys.readouterr().out
    assert "files differ from the embedded demo" in said
    assert re.search(r"^ +sort( +\d\.\d{3}){7}$", said, re.M)
    ours, embedded = (
        json.loads((folder / "MANIFEST.json").read_text())["sha256"] for folder in (out, EMBEDDED)
    )
    assert ours.keys() == embedded.keys()
    # Two steps make other weights; all that is not weights or their scores is the same.
    same = {name for name in ours if ours[name] == embedded[name]}
    assert {Path(name).name for name in ours.keys() - same} == {"README.md", "model.safetensors"}
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {*ours, "MANIFEST.json"}
    assert not (out / "hub" / "stale").exists()


# Installing


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_demo_is_installed_once_and_left_alone_afterwards(tmp_path):
    demo.install(tmp_path / "hub")
    assert content(tmp_path / "hub") == content(HUB)
    (tmp_path / "hub" / "demo" / "add" / "README.md").write_text("mine")
    demo.install(tmp_path / "hub")
    assert (tmp_path / "hub" / "demo" / "add" / "README.md").read_text() == "mine"


def test_a_killed_installation_is_done_again(tmp_path):
    left = tmp_path / ".demo.partial-01234567" / "base"
    left.mkdir(parents=True)
    demo.install(tmp_path)
    assert content(tmp_path) == content(HUB)
    assert not left.exists()


def test_the_held_back_model_is_released_once(tmp_path):
    demo.install(tmp_path)
    assert demo.release(tmp_path) == demo.HELD_BACK == "demo/sequence"
    assert content(tmp_path / demo.HELD_BACK) == content(HELD_BACK)
    with pytest.raises(KinshipError, match="already"):
        demo.release(tmp_path)


def test_nothing_is_released_where_no_demo_is(tmp_path):
    with pytest.raises(KinshipError, match="run --base demo"):
        demo.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "hub").write_text("a file")
    with pytest.raises(KinshipError, match="hub") as caught:
        demo.install(tmp_path / "hub")
    assert "\n" not in str(caught.value)
