"""Documents are asked in chunks that know nothing of each other, and none is asked twice."""

from dataclasses import replace
from pathlib import Path

import pytest

import lmtasks
from kinship_daemon.evaluate.harness import Harness
from kinship_daemon.evaluate.scoring import missing, score_split, scores
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.weights.materialise import leaf_assembly

CHUNK = 8
ADD = Task(task="add", num_fewshot=2)
SORT = Task(task="sort")


def document(i: int) -> dict[str, object]:
    letters = "abcdefghij"
    prompt = f"{letters[i % 10]}{letters[i // 10]}{i}="
    return {"prompt": prompt, "answer": f"{letters[i * 7 % 10]}{letters[i * 3 % 10]}"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two tasks of likelihoods; the examples of the first are drawn for every document."""
    folder = lmtasks.probe(tmp_path / "tasks", "add", [document(i) for i in range(30)])
    lmtasks.probe(folder, "sort", [document(i) for i in range(30, 40)])
    return Settings(
        selection=(ADD, SORT),
        validation=(),
        batch_size=4,
        chunk=CHUNK,
        device="cpu",
        dtype="float32",
        seed=0,
        include_path=(folder,),
        threads=1,
    )


class Recorder:
    """A harness that tells what it was asked."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.settings = harness.settings
        self.asked: list[tuple[str, int]] = []

    def evaluate(self, assembly, documents, progress=None):
        self.asked += [(task.task, number) for task, ids in documents.items() for number in ids]
        return self._harness.evaluate(assembly, documents, progress)


def test_no_answer_depends_on_other_chunks_or_tasks(settings, tiny_base):
    harness = Harness(settings)
    asked = leaf_assembly(tiny_base, "sha256:x")
    whole = {s.task: dict(s.samples) for s in score_split(harness, asked, "selection")}
    order = missing(harness.settings, "selection")
    assert {task.task: len(ids) for task, ids in order.items()} == {"add": 30, "sort": 10}
    for first in (0, CHUNK, 3 * CHUNK):
        chunk = order[ADD][first : first + CHUNK]
        (found,) = harness.evaluate(asked, {ADD: chunk}).answers
        assert found.samples == tuple((i, whole["add"][i]) for i in sorted(chunk))
    backwards = (*order[ADD][CHUNK : 2 * CHUNK], *order[ADD][:CHUNK])
    sort, add = harness.evaluate(asked, {SORT: order[SORT], ADD: backwards}).answers
    assert dict(sort.samples) == whole["sort"]
    assert add.samples == tuple((i, whole["add"][i]) for i in sorted(backwards))


def test_what_is_known_is_not_asked_again(settings, tiny_base):
    harness = Recorder(Harness(settings))
    assembly = leaf_assembly(tiny_base, "sha256:x")
    whole = score_split(harness, assembly, "selection")
    assert sorted(harness.asked) == sorted(set(harness.asked))
    assert len(harness.asked) == 40
    harness.asked.clear()
    assert score_split(harness, assembly, "selection", known=whole) == whole
    assert harness.asked == []
    order = missing(harness.settings, "selection")[ADD]
    begun = harness.evaluate(assembly, {ADD: order[:CHUNK]}).answers
    some = scores(begun, harness.settings.but(selection=(ADD,)), "selection", "sha256:x")
    some = [replace(score, settings=whole[0].settings) for score in some]
    assert [score.n for score in some] == [CHUNK]
    harness.asked.clear()
    assert score_split(harness, assembly, "selection", known=some) == whole
    assert harness.asked[: 30 - CHUNK] == [("add", i) for i in order[CHUNK:]]
    assert {task for task, _ in harness.asked[30 - CHUNK :]} == {"sort"}


def test_a_chunk_that_is_half_known_is_asked_whole(settings, tiny_base):
    """Its answers depend on the whole of it."""
    harness = Recorder(Harness(settings))
    assembly = leaf_assembly(tiny_base, "sha256:x")
    whole = score_split(harness, assembly, "selection")
    order = missing(harness.settings, "selection")[ADD]
    kept = set(order[: CHUNK + 3])
    half = replace(whole[0], samples=tuple(pair for pair in whole[0].samples if pair[0] in kept))
    assert missing(harness.settings, "selection", [half, whole[1]]) == {ADD: order[CHUNK:]}
    assert score_split(harness, assembly, "selection", known=[half, whole[1]]) == whole


def test_it_is_told_what_was_computed_and_what_lm_eval_would_have(settings, tiny_base):
    harness = Harness(settings)
    assembly = leaf_assembly(tiny_base, "sha256:x")
    asked = missing(harness.settings, "selection")
    cost = harness.evaluate(assembly, asked).cost
    assert 0 < cost.computed <= cost.lm_eval
    assert harness.evaluate(assembly, asked).cost == cost
    assert harness.evaluate(assembly, {SORT: asked[SORT]}).cost.computed < cost.computed


def test_prompts_that_lose_their_beginning_are_counted_for_their_task(settings, tiny_base):
    many = settings.but(selection=(Task(task="add", num_fewshot=20), SORT))
    harness = Harness(many)
    found = harness.evaluate(
        leaf_assembly(tiny_base, "sha256:x"), missing(harness.settings, "selection")
    )
    assert [answers.cut for answers in found.answers] == [30, 0]
