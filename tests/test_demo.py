"""The embedded demo: its files are what was trained, its skills are real, its tasks are fair."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinship_daemon import config, demo
from kinship_daemon.demo.build import exam
from kinship_daemon.demo.courses import FOUNDATION, accuracy, model_of, study, weights_of
from kinship_daemon.demo.skills import SKILLS, documents, examples, part_of, solve
from kinship_daemon.errors import KinshipError
from kinship_daemon.evaluate.harness import Harness
from kinship_daemon.hub.folder import FolderHub
from kinship_daemon.opening import evaluation_settings
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint, compare
from kinship_daemon.weights.kinship import matrix
from kinship_daemon.weights.materialise import leaf_assembly
from kinship_daemon.weights.recipe import leaf

HERE = Path(demo.__file__).parent
SHELVES = (HERE / "hub", HERE / "held_back")
FOLDERS = {
    f"demo/{folder.name}": folder for shelf in SHELVES for folder in sorted(shelf.glob("demo/*"))
}
FINETUNES = {name: folder for name, folder in FOLDERS.items() if name != demo.BASE}


@pytest.fixture(scope="module")
def accuracies():
    """By model and skill, on the validation documents, by our own forward pass."""
    return {
        name: {
            skill: accuracy(
                model_of(load_file(folder / "model.safetensors")), exam(skill, "validation")
            )
            for skill in SKILLS
        }
        for name, folder in FOLDERS.items()
    }


def mean(by_skill):
    return sum(by_skill.values()) / len(by_skill)


def test_the_files_are_those_that_were_trained_and_small():
    manifest = json.loads((HERE / "MANIFEST.json").read_text())["sha256"]
    for name, sha256 in manifest.items():
        assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == sha256, name
    embedded = [f for shelf in (*SHELVES, demo.TASKS) for f in shelf.rglob("*") if f.is_file()]
    listed = {str(f.relative_to(HERE)) for f in embedded if "__pycache__" not in f.parts}
    assert listed == set(manifest)
    assert sum(file.stat().st_size for file in embedded) < 8e6


def test_there_is_a_base_five_finetunes_and_one_held_back():
    assert len(FINETUNES) == 6
    assert [name for name in FINETUNES if not (HERE / "hub" / name).exists()] == [demo.HELD_BACK]
    base = Checkpoint.open(FOLDERS[demo.BASE])
    for folder in FINETUNES.values():
        compare(base, Checkpoint.open(folder))


def test_each_finetune_is_clearly_the_best_at_its_own_skill(accuracies):
    for name in FINETUNES:
        skill = name.removeprefix("demo/")
        others = [row[skill] for other, row in accuracies.items() if other != name]
        assert accuracies[name][skill] > max(others) + 0.03, name


def test_each_finetune_is_better_than_the_base(accuracies):
    assert all(mean(accuracies[name]) > mean(accuracies[demo.BASE]) for name in FINETUNES)


def test_the_card_says_the_accuracy_that_is_measured(accuracies):
    for name, folder in FINETUNES.items():
        skill = name.removeprefix("demo/")
        assert f"{accuracies[name][skill]:.3f}" in (folder / "README.md").read_text()


def test_finetunes_are_neither_twins_nor_opposites():
    base = Checkpoint.open(FOLDERS[demo.BASE])
    leaves = {name: Checkpoint.open(folder) for name, folder in FINETUNES.items()}
    ledger = gram.extend(gram.start(base, "base"), base, {}, leaves)
    found = matrix(ledger, [leaf(ledger, name) for name in leaves], "pcc")
    pairs = found[torch.triu_indices(6, 6, offset=1).unbind()]
    assert pairs.min() > -0.1
    assert pairs.max() < 0.6


def test_the_harness_agrees_with_a_forward_pass_on_every_task(tmp_path, monkeypatch, accuracies):
    """Beware of BOS, padding and stripped spaces: any of them would make these differ."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = replace(evaluation_settings(config.load(base="demo")), dtype="float32")
    harness = Harness(settings)
    for name in (demo.BASE, "demo/sort"):
        scores = harness.evaluate(leaf_assembly(FOLDERS[name], name), "validation")
        measured = {s.task.split("_")[1]: s.score for s in scores}
        assert measured == pytest.approx(accuracies[name], abs=1e-12)
        assert all(len(score.samples) == 400 for score in scores)
    assert not list(tmp_path.rglob("*"))


def test_what_is_trained_on_is_never_judged_on():
    for skill in SKILLS:
        judged = {e.prompt for part in ("selection", "validation") for e in exam(skill, part)}
        assert len(judged) == 600
        drawn = examples(skill, "training", 1)
        assert not judged & {next(drawn).prompt for _ in range(3000)}
        assert {part_of(e.prompt) for e in exam(skill, "selection")} == {"selection"}
        assert {part_of(e.prompt) for e in exam(skill, "validation")} == {"validation"}


def test_the_documents_shipped_are_those_of_the_script():
    for task in (*demo.SELECTION, *demo.VALIDATION):
        skill, part = task.split("_")[1], "validation" if "_validation" in task else "selection"
        lines = (demo.TASKS / f"{task}.jsonl").read_text().splitlines()
        shipped = [(row["prompt"], row["answer"]) for row in map(json.loads, lines)]
        assert shipped == [(e.prompt, e.answer) for e in exam(skill, part)]
        assert all(answer == solve(prompt) for prompt, answer in shipped)


def test_documents_do_not_depend_on_anything_but_their_seed():
    assert documents("add", "selection", 50, 3) == documents("add", "selection", 50, 3)
    assert documents("add", "selection", 50, 3) != documents("add", "selection", 50, 4)


def test_training_twice_gives_the_same_bits():
    course = replace(FOUNDATION, steps=3)

    def trained():
        model = model_of()
        study(model, course, lambda: None)
        return weights_of(model)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, second = trained(), trained()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_installing_and_releasing_put_whole_repos_into_a_hub(tmp_path):
    hub = tmp_path / "hub"
    demo.install(hub)
    (hub / "demo" / "add" / "mark").touch()
    demo.install(hub)
    assert (hub / "demo" / "add" / "mark").exists()
    before = {listing.id for listing in FolderHub(hub).descendants(demo.BASE)}
    assert demo.HELD_BACK not in before
    assert demo.release(hub) == demo.HELD_BACK
    after = {listing.id for listing in FolderHub(hub).descendants(demo.BASE)}
    assert after - before == {demo.HELD_BACK}
    with pytest.raises(KinshipError, match="released once"):
        demo.release(hub)


def test_nothing_can_be_released_where_no_demo_is(tmp_path):
    with pytest.raises(KinshipError, match="run --base demo"):
        demo.release(tmp_path)
