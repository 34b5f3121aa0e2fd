"""Killed at every step, the daemon ends in the same lineage as one that was never disturbed."""

import hashlib
import re
from itertools import product
from pathlib import Path

import pytest

import kill_points
import warm_workers
import worker_kills
from kinship_daemon import demo
from kinship_storage.lineage import Lineage
from test_main_job import history

KINDS = (
    *("watch", "triage", "admit", "ledger", "score", "race"),
    *("decide", "validate", "gate", "publish"),
)
POINTS = [f"{kind}:{moment}" for kind, moment in product(KINDS, ("before", "amid", "after"))]
# The ledger is whole on the disk before its job is done: a kill amid leaves nothing to do again.
POINTS.remove("ledger:after")
# And while a model is being evaluated.
POINTS.insert(POINTS.index("score:amid"), "score:during")
POINTS.insert(POINTS.index("validate:amid"), "validate:during")

# Small enough to be killed so often, and the gate opened wide so that something is published.
ARGUMENTS = [
    *("run", "--base", "demo", "--until-converged", "--log-json"),
    *("--set", "evaluate.limit=60", "--set", "gate.min_gain=-1"),
    # Two rungs, and somebody stops at the first.
    *("--set", "evaluate.chunk=30", "--set", "evaluate.race_width=0.2"),
    # However many workers there are, the scores are the same.
    *("--set", "evaluate.threads=1"),
    *("--set", "policy={use: topk-kinship, k: 2, max_founders: 3}"),
]
INLINE = ("--set", "executor.use=inline")
FOUR_WORKERS = ("--set", "evaluate.workers=4")


def content(hub: Path) -> dict[str, str]:
    return {
        str(path.relative_to(hub)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(hub.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    """The home of a daemon that was never disturbed, and did one thing after another."""
    place = tmp_path_factory.mktemp("calm")
    undisturbed = warm_workers.run([*ARGUMENTS, *INLINE, "--home", place / "home"], place)
    assert undisturbed.code == 0, undisturbed.err
    assert (place / "home" / "hub" / demo.NAMESPACE).is_dir()
    assert history(place / "home")["partials"], "somebody was stopped"
    return place / "home"


@pytest.mark.slow
def test_a_policy_sees_who_was_stopped_with_what_is_foretold(calm):
    with Lineage.open(calm / "lineage.db", now=None, readonly=True) as lineage:
        stopped = lineage.partials(lineage.get("settings")["selection"])
        facts = lineage.facts(lineage.last_generation().number)
        members = {lineage.require(m["name"]).weights: m for m in facts["members"]}
        best = lineage.require(lineage.best().model).weights
    assert best in members.keys() - stopped.keys()
    assert stopped.keys() <= members.keys()
    for weights, member in members.items():
        assert member["stderr"] > 0
        assert member["documents"] == 6 * (30 if weights in stopped else 60)
        if weights in stopped:
            assert member["score"] == pytest.approx(stopped[weights].mean)


@pytest.mark.slow
def test_four_workers_killed_ten_times_end_in_the_same_lineage_as_inline(calm, tmp_path):
    killed = tmp_path / "killed"
    arguments = ["1", "--", *ARGUMENTS, *FOUR_WORKERS, "--home", killed]
    result = warm_workers.run(arguments, tmp_path, work=worker_kills.main)
    assert result.code == 0, result.err
    kills, asked = map(int, re.findall(r"killed (\d+) of (\d+)", result.err)[0])
    assert kills == 10, f"asked {asked} times"
    assert history(killed) == history(calm)
    assert content(killed / "hub") == content(calm / "hub")


@pytest.mark.slow
def test_killed_at_every_step_with_one_worker_or_two_it_ends_in_the_same_lineage(calm, tmp_path):
    killed = tmp_path / "killed"
    arguments = [*POINTS, "--", *ARGUMENTS, "--home", killed]
    result = warm_workers.run(arguments, tmp_path, work=kill_points.main, timeout=500)
    deaths = [line for line in result.out.splitlines() if not line.startswith("{")]
    assert deaths == [f"{point} killed" for point in POINTS], result.err
    assert result.code == 0, result.err

    assert history(killed) == history(calm)
    assert content(killed / "hub") == content(calm / "hub")
    assert not list((killed / "staging").glob("*"))
    checked = warm_workers.run(["verify", "--home", killed], tmp_path)
    assert (checked.code, checked.err) == (0, "")
