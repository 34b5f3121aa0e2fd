"""Every installed policy evolves the demo's real models, within its budget."""

from dataclasses import replace

import pytest

from kinship_daemon.replay import replay
from kinship_policies.registry import installed
from scripted_policies import Scripted, merge
from test_evolution import evolve, opened

pytestmark = pytest.mark.usefixtures("shared_worker")

FEW = {"evaluate.limit": "4"}
BUDGET = 6


def merges(d):
    return d.lineage.models(kind="merge")


@pytest.mark.parametrize("name", sorted({policy.name for policy in installed()}))
def test_every_policy_evolves_real_models_within_its_budget(tmp_path, name):
    settings = {**FEW, "policy": f"{{use: {name}}}", "limits.merges_total": str(BUDGET)}
    with opened(tmp_path / "home", **settings) as d:
        stop = evolve(d, turns=BUDGET + 2)
        made = merges(d)
        decisions = d.lineage.generations()
        assert not stop.startswith("the policy failed"), stop
        left = [d.lineage.facts(decision.number)["budget"] for decision in decisions]
        again = list(replay(d.lineage, d.rows, 60))
    assert {model.status for model in made} == {"admitted"}
    assert (1 if name == "soup" else 2) <= len(made) <= BUDGET
    assert left[0] == BUDGET
    assert left[-1] == BUDGET - len(made)
    assert [(each.differences, each.missing) for each in again] == [((), None)] * len(decisions)


def test_at_the_limit_a_policy_stops_and_goes_on_when_it_is_raised(tmp_path):
    home = tmp_path / "home"
    with opened(home, **FEW, **{"limits.merges_total": "2"}) as d:
        assert evolve(d)
        assert len(merges(d)) == 2
        told = [d.lineage.facts(g.number)["budget"] for g in d.lineage.generations()]
        assert told[0] == 2
        assert told[-1] == 0
        decisions = len(told)
        evolve(d, turns=1)
        assert len(d.lineage.generations()) == decisions
    with opened(home, **FEW, **{"limits.merges_total": "3"}) as d:
        assert evolve(d)
        assert len(merges(d)) == 3
        assert d.lineage.facts(decisions + 1)["budget"] == 1


def test_a_policy_that_asks_for_more_than_the_limit_is_cut_short(tmp_path):
    sweep = tuple({"t": t} for t in (0.25, 0.5, 0.75))
    with opened(tmp_path / "home", **FEW, **{"limits.merges_total": "4"}) as d:
        policy = Scripted(
            [merge("add", "max"), merge("add", "sort", sweep=sweep), merge("max", "sort")],
            [merge("max", "sort")],
        )
        d = replace(d, policy=policy)
        assert "limits.merges_total 4" in evolve(d)
        assert [m.id for m in merges(d)] == [
            "model-1-1",
            "model-1-2-1",
            "model-1-2-2",
            "model-1-2-3",
        ]
