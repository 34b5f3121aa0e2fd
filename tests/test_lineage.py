"""What the lineage keeps and refuses to rewrite."""

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from kinship_storage.errors import LineageError
from kinship_storage.lineage import Lineage
from kinship_storage.records import File, Gate, Generation, Publication
from small_lineage import fill, finetune, merge, open_lineage, score


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lineage.db"


@pytest.fixture
def lineage(path):
    with open_lineage(path) as opened:
        yield opened


@pytest.fixture
def family(lineage):
    fill(lineage)
    return lineage


# Models


def test_a_model_comes_back_as_it_was_added_with_its_time(lineage):
    lineage.add_model(finetune("add"))
    lineage.add_model(finetune("sort"))
    child = merge("m", ("demo/sort", "demo/add"))
    lineage.add_model(child)
    assert lineage.model("m") == replace(child, created="2026-01-31T08:15:00Z")
    assert lineage.model("nobody") is None


def test_times_are_written_in_utc(path):
    berlin = datetime(2026, 1, 31, 9, 15, tzinfo=timezone(timedelta(hours=1)))
    with Lineage.open(path, now=lambda: berlin) as lineage:
        assert lineage.add_model(finetune("add")).created == "2026-01-31T08:15:00Z"


def test_adding_a_model_twice_changes_nothing(family):
    before = family.model("demo/add")
    again = replace(finetune("add"), status="seen", weights=None, license=None, joined=None)
    files = [File("model.safetensors", 1000, "add" * 16)]
    assert family.add_model(again, files) == before
    assert family.model("demo/add") == before


@pytest.mark.parametrize(
    "other", [{"revision": "2" * 40}, {"weights": "sha256:other"}, {"kind": "adapter"}]
)
def test_an_id_never_stands_for_another_model(family, other):
    with pytest.raises(LineageError, match=f"another {next(iter(other))}"):
        family.add_model(replace(finetune("add"), **other))


def test_an_id_never_stands_for_another_recipe(family):
    with pytest.raises(LineageError, match="another recipe, parents"):
        family.add_model(merge("m1", ("demo/sort", "demo/add")))


def test_a_merge_needs_its_parents(lineage):
    with pytest.raises(LineageError, match="its parent demo/add is not in the lineage"):
        lineage.add_model(merge("m", ("demo/add", "demo/sort")))
    assert lineage.models() == []


def test_files_are_sorted_and_never_replaced(lineage):
    lineage.add_model(finetune("add"))
    first, second = File("a.safetensors", 1, "0"), File("b.safetensors", 2, "1")
    lineage.add_files("demo/add", [second, first])
    lineage.add_files("demo/add", [first, second])
    assert lineage.files("demo/add") == [first, second]
    with pytest.raises(LineageError, match="other files"):
        lineage.add_files("demo/add", [first, replace(second, sha256="2")])


def test_models_are_ordered_and_found(family):
    assert [m.id for m in family.models()] == [
        "demo/add",
        "demo/bad",
        "demo/base",
        "demo/sort",
        "m1",
    ]
    assert [m.id for m in family.models(kind="finetune", status="admitted")] == [
        "demo/add",
        "demo/sort",
    ]
    assert [m.id for m in family.models("finetune", ("quarantined", "admitted"))] == [
        "demo/add",
        "demo/bad",
        "demo/sort",
    ]
    assert family.models(status=()) == []
    assert family.find("demo/add", "1" * 40).id == "demo/add"
    assert family.find("demo/add", "2" * 40) is None
    assert [m.id for m in family.by_weights("recipe:m1")] == ["m1"]


def test_every_model_comes_with_its_own_parents_however_it_is_found(family):
    family.add_model(merge("m2", ("m1", "demo/sort"), generation=2))
    expected = {"m1": ("demo/add", "demo/sort"), "m2": ("m1", "demo/sort")}

    def parents(models):
        return {m.id: m.parents for m in models if m.parents}

    assert parents(family.models()) == expected
    assert parents(family.models("merge")) == expected
    assert parents(family.models(status="proposed")) == {"m2": expected["m2"]}
    assert parents(family.models(status=("admitted", "proposed"))) == expected
    assert parents([family.model("m2"), *family.by_weights("recipe:m1")]) == expected


def test_what_is_learned_later_is_updated_and_origin_is_not(family):
    updated = family.update_model("demo/add", status="refused", reason="licence", parameters=5)
    assert family.model("demo/add") == updated
    assert (updated.status, updated.reason, updated.parameters) == ("refused", "licence", 5)
    with pytest.raises(LineageError, match="parents, repo never changes"):
        family.update_model("demo/add", repo="else/where", parents=())
    with pytest.raises(LineageError, match="other weights"):
        family.update_model("demo/add", weights="sha256:else")
    with pytest.raises(LineageError, match="no model 'nobody'"):
        family.update_model("nobody", status="refused")


def test_weights_are_filled_in_once_they_are_known(lineage):
    lineage.add_model(replace(finetune("add"), weights=None))
    assert lineage.update_model("demo/add", weights="sha256:add").weights == "sha256:add"
    assert lineage.update_model("demo/add", weights="sha256:add").weights == "sha256:add"


def test_an_unknown_status_is_refused_by_the_file_itself(family):
    with pytest.raises(LineageError, match="contradicts"):
        family.update_model("demo/add", status="wonderful")


# Measurements and decisions


def test_kinships_are_looked_up_by_model_either_way_round(family):
    assert family.kinship("pcc", "demo/add", "demo/sort") == 0.25
    assert family.kinship("pcc", "demo/sort", "demo/add") == 0.25
    assert family.kinship("cosine", "demo/add", "demo/sort") is None
    assert family.kinships("pcc") == {("demo/add", "demo/sort"): 0.25}


def test_the_same_weights_under_two_names_share_their_kinship(family):
    family.add_model(finetune("copy", weights="sha256:add"))
    assert family.kinships("pcc") == {
        ("demo/add", "demo/sort"): 0.25,
        ("demo/copy", "demo/sort"): 0.25,
    }


def test_an_undefined_kinship_is_known_to_be_undefined_and_the_first_stays(family):
    family.add_kinships("pcc", [("recipe:m1", "sha256:add", math.nan)])
    family.add_kinships(
        "pcc", [("recipe:m1", "sha256:sort", None), ("sha256:add", "sha256:sort", 1)]
    )
    assert family.kinships("pcc") == {
        ("demo/add", "demo/sort"): 0.25,
        ("demo/add", "m1"): None,
        ("demo/sort", "m1"): None,
    }


def test_scores_come_back_exactly_with_their_samples(lineage):
    given = score("w", 0.1, 0.2, 0.30000000000000004, stderr=math.nan)
    lineage.add_scores([given])
    found = lineage.scores("w")[0]
    assert math.isnan(found.stderr)
    assert replace(found, stderr=0.0) == replace(given, stderr=0.0)


def test_scores_are_told_apart_by_split_and_settings(lineage):
    rows = [
        score("w", 1, split="validation"),
        score("w", 0, settings="fp9"),
        score("w", 1, task="sort"),
        score("w", 1),
    ]
    lineage.add_scores(rows)
    assert lineage.scores("w") == [rows[1], rows[3], rows[2], rows[0]]
    assert lineage.scores("w", split="validation") == [rows[0]]
    assert lineage.scores("w", split="selection", settings="fp9") == [rows[1]]
    assert lineage.scores("other") == []


def test_a_score_is_never_rewritten(lineage):
    lineage.add_scores([score("w", 1, 0)])
    lineage.add_scores([score("w", 1, 0)])
    with pytest.raises(LineageError, match="another score, samples"):
        lineage.add_scores([score("w", 1, 1)])
    assert [s.score for s in lineage.scores("w")] == [0.5]


def test_decisions_ascend_and_are_never_rewritten(family):
    first, last = family.generations()
    assert (first.number, first.stop, last.number, last.stop) == (1, None, 2, "converged")
    family.add_generation(first)
    with pytest.raises(LineageError, match="another seed"):
        family.add_generation(replace(first, seed=8))
    family.add_generation(replace(first, number=5))
    with pytest.raises(LineageError, match="generation 3 cannot follow 5"):
        family.add_generation(replace(first, number=3))


def test_gates_and_publications_come_back_and_are_never_rewritten(family):
    gate, publication = family.gate("m1"), family.publication("m1")
    assert gate.passed is True
    assert publication.files == {"README.md": "c" * 64}
    assert family.gates() == [gate]
    assert family.publications() == [publication]
    family.add_gate(gate)
    family.add_publication(replace(publication, created=""))
    with pytest.raises(LineageError, match="another passed"):
        family.add_gate(replace(gate, passed=False))
    with pytest.raises(LineageError, match="another revision"):
        family.add_publication(replace(publication, revision="3"))
    assert family.gate("demo/add") is None
    assert family.publication("demo/add") is None


def test_nothing_is_said_about_models_that_are_not_there(lineage):
    with pytest.raises(LineageError, match="FOREIGN KEY"):
        lineage.add_gate(Gate("nobody", "noone", False, 0, 0, 0, 1, "no"))
    with pytest.raises(LineageError, match="FOREIGN KEY"):
        lineage.add_publication(Publication("nobody", "a/b", "1", "u"))


def test_facts_about_the_home_are_any_json(lineage):
    assert lineage.get("base") is None
    for value in ("demo", {"a": [1, None, 0.1]}, 0, False):
        lineage.put("base", value)
        assert lineage.get("base") == value


def test_a_number_that_json_cannot_say_is_refused(lineage):
    with pytest.raises(ValueError, match="JSON"):
        lineage.put("threshold", math.nan)


def test_a_hash_is_remembered_for_an_unchanged_file_only(lineage):
    file = Path("/models/model.safetensors")
    lineage.remember_hash(file, 10, 123, "aa")
    assert lineage.file_hash(file, 10, 123) == "aa"
    assert lineage.file_hash(file, 11, 123) is None
    assert lineage.file_hash(file, 10, 124) is None
    lineage.remember_hash(file, 11, 124, "bb")
    assert lineage.file_hash(file, 10, 123) is None
    assert lineage.file_hash(file, 11, 124) == "bb"


def test_generations_hold_what_the_policy_saw(family):
    facts = {"members": [{"name": "demo/add", "score": None}], "generation": 3}
    given = Generation(3, "mine", {"k": 2}, 1, facts, {"merges": [], "top": []}, "enough")
    family.add_generation(given)
    assert family.generations()[-1] == replace(given, created="2026-01-31T08:15:00Z")
