"""The lineage as one document, and what contradicts itself in it."""

import json
import math
import sqlite3

import pytest

from small_candidates import PLAN, TIME, notice
from small_lineage import score

ADD = "weights = (SELECT weights FROM models WHERE id = 'demo/add')"


def test_the_export_is_the_contract(family):
    document = json.loads(json.dumps(family.export(), allow_nan=False))
    assert document["base"] == "demo/base"
    assert [m["id"] for m in document["models"]][-1] == "m1"
    assert document["models"][-1] == {
        "id": "m1",
        "name": "m1",
        "kind": "merge",
        "generation": 1,
        "parents": ["demo/add", "demo/sort"],
        "recipe": {
            "method": "slerp",
            "parents": ["demo/add", "demo/sort"],
            "parameters": {"t": 0.5},
        },
        "selection": {"add": {"score": 1.0, "stderr": 0.1, "n": 4}},
        "validation": {"add": {"score": 0.5, "stderr": 0.1, "n": 2}},
        "score": 1.0,
        "stopped_after": None,
        "published": "kinship/m1",
        "gate": {
            **{"test": 1, "passed": True, "against": "demo/add", "gain": 0.25, "low": 0.05},
            **{"high": 0.5, "n": 4, "p": None, "alpha": None},
        },
        "status": "admitted",
        "cause": None,
        "setting": None,
        "gated": False,
        "size": None,
    }
    assert document["best"] == {"model": "m1", "score": 1.0, "split": "selection"}
    assert document["generations"] == [
        {
            "decision": 1,
            "generation": 1,
            "proposals": [
                {"parents": ["demo/add", "demo/sort"], "role": "pair", "reason": "the best two"}
            ],
            "top": ["demo/add", "demo/sort"],
            "top_mean_kinship": 0.25,
            "stop": None,
            "stop_kind": None,
        },
        {
            "decision": 2,
            "generation": None,
            "proposals": [],
            "top": ["m1", "demo/add"],
            "top_mean_kinship": None,
            "stop": "converged",
            "stop_kind": "converged",
        },
    ]


def test_the_export_says_who_waits_and_who_was_refused_and_why(family):
    notice(family)
    document = json.loads(json.dumps(family.export(), allow_nan=False))
    assert set(document) == {"base", "models", "candidates", "generations", "best"}
    assert [c["id"] for c in document["candidates"]] == ["demo/add", "demo/far", "demo/gguf"]
    assert document["candidates"][-1] == {
        "id": "demo/gguf",
        "repo": "demo/gguf",
        "revision": "1" * 40,
        "status": "refused",
        "reason": "quantised (gguf)",
        "modified": TIME,
        "downloads": 0,
        "likes": 0,
        "bytes": None,
        "triaged": True,
        "novelty": None,
        "novelty_error": None,
        "ancestry": None,
        "read_bytes": 300,
        "gone": True,
    }
    assert document["candidates"][0]["novelty"] == 0.75


def test_the_export_shows_the_scores_of_the_homes_settings(family):
    family.add_scores([score("recipe:m1", 0, 0, settings="fp7", stderr=math.nan)])

    def shown():
        model = next(m for m in family.export()["models"] if m["id"] == "m1")
        return model["selection"]["add"]

    assert shown() == {"score": 1.0, "stderr": 0.1, "n": 4}
    family.put("settings", {"selection": "fp7", "validation": "fp2"})
    assert shown() == {"score": 0.0, "stderr": None, "n": 2}
    family.put("settings", {})
    family.add_scores([score("recipe:m1", 0, 1, settings="fp8")])
    assert shown()["score"] == 0.5  # the latest, where the home names none


def test_a_sound_lineage_verifies(family):
    assert family.verify() == []
    assert family.verify(lambda *_: "recipe:m1") == []


def test_recipes_are_recomputed_from_their_parents_weights(family):
    asked = []

    def identity(recipe, parents):
        asked.append((recipe["method"], list(parents)))
        return "recipe:else"

    assert family.verify(identity) == [
        "model m1: its recipe gives recipe:else, the lineage says recipe:m1"
    ]
    assert asked == [("slerp", ["sha256:add", "sha256:sort"])]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM models WHERE id = 'demo/sort'", "parents: a row refers to a row of models"),
        ("UPDATE models SET generation = 0 WHERE id = 'm1'", "not from an earlier generation"),
        ("UPDATE models SET recipe = NULL WHERE id = 'm1'", "m1: a merge without its recipe"),
        ("UPDATE models SET weights = NULL WHERE id = 'm1'", "without its recipe's identity"),
        ("UPDATE models SET weights = NULL WHERE id = 'demo/add'", "without its weights' identity"),
        (f"UPDATE scores SET score = 0.7 WHERE {ADD}", "its samples give 0.75"),
        (f"UPDATE scores SET n = 9 WHERE {ADD}", "says 9 samples, holds 4"),
        ("DELETE FROM documents", "holds 0"),
        ("UPDATE models SET cause = NULL", "model demo/bad: quarantined with cause unknown"),
        ("UPDATE models SET cause = 'world'", "model demo/add: admitted with cause world"),
        ("INSERT INTO home VALUES ('folder:m1', '1')", "home: folder:m1 belongs to its model"),
        ("DELETE FROM facts WHERE decision = 1", "decision 1: the facts that it was taken on are"),
        ("UPDATE facts SET value = x'00'", "facts, row 1, column value: holds facts that"),
        ("UPDATE generations SET generation = NULL", "decision 1: a stop proposes no generation"),
        (
            "UPDATE models SET weights = NULL WHERE id = 'demo/sort'",
            "kinships: no model has the weights sha256:sort",
        ),
        ("DELETE FROM gates", "m1: published without having passed the gate"),
        ("UPDATE gates SET passed = 0", "m1: published without having passed the gate"),
        ("DELETE FROM scores", "done, but what it was to leave is not"),
        ("UPDATE jobs SET model = 'gone'", "done, but its model gone"),
        (
            'UPDATE generations SET decision = \'{"merges":[],"top":["gone"]}\' WHERE number = 2',
            "decision 2: names gone, which is not in the lineage",
        ),
        ("UPDATE generations SET stop = 'enough'", "decision 1: is a stop and yet"),
        (
            "INSERT INTO files VALUES (99, 'a', 1, 'ff')",
            "files: a row refers to a row of models that is gone",
        ),
        (
            "INSERT INTO candidates SELECT number, '2026-01-30T21:04:00Z', 0, 0, 0, 0, 0, 0, 0, 0,"
            " NULL FROM models WHERE id = 'm1'",
            "candidate m1: is a merge and came from no hub",
        ),
        ("DELETE FROM models WHERE id = 'demo/gguf'", "candidates: row 7 refers to a row of"),
        (
            f"UPDATE samples SET vector = x'00' WHERE plan = '{PLAN}' AND vector = zeroblob(16)",
            f"plan {PLAN}: its vectors have 2 lengths",
        ),
    ],
)
def test_every_contradiction_is_found(family, path, damage, problem):
    notice(family)
    assert family.verify() == []
    stranger = sqlite3.connect(path)  # references are not enforced here
    stranger.execute("PRAGMA ignore_check_constraints = ON")
    stranger.execute(damage)
    stranger.commit()
    stranger.close()
    assert any(problem in line for line in family.verify()), family.verify()
