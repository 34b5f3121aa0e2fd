"""Selection and validation never share a document, and the choice is seeded."""

from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmtasks
from kinship_daemon.errors import UsageError
from kinship_daemon.evaluate.settings import Settings, Task, TaskDocuments
from kinship_daemon.evaluate.split import chunks, documents


def settings(**changes) -> Settings:
    return lmtasks.settings(["add", "sort"], ["add", "max"], **{"batch_size": 4, **changes})


def pick(count=100, split="selection", **changes):
    chosen = {"shared": True, "limit": None, "seed": 0} | changes
    return documents("add", count, split, **chosen)


@given(count=st.integers(4, 300), seed=st.integers(0, 9), limit=st.none() | st.integers(2, 200))
def test_a_shared_task_never_shows_one_document_to_both(count, seed, limit):
    selection = pick(count, "selection", seed=seed, limit=limit)
    validation = pick(count, "validation", seed=seed, limit=limit)
    assert not set(selection) & set(validation)
    assert set(selection) | set(validation) <= set(range(count))
    if limit is None:
        assert len(selection) + len(validation) == count
        assert len(validation) - len(selection) in (0, 1)


def test_a_limit_takes_the_first_of_the_same_order():
    for split in ("selection", "validation"):
        assert pick(split=split, limit=20) == pick(split=split)[:20]
        assert list(pick(split=split)) != sorted(pick(split=split))


@given(count=st.integers(2, 300), size=st.integers(1, 80))
def test_chunks_are_the_order_cut_into_equal_pieces(count, size):
    order = pick(count, shared=False)
    found = chunks(order, size)
    assert [document for chunk in found for document in chunk] == list(order)
    assert {len(chunk) for chunk in found[:-1]} <= {size}
    assert 1 <= len(found[-1]) <= size


def test_the_same_seed_chooses_the_same_documents_and_another_seed_others():
    assert pick(seed=3) == pick(seed=3)
    assert pick(seed=3) != pick(seed=4)


def test_tasks_are_cut_independently():
    assert pick() != documents("sort", 100, "selection", shared=True, limit=None, seed=0)


def test_a_limit_only_shortens_the_choice():
    assert set(pick(limit=10)) < set(pick(limit=30)) < set(pick())


def test_a_limit_takes_documents_from_everywhere_and_not_the_first_ones():
    assert max(pick(1000, limit=20)) > 800


def test_a_task_of_one_list_is_used_whole():
    assert sorted(pick(shared=False)) == list(range(100))


@pytest.mark.parametrize(("count", "limit"), [(0, None), (3, None), (100, 1)])
def test_too_few_documents_are_refused_with_what_would_work(count, limit):
    with pytest.raises(UsageError, match=f"'add' has {count} documents.*evaluate.limit"):
        pick(count, limit=limit)


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 10},
        {"seed": 1},
        {"batch_size": 8},
        {"chunk": 8},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"threads": 2},
        {"apply_chat_template": True},
        {"selection": (Task(task="add", num_fewshot=3), Task(task="sort"))},
        {"selection": (Task(task="add", metric="acc_norm"), Task(task="sort"))},
        # The same selection tasks, but now sort's documents are halved.
        {"validation": (Task(task="add"), Task(task="sort"))},
    ],
)
def test_whatever_changes_a_score_changes_the_fingerprint(change):
    assert settings(**change).fingerprint("selection") != settings().fingerprint("selection")


def test_the_fingerprint_leaves_out_what_does_not_change_a_score(tmp_path: Path):
    same = settings(
        time_limit_minutes=0.1,
        selection=(Task(task="sort"), Task(task="add")),
        validation=(Task(task="add"), Task(task="subtract")),
    )
    assert same.fingerprint("selection") == settings().fingerprint("selection")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.yaml").write_text("task: add\n")
    here = settings(include_path=(tmp_path / "here",)).fingerprint("selection")
    assert here == settings(include_path=(tmp_path / "there",)).fingerprint("selection")


def test_the_fingerprint_follows_the_bytes_of_a_task_folder(tmp_path: Path):
    prints = set()
    for name, answer in (("one", "4"), ("two", "5")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(answer)
        prints.add(settings(include_path=(tmp_path / name,)).fingerprint("selection"))
    assert len(prints) == 2


def test_the_two_splits_have_different_fingerprints():
    both = settings(validation=settings().selection)
    assert both.fingerprint("selection") != both.fingerprint("validation")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"selection": (Task(task="add"), Task(task="add", metric="acc"))}, "'add' twice"),
        ({"dtype": "float8"}, "float8.*bfloat16"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"include_path": (Path("/nowhere"),)}, "/nowhere"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(UsageError, match=words):
        settings(**change).fingerprint("selection")


@given(count=st.integers(8, 200), seed=st.integers(0, 9), size=st.integers(2, 4))
def test_documents_of_one_cluster_follow_each_other_and_are_never_in_both_halves(count, seed, size):
    clusters = [size * (document // size) for document in range(count)]
    halves = [
        pick(count, split, seed=seed, clusters=clusters) for split in ("selection", "validation")
    ]
    assert sorted(document for half in halves for document in half) == list(range(count))
    texts = [[clusters[document] for document in half] for half in halves]
    assert not set(texts[0]) & set(texts[1])
    for half in texts:
        assert len([text for text, _ in groupby(half)]) == len(set(half))
    assert abs(len(halves[0]) - len(halves[1])) <= 2 * size


def test_what_is_said_of_clusters_changes_the_fingerprint_only_where_there_are_some():
    known = {"digest": "d", "count": 4}
    plain, none, some = (
        settings().but(documents={"selection": {"add": TaskDocuments(**known, **more)}})
        for more in ({}, {"clusters": ()}, {"clusters": (0, 0, 2, 3)})
    )
    assert plain.fingerprint("selection") == none.fingerprint("selection")
    assert plain.fingerprint("selection") != some.fingerprint("selection")
