"""Generation after generation on the demo's models: changes around a home, and odd policies."""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
from safetensors.torch import load_file

import tiny
import warm_workers
from hub_daemon import Clock
from kinship_daemon import config, startup
from kinship_daemon.errors import BudgetReached, KinshipError, ModelError, Transient, WorkerDied
from kinship_daemon.evaluate import settings
from kinship_daemon.evaluate.worker import WorkerEvaluator
from kinship_daemon.explain import explain
from kinship_daemon.hub.records import UnknownRepo
from kinship_daemon.report import JsonReporter
from kinship_daemon.steps import card_facts, facts, publish
from kinship_policies.policy import Proposal
from scripted_policies import Scripted
from turns import evolve as one_generation
from turns import poll, take

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_worker")]

# Few documents, few founders: what is tried here does not depend on how well models do.
SMALL = {
    "evaluate.limit": "16",
    "policy": "{use: topk-greedy, k: 2, max_founders: 2}",
    "gate.min_gain": "-1",
}

# Enough of both that some merge does better than its parents.
PUBLISHING = {"evaluate.limit": "100", "policy": "{use: topk-kinship, k: 2, max_founders: 4}"}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def opened(home, now=None, **overrides):
    chosen = {**SMALL, **overrides}
    loaded = config.load(
        base="demo", home=home, overrides=[f"{key}={value}" for key, value in chosen.items()]
    )
    report = JsonReporter(open(os.devnull, "w"))  # noqa: PTH123, SIM115
    return startup.opened(loaded, report, now=now)


def evolve(d, turns=12):
    """Turn the loop until it converges; returns why it did."""
    for _ in range(turns):
        poll(d)
        outcome = one_generation(d)
        if outcome.stop is not None:
            return outcome.stop
    raise AssertionError(f"still going on after {turns} turns")


def statuses(d):
    return {model.id: model.status for model in d.lineage.models()}


def test_a_leaf_that_changes_takes_its_merges_with_it_and_the_evolution_goes_on(home):
    with opened(home) as d:
        evolve(d)
        first = d.lineage.models(kind="merge")[0]
        parents = first.parents
    changed = home / "hub" / parents[0]
    norm = load_file(changed / "model.safetensors")["model.norm.weight"]
    tiny.edit(changed, {"model.norm.weight": norm + 0.01})
    with opened(home) as d:
        evolve(d)
        found = statuses(d)
        # For the world's sake: it is looked for again, and refused while it is not there.
        assert found[parents[0]] in {"quarantined", "refused"}
        assert d.lineage.require(parents[0]).cause == "world"
        assert found[parents[1]] == "admitted"
        assert found[first.id] == "quarantined"
        assert parents[0] in d.lineage.require(first.id).reason
        renewed = [name for name in found if name.startswith(f"{parents[0]}@")]
        assert [found[name] for name in renewed] == ["admitted"]
        later = [m for m in d.lineage.models(kind="merge") if renewed[0] in m.parents]
        assert later
        assert all(model.status == "admitted" for model in later)
    with opened(home) as d:
        assert evolve(d, turns=1)


def test_a_repo_that_is_renamed_in_a_folder_hub_keeps_its_place_and_its_merges(home):
    with opened(home) as d:
        evolve(d)
        merges = {m.id: m.status for m in d.lineage.models(kind="merge")}
        old = d.lineage.models(kind="merge")[0].parents[0]
    (home / "hub" / old).rename(home / "hub" / "demo" / "renamed")
    with opened(home) as d:
        evolve(d)
        found = statuses(d)
        assert found["demo/renamed"] == "admitted"
        assert found[old] == "refused"
        assert "demo/renamed" in d.lineage.require(old).reason
        assert {name: found[name] for name in merges} == merges
        assert d.lineage.require("demo/renamed").weights == d.lineage.require(old).weights
    # Merges on the old name are judged by the new one's answers, also under other settings.
    with opened(home, **{"evaluate.limit": "24"}) as d:
        evolve(d)
        on_it = [m.id for m in d.lineage.models("merge", "admitted") if old in m.parents]
        settings = d.settings.fingerprint("validation")
        best = [name for name in on_it if "not above" not in explain(d.lineage, name)]
        published = {each.model for each in d.lineage.publications()}  # judged once and for all
        unjudged = [name for name in best if d.lineage.gate(name, settings) is None]
        assert set(unjudged) <= published
    (home / "hub" / "demo" / "renamed").rename(home / "hub" / old)
    with opened(home) as d:
        evolve(d)
        found = statuses(d)
        assert (found[old], found["demo/renamed"]) == ("admitted", "refused")
        assert {name: found[name] for name in merges} == merges


def test_other_evaluation_settings_are_other_scores_and_another_decision(home):
    with opened(home) as d:
        evolve(d)
        decisions = len(d.lineage.generations())
        assert evolve(d, turns=1)
        assert len(d.lineage.generations()) == decisions
    with opened(home, **{"evaluate.limit": "24"}) as d:
        evolve(d)
        assert len(d.lineage.generations()) > decisions
        members = d.lineage.facts(d.lineage.last_generation().number)["members"]
        fingerprint = d.settings.fingerprint("selection")
        assert members
        for member in members:
            weights = d.lineage.require(member["name"]).weights
            assert all(row.n == 24 for row in d.lineage.scores(weights, settings=fingerprint))


def test_another_policy_goes_on_from_what_the_last_one_made(home):
    with opened(home) as d:
        evolve(d)
        assert "exploration" not in {m.role for m in d.lineage.models(kind="merge")}
    with opened(home, policy="{use: topk-kinship, k: 2, early_stop: null}") as d:
        evolve(d)
        assert "exploration" in {m.role for m in d.lineage.models(kind="merge")}


def pair(a, b, role="pair"):
    return Proposal((f"demo/{a}", f"demo/{b}"), role, "as written")


def test_a_policy_that_failed_is_asked_again_at_the_next_start(home):
    clock = Clock(datetime(2026, 3, 1, 12, tzinfo=UTC))
    for number in (1, 2):
        with opened(home, clock) as d:
            d = replace(d, policy=Broken())
            for _ in range(2):
                assert "no idea" in evolve(d)
            assert len(d.lineage.generations()) == number
        clock.pass_minutes(1)


def test_a_policy_may_explore_twice_repeat_itself_and_fall_silent(home):
    policy = Scripted(
        [pair("add", "max", "exploration"), pair("add", "sort", "exploration")],
        [pair("add", "max"), pair("max", "sort"), pair("max", "sort")],
    )
    with opened(home) as d:
        d = replace(d, policy=policy)
        stop = evolve(d)
        merges = {m.id: m.parents for m in d.lineage.models(kind="merge", status="admitted")}
    assert "nothing new" in stop
    assert merges == {
        "model-1-exp": ("demo/add", "demo/max"),
        "model-1-exp2": ("demo/add", "demo/sort"),
        "model-2-2": ("demo/max", "demo/sort"),
    }


class Broken:
    def propose(self, _population):
        raise RuntimeError("no idea")


def test_a_policy_that_fails_is_written_down_and_the_daemon_idles(home):
    with opened(home) as d:
        d = replace(d, policy=Broken())
        assert "the policy failed: RuntimeError: no idea" in evolve(d)
        assert evolve(d, turns=1)
        assert len(d.lineage.generations()) == 1  # not asked again on the same facts
    with opened(home) as d:
        evolve(d)  # another policy goes on
        assert {m.status for m in d.lineage.models(kind="merge")} == {"admitted"}


def test_a_merge_with_somebody_unknown_is_the_policys_failure(home):
    with opened(home) as d:
        d = replace(d, policy=Scripted([pair("add", "nobody")]))
        assert "it proposed to merge demo/nobody" in evolve(d)
        assert not d.lineage.models(kind="merge")


def test_weights_that_sum_to_0_are_the_policys_failure(home):
    with opened(home) as d:
        zero = replace(pair("add", "max"), method="linear", parameters={"weight": 0})
        d = replace(d, policy=Scripted([zero]))
        assert "the policy failed: linear: the weights sum to 0" in evolve(d)
        assert not d.lineage.models(kind="merge")


def test_a_coefficient_sweep_makes_a_child_for_every_step(home):
    sweep = tuple({"t": t} for t in (0.25, 0.5, 0.75))
    with opened(home) as d:
        d = replace(d, policy=Scripted([replace(pair("add", "max"), sweep=sweep)]))
        evolve(d)
        children = d.lineage.models(kind="merge", status="admitted")
    assert [child.id for child in children] == [f"model-1-1-{step}" for step in (1, 2, 3)]
    assert [child.recipe["parameters"]["t"] for child in children] == [0.25, 0.5, 0.75]


def test_a_worker_that_dies_is_the_worlds_fault_and_the_model_comes_back_by_itself(
    home, monkeypatch
):
    clock = Clock(datetime(2026, 3, 1, 12, tzinfo=UTC))
    with opened(home, clock) as d:
        real = WorkerEvaluator.evaluate
        deaths = {"demo/add": 1, "demo/max": 2}
        said = []

        def killed(self, assembly, split, progress=None):
            name = f"demo/{assembly.base.name}"
            if not assembly.leaves and deaths.get(name, 0) > 0:
                deaths[name] -= 1
                raise WorkerDied(f"{name}: the evaluation worker died")
            return real(self, assembly, split, progress)

        monkeypatch.setattr(WorkerEvaluator, "evaluate", killed)
        monkeypatch.setattr(d.report, "event", lambda *event, **facts: said.append((*event, facts)))
        evolve(d)
        # Once is bad luck; twice sets it aside for a time.
        aside = [facts for kind, _, facts in said if kind == "quarantine"]
        assert aside == [{"model": "demo/max", "cause": "world"}]
        assert statuses(d)["demo/add"] == statuses(d)["demo/max"] == "admitted"
        assert d.lineage.require("demo/max").faults == 0


def test_whom_the_base_fails_like_is_not_to_blame(home, monkeypatch):
    """A worker that dies over everyone: the daemon ends, and nobody stays aside for it."""
    real = WorkerEvaluator.evaluate

    def dies(self, assembly, split, progress=None):
        raise WorkerDied("the evaluation worker died")

    with opened(home) as d:
        monkeypatch.setattr(WorkerEvaluator, "evaluate", dies)
        with pytest.raises(
            KinshipError, match=r"not the models', for the base fails as well.*died"
        ):
            evolve(d)
        assert "quarantined" not in statuses(d).values()
        # Where the base can be evaluated, it is the models that are at fault.
        theirs = lambda self, assembly, split, progress=None: (  # noqa: E731
            real(self, assembly, split, progress)
            if assembly.identity == d.base.weights
            else dies(self, assembly, split)
        )
        monkeypatch.setattr(WorkerEvaluator, "evaluate", theirs)
        with pytest.raises(Transient, match="no fine-tune of demo/base could be admitted"):
            evolve(d)
        finetunes = {model.status for model in d.lineage.models("finetune")}
        assert "admitted" not in finetunes
        assert "quarantined" in finetunes


def test_what_failed_under_other_settings_is_tried_again_and_again_under_these(home, monkeypatch):
    """A merge set aside under settings A, then B, then A again: the evolution always ends."""
    failing = {**SMALL, "policy": "{use: topk-greedy, k: 2, max_founders: 2}"}
    tried = []

    def failing_for_merges(self, assembly, split, progress=None):
        if assembly.leaves and self.settings.batch_size != 8:
            tried.append(assembly.identity)
            raise ModelError("the harness failed", cause="settings", setting="evaluate")
        return real(self, assembly, split, progress)

    real = WorkerEvaluator.evaluate
    monkeypatch.setattr(WorkerEvaluator, "evaluate", failing_for_merges)
    fates = []
    for batch_size in ("16", "8", "16"):
        with opened(home, **{**failing, "evaluate.batch_size": batch_size}) as d:
            assert evolve(d)
            fates.append({m.status for m in d.lineage.models(kind="merge") if m.generation == 1})
    assert fates == [{"quarantined"}, {"admitted"}, {"quarantined"}]
    assert max(Counter(tried).values()) == 2  # once for each time that the settings became these


def test_a_passed_merge_is_judged_again_and_published_under_another_harness(home, monkeypatch):
    """An upgrade of torch, transformers or lm-eval must not block what it finds half done."""
    with opened(home, **PUBLISHING, **{"publish.namespace": "null"}) as d:
        evolve(d)
        passed = {gate.model for gate in d.lineage.gates() if gate.passed}
        assert passed
        assert not d.lineage.publications()
    monkeypatch.setattr(settings, "harness_versions", lambda: "lm-eval of tomorrow")
    with opened(home, **PUBLISHING) as d:
        evolve(d)
        assert {p.model for p in d.lineage.publications()} >= passed


def test_the_days_merges_are_counted_and_what_passed_does_not_wait_for_them(home):
    limits = {"limits.merges_per_day": "1", "policy": "{max_founders: 3}"}
    clock = Clock(datetime(2026, 3, 1, 12, tzinfo=UTC))
    with opened(home, clock, **limits) as d:
        poll(d)
        with pytest.raises(BudgetReached, match="merges_per_day"):
            one_generation(d)
        made = [m for m in d.lineage.models(kind="merge") if m.status == "admitted"]
        assert len(made) == 1
        assert not d.lineage.jobs(status="running")
        for _ in range(2):
            with pytest.raises(BudgetReached, match="merges_per_day"):
                one_generation(d)
            clock.pass_minutes(24 * 60)
        with suppress(BudgetReached):  # of the next generation
            one_generation(d)
        made = [m for m in d.lineage.models(kind="merge") if m.generation == 1]
        assert {m.status for m in made} == {"admitted"}


def test_a_merge_is_judged_though_the_days_merges_are_used_up(home):
    """The first of its generation beats its parents: it does not wait for its siblings."""
    limits = {**PUBLISHING, "limits.merges_per_day": "1"}
    with opened(home, **limits) as d:
        poll(d)
        with pytest.raises(BudgetReached, match="merges_per_day"):
            one_generation(d)
        (made,) = d.lineage.models("merge", "admitted")
        assert d.lineage.models("merge", "proposed")
        assert d.lineage.gates_of(made.id)
        assert [p.model for p in d.lineage.publications()] == [made.id]


def killed_amid(*_):
    raise KeyboardInterrupt


def test_trouble_with_publishing_is_not_the_models_fault(home, monkeypatch):
    with opened(home, **PUBLISHING) as d:
        real = d.hub.publish

        def away(*_):
            raise UnknownRepo("no such namespace")

        monkeypatch.setattr(d.hub, "publish", away)
        evolve(d)
        passed = [gate.model for gate in d.lineage.gates() if gate.passed]
        assert passed
        assert all(statuses(d)[name] == "admitted" for name in passed)
        assert not d.lineage.publications()
        monkeypatch.setattr(d.hub, "publish", real)
        take(replace(d, settings=d.settings.but(limit=99)), "publish")
        assert not d.lineage.publications()
        d.lineage.recover()  # as at a next start
        with monkeypatch.context() as killed:
            killed.setattr(publish, "tidy", killed_amid)
            with pytest.raises(KeyboardInterrupt):
                one_generation(d)
        (first,) = d.lineage.publications()
        assert d.lineage.require(first.model).not_published is None
        one_generation(d)
        assert [p.model for p in d.lineage.publications()] == passed
        assert {d.lineage.require(name).not_published for name in passed} == {None}
        assert not d.home.staging.exists()


def test_a_stage_that_a_killed_process_left_is_published_as_it_is(home, monkeypatch):
    """Killed after the hub had the files: the card, made again, might say something else."""
    with opened(home, **PUBLISHING) as d:
        real = d.hub.publish

        def killed(*arguments):
            real(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(d.hub, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            evolve(d)
    with opened(home, **PUBLISHING) as d:
        monkeypatch.setattr(
            "kinship_daemon.steps.publish.card_facts",
            lambda *arguments: replace(card_facts.card_facts(*arguments), version="9.9.9"),
        )
        one_generation(d)
        assert d.lineage.publications()


def test_a_limit_reached_ends_a_run_that_is_to_end_with_one_line(tmp_path):
    arguments = ["run", "--base", "demo", "--until-converged", "--home", tmp_path / "home"]
    limits = ["--set", "limits.merges_per_day=1", "--set", "evaluate.limit=8"]
    result = warm_workers.run([*arguments, *limits], tmp_path)
    assert result.code == 3
    assert "limits.merges_per_day" in result.err
    assert result.err.count("\n") == 1


def test_newcomers_between_generations_are_told_to_the_policy(home):
    with opened(home) as d:
        evolve(d)
        startup.demo.release(home / "hub")
        evolve(d)
        told = [d.lineage.facts(decision.number) for decision in d.lineage.generations()]
        assert [f["newcomers"] for f in told if f["newcomers"]] == [["demo/sequence"]]
        assert torch.equal(d.ledger.gram, d.ledger.gram.transpose(1, 2))


def test_who_came_while_a_policy_failed_is_new_to_the_next(home):
    with opened(home) as d:
        evolve(d)
        policy, d = d.policy, replace(d, policy=Broken())
        startup.demo.release(home / "hub")
        assert "the policy failed" in evolve(d)
        d = replace(d, policy=policy)
        assert facts.population(d).newcomers == ("demo/sequence",)
