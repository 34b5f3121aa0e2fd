"""What the lineage keeps and refuses to rewrite."""

import math
import statistics
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from kinship_storage.best import Best
from kinship_storage.errors import LineageError
from kinship_storage.lineage import Lineage
from kinship_storage.records import Candidate, File, Gate, Generation, Publication
from small_lineage import finetune, merge, score

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
    again = replace(finetune("add"), status="seen", weights=None, license=None)
    files = [File("model.safetensors", 1000, "add" * 16)]
    assert family.add_model(again, files) == before
    assert family.model("demo/add") == before


@pytest.mark.parametrize(
    "other", [{"revision": "2" * 40}, {"weights": "sha256:other"}, {"kind": "base"}]
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
    assert [m.id for m in family.by_weights("recipe:m1")] == ["m1"]
    assert family.by_weights("recipe:unknown") == []


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
    learned = {
        "parameters": 5,
        "folder": "/models/add",
        "size": 1000,
        "gated": True,
        "screen": 0.25,
        "not_published": "licence",
    }
    updated = family.update_model("demo/add", **learned)
    assert family.model("demo/add") == updated
    assert {name: getattr(updated, name) for name in learned} == learned
    with pytest.raises(LineageError, match="parents, repo cannot be written; these can: folder"):
        family.update_model("demo/add", repo="else/where", parents=())
    with pytest.raises(LineageError, match="cause, reason, status cannot be written"):
        family.update_model("demo/add", status="refused", reason="licence", cause="settings")
    with pytest.raises(LineageError, match="other weights"):
        family.update_model("demo/add", weights="sha256:else")
    with pytest.raises(LineageError, match="no model 'nobody'"):
        family.update_model("nobody", size=1)


def test_weights_are_filled_in_once_they_are_known(lineage):
    lineage.add_model(replace(finetune("add"), weights=None))
    assert lineage.update_model("demo/add", weights="sha256:add").weights == "sha256:add"
    assert lineage.update_model("demo/add", weights="sha256:add").weights == "sha256:add"


def test_what_a_column_cannot_hold_is_refused_by_the_file_itself(family):
    with pytest.raises(LineageError, match="contradicts"):
        family.update_model("demo/add", size="large")


@pytest.mark.parametrize("status", ["quarantined", "wonderful"])
def test_a_model_begins_in_a_state_where_a_life_begins(lineage, status):
    with pytest.raises(LineageError, match=f"cannot begin as {status}; it can begin as seen, "):
        lineage.add_model(finetune("add", status=status))
    with pytest.raises(LineageError, match="without a cause: model, world or settings"):
        lineage.add_model(finetune("add", status="refused", reason="too large"))
    assert lineage.models() == []


def test_a_state_changes_by_its_events_only(family):
    with pytest.raises(
        LineageError,
        match="model m1 is admitted and cannot admit; it can forget, quarantine, refuse",
    ):
        family.move_model("m1", "admit")
    with pytest.raises(LineageError, match="model m1 is a merge and cannot refuse"):
        family.move_model("m1", "refuse", cause="model")
    family.move_model("m1", "quarantine", reason="no memory", cause="world")
    with pytest.raises(LineageError, match="model m1 is a merge and cannot reopen"):
        family.move_model("m1", "reopen")
    assert family.move_model("m1", "repropose").status == "proposed"
    with pytest.raises(LineageError, match="model demo/bad is a finetune and cannot repropose"):
        family.move_model("demo/bad", "repropose")
    with pytest.raises(LineageError, match="no model 'nobody'"):
        family.move_model("nobody", "admit")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "without a cause: model, world or settings"),
        ({"cause": "settings"}, "names the config key"),
        ({"cause": "world", "setting": "triage.max_gb"}, "names the config key"),
        ({"cause": "model", "retry_at": "2026-02-01T00:00:00Z"}, "only cause world has a time"),
        ({"cause": "world", "retry_at": "tomorrow"}, "contradicts"),
    ],
)
def test_what_is_set_aside_says_whose_fault_it_is(family, given, problem):
    before = family.model("demo/add")
    with pytest.raises(LineageError, match=problem):
        family.move_model("demo/add", "quarantine", reason="why", **given)
    assert family.model("demo/add") == before


def test_what_is_opened_again_takes_no_cause_and_keeps_its_faults(family):
    with pytest.raises(LineageError, match="that takes no cause"):
        family.move_model("demo/bad", "reopen", cause="world")
    for faults in (1, 2):
        gone = {"reason": "the hub is away", "cause": "world", "retry_at": "2026-01-31T09:00:00Z"}
        model = family.move_model("demo/add", "quarantine", **gone)
        assert (model.reason, model.cause, model.faults) == ("the hub is away", "world", faults)
        model = family.move_model("demo/add", "reopen")
        assert (model.status, model.reason, model.cause, model.retry_at) == ("seen", *[None] * 3)
        assert model.faults == faults
    assert family.move_model("demo/add", "admit").faults == 0
    assert family.model("demo/add").faults == 0


def test_what_was_set_aside_for_the_world_is_found_when_its_time_comes(family):
    family.move_model("demo/add", "quarantine", cause="world", retry_at="2026-01-31T09:00:00Z")
    family.move_model("demo/sort", "refuse", cause="world")
    assert family.due_models(datetime(2026, 1, 31, 8, 59, 59, tzinfo=UTC)) == []
    assert [m.id for m in family.due_models(datetime(2026, 1, 31, 9, tzinfo=UTC))] == ["demo/add"]
    assert [m.id for m in family.set_aside()] == ["demo/add", "demo/bad", "demo/sort"]
    assert [m.id for m in family.set_aside("world")] == ["demo/add", "demo/sort"]
    assert family.set_aside("settings") == []
    assert family.count_set_aside() == {
        ("quarantined", "model"): 1,
        ("quarantined", "world"): 1,
        ("refused", "world"): 1,
    }


def test_the_best_source_of_bytes_comes_first(family):
    def copy(name, status="seen", *, gone=False, **learned):
        family.add_model(finetune(name, weights="sha256:add", status=status))
        family.update_model(f"demo/{name}", **learned)
        family.add_candidate(Candidate(f"demo/{name}", "2026-01-30T21:04:00Z", gone=gone))

    copy("a-gone", gone=True, folder="/models/a-gone")
    copy("b")
    copy("c", folder="/models/c")
    copy("d", "admitted", gone=True)
    expected = ["demo/add", "demo/d", "demo/c", "demo/b", "demo/a-gone"]
    assert [m.id for m in family.by_weights("sha256:add")] == expected


def test_ancestors_are_everyone_a_model_descends_from_once(family):
    family.add_model(merge("m2", ("m1", "demo/add"), generation=2))
    family.add_model(merge("m3", ("m2", "m1"), generation=3))
    found = [m.id for m in family.ancestors(family.model("m3"))]
    assert found == ["demo/add", "demo/sort", "m1", "m2"]
    assert family.ancestors(family.model("demo/add")) == []


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
    facts = {"generation": 1, "members": []}
    family.add_generation(first, facts)
    with pytest.raises(LineageError, match="another seed"):
        family.add_generation(replace(first, seed=8), facts)
    with pytest.raises(LineageError, match="decision 1 is in the lineage already with other facts"):
        family.add_generation(first, {"generation": 1, "members": [{"name": "demo/add"}]})
    family.add_generation(replace(first, number=5, generation=2), facts)
    with pytest.raises(LineageError, match="decision 3 cannot follow 5"):
        family.add_generation(replace(first, number=3, generation=3), facts)
    with pytest.raises(LineageError, match="generation 2 cannot follow 2"):
        family.add_generation(replace(first, number=6, generation=2), facts)


def test_a_stop_has_a_kind(family):
    stop = Generation(3, None, "mine", {}, 1, {"merges": [], "top": []}, stop="enough")
    with pytest.raises(LineageError, match="contradicts"):
        family.add_generation(stop, {})
    family.add_generation(replace(stop, stop_kind="budget"), {})
    assert family.last_generation().stop_kind == "budget"


def test_gates_and_publications_come_back_and_are_never_rewritten(family):
    gate, publication = family.gate("m1", "fp2"), family.publication("m1")
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
    again = replace(gate, evaluation="fp9", passed=False, test=2)
    family.add_gate(again)
    assert family.gates_of("m1") == family.gates() == [gate, again]
    assert family.gates("fp9") == family.judgements()[1:] == [again]
    assert family.gate("m1", "other") is None
    assert family.gates_of("demo/add") == []
    assert family.publication("demo/add") is None


def test_nothing_is_said_about_models_that_are_not_there(lineage):
    with pytest.raises(LineageError, match="no model 'nobody'"):
        lineage.add_gate(Gate("nobody", "noone", False, 0, 0, 0, 1, "no", "fp2"))
    with pytest.raises(LineageError, match="no model 'nobody'"):
        lineage.add_publication(Publication("nobody", "a/b", "1", "u"))


def test_facts_about_the_home_are_any_json(lineage):
    assert lineage.get("base") is None
    for value in ("demo", {"a": [1, None, 0.1]}, 0, False):
        lineage.put("base", value)
        assert lineage.get("base") == value


def test_a_number_that_json_cannot_say_is_refused(lineage):
    with pytest.raises(ValueError, match="JSON"):
        lineage.put("threshold", math.nan)


def test_of_a_file_the_newest_hash_is_remembered(lineage):
    lineage.remember_hashes({"/models/b": (10, 123, "bb"), "/models/a": (11, 124, "aa")})
    lineage.remember_hashes({"/models/b": (11, 125, "cc")})
    assert lineage.file_hashes() == {"/models/a": (11, 124, "aa"), "/models/b": (11, 125, "cc")}
    assert lineage.file_hash(Path("/models/b"), 11, 125) == "cc"
    assert lineage.file_hash(Path("/models/b"), 10, 123) is None


def test_generations_hold_what_the_policy_saw(family):
    member = {"name": "demo/add", "score": None}
    facts = {
        "generation": 3,
        "members": [{**member, "samples": {"add": (1.0,)}}],
        "kinship": ((1.0,),),
        "layers": (((1.0,),),),
    }
    given = Generation(3, 2, "mine", {"k": 2}, 1, {"merges": [], "top": []})
    family.add_generation(given, facts)
    family.add_generation(given, facts)
    assert family.generations()[-1] == replace(given, created="2026-01-31T08:15:00Z")
    assert family.facts(3) == {"generation": 3, "members": [member]}
    assert family.members(3) == {"demo/add"}
    assert family.facts(4) is None
    assert family.members(4) == frozenset()


def test_a_score_is_extended_by_documents(lineage):
    lineage.add_scores([score("w", 1, 0)])
    after = lineage.extend_score("w", "selection", "add", "fp1", [(5, 1), (2, 0.5), (1, 0)])
    assert after.samples == ((0, 1), (1, 0), (2, 0.5), (5, 1))
    assert (after.score, after.n) == (0.625, 4)
    assert after.stderr == pytest.approx(statistics.stdev([1, 0, 0.5, 1]) / 2)
    assert lineage.scores("w") == [after]
    assert lineage.extend_score("w", "selection", "add", "fp1", [(5, 1)]) == after
    assert lineage.verify() == []


def test_a_document_is_never_rewritten(lineage):
    lineage.add_scores([score("w", 1, 0)])
    with pytest.raises(LineageError, match="another value for document 1; what happened is not"):
        lineage.extend_score("w", "selection", "add", "fp1", [(2, 1), (1, 1)])
    with pytest.raises(LineageError, match="no selection score of w on sort to add documents to"):
        lineage.extend_score("w", "selection", "sort", "fp1", [(1, 1)])
    assert lineage.scores("w") == [score("w", 1, 0)]


def test_scores_can_be_had_without_their_documents(lineage):
    lineage.add_scores([score("w", 1, 0)])
    assert lineage.scores("w", samples=False) == [replace(score("w", 1, 0), samples=())]


def test_what_was_spent_counts_by_day(lineage):
    assert lineage.spent("download_gb", "2026-01-31") == 0
    lineage.spend("download_gb", "2026-01-31", 1.5)
    lineage.spend("download_gb", "2026-01-31", 2)
    lineage.spend("candidates", "2026-01-31", 1)
    assert lineage.spent("download_gb", "2026-01-31") == 3.5
    assert lineage.budgets("2026-01-31") == {"candidates": 1, "download_gb": 3.5}
    assert lineage.budgets("2026-02-01") == {}


def test_the_best_has_the_highest_selection_score_under_the_homes_settings(family):
    assert family.best() == Best("m1", 1.0)
    family.add_model(merge("m2", ("demo/add", "m1"), generation=1, status="admitted"))
    family.add_scores([score("recipe:m2", 1), score("sha256:base", 1, 1)])
    family.add_scores([score("sha256:sort", 2, settings="other")])
    assert family.best() == Best("m1", 1.0)
    family.move_model("m1", "quarantine", cause="model")
    assert family.best() == Best("m2", 1.0)
    family.put("settings", {"selection": "other"})
    assert family.best() == Best("demo/sort", 2.0)
    family.put("settings", {"selection": "nothing"})
    assert family.best() is None
