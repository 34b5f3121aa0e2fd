"""`replay`: every recorded decision again, and what differs."""

import json
import multiprocessing
import sqlite3

import pytest

import command
from kinship_daemon import child_process
from test_evolution import SMALL, evolve, opened

pytestmark = pytest.mark.usefixtures("shared_worker")

MOODY = {**SMALL, "evaluate.limit": "4", "policy": "{use: 'scripted_policies:Moody'}"}


@pytest.fixture(autouse=True)
def policies_started_anew(shared_worker, monkeypatch):
    """Their mood is in the environment that they are started with."""
    monkeypatch.setattr(child_process, "_CONTEXT", multiprocessing.get_context("spawn"))


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def replayed(home, monkeypatch, capfd):
    """What `replay` says of the home."""

    def replay(*options):
        return command.call(["replay", "--home", home, *options], monkeypatch, capfd)

    return replay


def rewrite(home, number, change):
    """Change a recorded decision behind the daemon's back."""
    with sqlite3.connect(home / "lineage.db") as database:
        where = "FROM generations WHERE number = ?"
        (text,) = database.execute(f"SELECT decision {where}", [number]).fetchone()
        decision = json.loads(text)
        change(decision)
        database.execute(
            "UPDATE generations SET decision = ? WHERE number = ?", [json.dumps(decision), number]
        )


def run(home, **settings):
    with opened(home, **settings) as d:
        stop = evolve(d)
        return len(d.lineage.generations()), stop


def test_history_repeats_itself_until_a_recorded_decision_is_another(home, replayed):
    decisions, _ = run(home, **{"evaluate.limit": "4"})
    result = replayed()
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "decision 1 (topk-greedy): the same"
    assert lines[-1] == f"{decisions} decisions replayed, 0 differ"

    def another(decision):
        decision["merges"][0]["parents"] = ["demo/sort", "demo/subtract"]
        decision["merges"][0]["parameters"] = {"t": 0.25}
        decision["top_mean_kinship"] = 0.5

    rewrite(home, 1, another)
    result = replayed("--format", "json")
    assert result.code == 3
    first, *others = json.loads(result.out)
    assert first["differences"][0].startswith("no longer proposes demo/sort + demo/subtract (pair)")
    assert first["differences"][1].startswith("now proposes demo/")
    assert first["differences"][-1].startswith("its top's mean kinship was 0.5, now ")
    assert not any(each["differences"] for each in others)
    assert result.err.count("\n") == 1
    assert f"1 of {decisions} decisions would differ today" in result.err


def test_a_policy_whose_code_changed_is_seen(home, replayed, monkeypatch):
    monkeypatch.setenv("MOOD_OF_THE_CODE", "merges")
    run(home, **MOODY)
    monkeypatch.setenv("MOOD_OF_THE_CODE", "rewords")
    result = replayed()
    assert result.code == 0
    assert "decision 1 (scripted_policies:Moody): the same in other words" in result.out
    monkeypatch.setenv("MOOD_OF_THE_CODE", "explores")
    result = replayed()
    assert result.code == 3
    assert "now proposes demo/add + demo/max (exploration)" in result.out


@pytest.mark.parametrize("mood", ["raises", "strange", "unsound"])
def test_what_failed_then_fails_again_until_it_is_mended(home, replayed, monkeypatch, mood):
    monkeypatch.setenv("MOOD_OF_THE_CODE", mood)
    decisions, stop = run(home, **MOODY)
    assert decisions == 1
    assert stop.startswith("the policy failed: ")
    result = replayed()
    assert (result.code, result.err) == (0, "")
    assert "decision 1 (scripted_policies:Moody): the same\n" in result.out
    monkeypatch.setenv("MOOD_OF_THE_CODE", "explores")
    result = replayed()
    if mood != "unsound":  # what the daemon refused, it cannot tell from what it would allow
        assert result.code == 3
        assert "stopped then: the policy failed: " in result.out


def test_a_policy_that_would_go_on_where_it_stopped_is_seen(home, replayed, monkeypatch):
    monkeypatch.setenv("MOOD_OF_THE_CODE", "stops")
    assert run(home, **MOODY) == (1, "enough")
    monkeypatch.setenv("MOOD_OF_THE_CODE", "merges")
    result = replayed()
    assert result.code == 3
    assert "now proposes demo/add + demo/max (pair); stopped then: enough" in result.out
