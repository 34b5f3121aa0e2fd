"""Killed at every step, the daemon ends in the same lineage as one that was never disturbed."""

import hashlib
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

import command
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
TWO_WORKERS = ("--set", "evaluate.workers=2")


def content(hub: Path) -> dict[str, str]:
    return {
        str(path.relative_to(hub)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(hub.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    """The home of a daemon that was never disturbed."""
    place = tmp_path_factory.mktemp("calm")
    undisturbed = command.run([*ARGUMENTS, "--home", place / "home"], place)
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
def test_two_workers_killed_ten_times_end_in_the_same_lineage_as_one(calm, tmp_path):
    killed, script = tmp_path / "killed", Path(__file__).with_name("worker_kills.py")
    result = subprocess.run(
        [sys.executable, script, "1", "--", *ARGUMENTS, *TWO_WORKERS, "--home", killed],
        env=command.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kills, asked = map(int, re.findall(r"killed (\d+) of (\d+)", result.stderr)[0])
    assert kills == 10, f"asked {asked} times"
    assert history(killed) == history(calm)
    assert content(killed / "hub") == content(calm / "hub")


@pytest.mark.slow
def test_killed_at_every_step_it_ends_in_the_same_lineage(calm, tmp_path):
    killed = tmp_path / "killed"
    script = Path(__file__).parent / "kill_points.py"
    result = subprocess.run(
        [sys.executable, script, *POINTS, "--", *ARGUMENTS, "--home", killed],
        env=command.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    deaths = [line for line in result.stdout.splitlines() if not line.startswith("{")]
    assert deaths == [f"{point} killed" for point in POINTS], result.stderr
    assert result.returncode == 0, result.stderr

    assert history(killed) == history(calm)
    assert content(killed / "hub") == content(calm / "hub")
    assert not list((killed / "staging").glob("*"))
    checked = command.run(["verify", "--home", killed], tmp_path)
    assert (checked.code, checked.err) == (0, "")
