"""`simulate`: tables, the loop, and what the command says."""

import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from command import call, start
from kinship_daemon import curves
from kinship_daemon.simulation import evolutions_by, processes
from kinship_policies.policy import Decision, Proposal
from kinship_policies.registry import make
from kinship_policies.simulate.evolution import evolve
from kinship_policies.simulate.landscape import Merge
from kinship_policies.simulate.synthetic import Synthetic
from kinship_policies.simulate.table import read_table
from kinship_storage.errors import UsageError

TABLE = Path(__file__).parent / "assets" / "table2.json"
PUBLISHED = json.loads(TABLE.read_text())


@pytest.fixture
def simulate(monkeypatch, capfd):
    def run(*arguments):
        return call(["simulate", *arguments], monkeypatch, capfd)

    return run


@pytest.fixture
def table(tmp_path):
    def write(**facts):
        path = tmp_path / "table.json"
        path.write_text(json.dumps(facts))
        return path

    return write


def founder(name, score):
    return {"name": name, "score": score}


def merge(name, parents, score, kinship=None):
    return {"name": name, "parents": list(parents), "score": score, "kinship": kinship}


THREE = [founder("a", 3.0), founder("b", 2.0), founder("c", 1.0)]


def asked(run, generation):
    found = next(g for g in run["generations"] if g["generation"] == generation)
    return {tuple(sorted(m["parents"])) for m in found["merges"]}


# Tables


def test_greedy_proposes_exactly_the_published_pairs(simulate):
    found = simulate(
        "--landscape", TABLE, "--policy", "topk-greedy", "--set", "k=3", "--format", "json"
    )
    assert found.code == 0
    (run,) = json.loads(found.out)["runs"]
    for generation in (1, 2, 3, 4):
        rows = [m for m in PUBLISHED["greedy_path"] if m["generation"] == generation]
        assert asked(run, generation) == {tuple(sorted(m["parents"])) for m in rows}, generation
    assert (run["best"], run["best_model"]) == (68.72, "model-2-1")
    # What came after the published generations is nobody's knowledge.
    assert run["unknown"] == 2
    assert run["evaluations"] == 11


def test_kinship_explores_with_instruct_and_gets_further(simulate):
    found = simulate("--landscape", TABLE, "--policy", "topk-kinship", "--format", "json")
    (run,) = json.loads(found.out)["runs"]
    assert ("Instruct", "model-1-3") in asked(run, 2)
    assert run["best"] == 69.06


def test_kinships_that_a_table_does_not_give_follow_by_algebra(table):
    path = table(
        founders=THREE,
        merges=[merge("ab", "ab", 4.0, 0.0), merge("ac", "ac", 4.0, 0.5), merge("m", "ba", 1.0)],
        kinship=[["b", "c", 0.2], ["ab", "c", 0.1]],
    )
    world = read_table(path).world(0, frozenset())
    assert [m.length for m in world.founders] == [1.0, 1.0, 1.0]
    child = world.merge(Merge("x", ("b", "a")))
    assert child.length == pytest.approx(0.5**0.5)  # half of two at a right angle
    world.merge(Merge("y", ("a", "c")))
    kin = world.kinship([child.name, "a", "b", "c", "ac"])
    assert kin[0, 0] == 1.0
    assert kin[0, 1] == kin[0, 2] == pytest.approx(0.5**0.5)
    assert kin[0, 3] == 0.1  # as given
    # (a + b)(a + c) / 4 = (1 + .5 + 0 + .2) / 4, over both lengths.
    assert kin[0, 4] == pytest.approx((1.7 / 4) / (0.5**0.5 * 0.75**0.5))


def test_a_founders_kinship_that_nobody_knows_is_undefined(table):
    path = table(founders=THREE, merges=[merge("ab", "ab", 4.0, 0.3)])
    world = read_table(path).world(0, frozenset())
    world.merge(Merge("x", ("a", "b")))
    kin = world.kinship(["a", "ab", "c"])
    assert kin[0, 1] == pytest.approx(1.3 / 2 / (2.6 / 4) ** 0.5)
    assert math.isnan(kin[0, 2])
    assert math.isnan(kin[1, 2])


def test_unknown_merges_are_counted_and_the_run_goes_on(simulate, table):
    path = table(founders=THREE, merges=[merge("ab", "ab", 4.0, 0.1)], kinship=[["a", "c", 0.0]])
    found = simulate("--landscape", path, "--policy", "topk-greedy", "--format", "json")
    (run,) = json.loads(found.out)["runs"]
    outcomes = [m["outcome"] for m in run["generations"][0]["merges"]]
    assert sorted(outcomes) == ["made", "unknown", "unknown"]
    assert (run["unknown"], run["evaluations"], run["best"]) == (4, 1, 4.0)
    assert run["stop"].startswith("converged")
    shown = simulate("--landscape", path, "--policy", "topk-greedy").out
    assert "topk-greedy proposed 4 merges that the landscape does not know" in shown


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        (Merge("x", ("b", "a")), True),
        (Merge("x", ("a", "b"), "slerp", {"t": 0.4}), False),
        (Merge("x", ("a", "b"), "linear", {"weight": 0.5}), False),
        (Merge("x", ("a", "c"), "linear", {"weight": [2, 2]}), True),
        (Merge("x", ("c", "a"), "linear", {"weight": 1.0}), True),
        (Merge("x", ("c", "b"), "slerp", {"t": 1}), False),
        (Merge("x", ("b", "c"), "slerp", {"t": 1}), True),
    ],
)
def test_a_record_answers_for_its_own_recipe_only(table, asked, known):
    linear = merge("ac", "ac", 4.0) | {"method": "linear", "parameters": {"weight": 0.5}}
    leaning = merge("bc", "bc", 4.0) | {"parameters": {"t": 1.0}}
    path = table(founders=THREE, merges=[merge("ab", "ab", 4.0), linear, leaning])
    assert (read_table(path).world(0, frozenset()).merge(asked) is not None) == known


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "founders: Field required"),
        ({"founders": [{"name": "a"}]}, "founders.0.score"),
        ({"founders": [founder("a", 1), founder("a", 2)]}, "a is there twice"),
        ({"founders": [founder("a", math.nan)]}, "founders.0.score: Input should be a finite"),
        ({"founders": THREE, "merges": [merge("m", "ax", 1)]}, "x is named but"),
        (
            {"founders": THREE, "merges": [merge("m", "ab", 1), merge("m", "ab", 2)]},
            "m is there twice",
        ),
        ({"founders": THREE, "kinship": [["a", "z", 0.1]]}, "z is named but"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(simulate, table, facts, words):
    found = simulate("--landscape", table(**facts), "--policy", "topk-greedy")
    assert found.code == 2
    assert words in found.err
    assert found.err.count("\n") == 1


def test_broken_json_is_said(simulate, tmp_path):
    (tmp_path / "t.json").write_text('{"founders": [')
    found = simulate("--landscape", tmp_path / "t.json", "--policy", "topk-greedy")
    assert (found.code, "is not JSON" in found.err, found.err.count("\n")) == (2, True, 1)


# The loop


class Fixed:
    """Answers the same decision again and again."""

    def __init__(self, answer=None, error=None):
        self.answer, self.error, self.seen = answer, error, []

    def propose(self, population):
        self.seen.append(population)
        if self.error:
            raise self.error
        return self.answer


def pairs(*parents, **facts):
    merges = tuple(Proposal(p, "pair", "why", **facts) for p in parents)
    return Decision(merges, (), None)


def synthetic(seed=0):
    return Synthetic().world(seed, frozenset())


FIRST = ("founder-1", "founder-2")


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Fixed(error=RuntimeError("out of\nideas")), "RuntimeError: out of ideas"),
        (Fixed(pairs(("founder-1", "nobody"))), "proposed to merge nobody, which the population"),
        (Fixed(pairs(("founder-1", "founder-1"))), "alone"),
        (Fixed("stop"), "answered a str, not a Decision"),
        (Fixed(pairs(FIRST, parameters={"t": object()})), "not JSON serializable"),
        (Fixed(pairs(FIRST, method="magic")), "has no method 'magic'"),
        (Fixed(Decision((), ("nobody",), None, stop="x")), "the policy's top names nobody"),
        (Fixed(Decision((), (), "high", stop="x")), "top_mean_kinship of its decision"),
        (Fixed(Decision((), (), np.float32(0.5), stop="x")), "not JSON serializable"),
        (Fixed(pairs(FIRST, parameters={"t": math.nan})), "not JSON compliant"),
    ],
)
def test_a_failing_policy_ends_its_own_run_only(policy, words):
    run = evolve("p", policy, synthetic(), seed=0, budget=5)
    assert words in run.error
    assert (run.stop, run.evaluations) == (None, 0)
    assert run.best.name.startswith("founder-")
    json.dumps(run.to_json(), allow_nan=False)


def test_the_budget_is_told_and_enforced():
    pair = [(f"founder-{i}", f"founder-{j}") for i in range(1, 7) for j in range(1, i)]
    policy = Fixed(pairs(*pair))
    run = evolve("p", policy, synthetic(), seed=0, budget=4)
    assert [population.budget for population in policy.seen] == [4]
    outcomes = [m["outcome"] for m in run.generations[0]["merges"]]
    assert outcomes == ["made"] * 4 + ["cut"] * 11
    assert run.evaluations == 4
    assert run.stop == "the budget of 4 evaluations is used up"


def test_a_sweep_is_one_child_for_each_step():
    sweep = tuple({"t": t} for t in (0.2, 0.5, 0.8))
    policy = Fixed(pairs(FIRST, sweep=sweep))
    run = evolve("p", policy, synthetic(), seed=0, budget=40)
    first = run.generations[0]["merges"]
    assert [m["name"] for m in first] == ["model-1-1-1", "model-1-1-2", "model-1-1-3"]
    assert len({m["score"] for m in first}) > 1


def test_what_was_made_before_costs_nothing_and_does_not_go_on_for_ever():
    run = evolve("p", Fixed(pairs(FIRST)), synthetic(), seed=0, budget=40)
    assert run.evaluations == 1
    assert run.generations[1]["merges"][0]["outcome"] == "repeated"
    assert "no child in 10 generations" in run.stop


def test_a_policy_sees_its_past_and_what_was_merged():
    policy = Fixed(pairs(FIRST))
    evolve("p", policy, synthetic(), seed=7, budget=2)
    second = policy.seen[1]
    assert (second.generation, second.seed, second.budget) == (2, 7, 1)
    assert second.merged == {FIRST}
    assert [past.merges for past in second.history] == [("model-1-1",)]
    child = second["model-1-1"]
    assert (child.parents, child.method, child.parameters) == (FIRST, "slerp", {"t": 0.5})
    assert child.samples == {}
    assert second.layers == ()


def test_samples_and_layers_are_there_for_who_uses_them():
    class Curious(Fixed):
        uses = frozenset({"samples", "layers"})

    policy = Curious(pairs(FIRST))
    world = Synthetic().world(0, policy.uses)
    evolve("p", policy, world, seed=0, budget=1)
    population = policy.seen[0]
    for member in population.members:
        for task, score in member.tasks.items():
            assert sum(member.samples[task]) / len(member.samples[task]) == pytest.approx(score)
    assert len(population.layers) == 4
    one, other = (population.members.index(population[name]) for name in FIRST)
    assert [layer[one][other] for layer in population.layers] != [None] * 4


def test_both_know_the_same_children_under_one_seed():
    one = evolve("p", make("topk-greedy"), synthetic(3), seed=3, budget=6)
    other = evolve("q", make("topk-kinship"), synthetic(3), seed=3, budget=6)
    assert one.generations[0]["merges"] == other.generations[0]["merges"]


# The command


@pytest.mark.parametrize(("generations", "marker"), [(1, "o"), (2, "None")])
def test_a_single_generation_is_a_point_for_a_line_would_not_be_seen(generations, marker):
    axes = Figure().subplots()
    curves._band(axes, np.arange(generations), np.ones((1, generations)), "a", "red", "-", 0, 1.6)
    assert axes.lines[0].get_marker() == marker


def test_the_same_command_gives_the_same_bytes(simulate, tmp_path):
    def once(kind):
        plot = tmp_path / f"p.{kind}"
        arguments = ["--policy", "topk-greedy", "--policy", "topk-kinship", "--seeds", 3]
        found = simulate("--landscape", "synthetic", *arguments, "--plot", plot, "--format", "json")
        assert (found.code, found.err) == (0, f"wrote {plot}\n")
        return found.out, plot.read_bytes()

    for kind, head in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        out, picture = once(kind)
        assert (out, picture) == once(kind)
        assert picture.startswith(head)


def test_the_json_says_all(simulate):
    arguments = ["--policy", "topk-greedy", "--policy", "topk-kinship", "--seeds", 4, "--seed", 5]
    found = simulate("--landscape", "synthetic", *arguments, "--budget", 9, "--format", "json")
    data = json.loads(found.out)
    assert [(r["seed"], r["policy"]) for r in data["runs"]] == [
        (seed, policy) for seed in (5, 6, 7, 8) for policy in ("topk-greedy", "topk-kinship")
    ]
    for run in data["runs"]:
        assert run["evaluations"] <= 9
        assert 0 < run["best_true"] < 1
        scores = [m["score"] for g in run["generations"] for m in g["merges"] if m["score"]]
        assert run["best"] >= max(scores)
    (comparison,) = data["comparison"]
    assert set(comparison["measures"]) == {"best", "area", "reach", "evaluations"}


def test_the_table_fits_and_speaks_plainly(simulate):
    arguments = ["--policy", "topk-greedy", "--policy", "topk-kinship", "--seeds", 5]
    found = simulate("--landscape", "synthetic", *arguments)
    assert max(map(len, found.out.splitlines())) <= 100
    assert "topk-greedy" in found.out
    assert "no difference shown between topk-greedy and topk-kinship" in found.out


def test_a_policy_of_ones_own_runs_from_a_path_or_a_file_beside_one_that_raises(
    simulate, tmp_path, monkeypatch
):
    (tmp_path / "mine.py").write_text(
        "class Broken:\n    def propose(self, population):\n        raise KeyError('no idea')\n"
    )
    (tmp_path / "eager.yaml").write_text("use: topk-greedy\nk: 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--policy", "mine:Broken", "--policy", tmp_path / "eager.yaml", "--seeds", 2]
    found = simulate("--landscape", "synthetic", *arguments)
    assert found.code == 0
    assert "mine:Broken failed in 2 of 2 runs; seed 0: KeyError: 'no idea'" in found.out
    data = json.loads(simulate("--landscape", "synthetic", *arguments, "--format", "json").out)
    assert [r["error"] is None for r in data["runs"]] == [False, True] * 2
    assert {r["policy"] for r in data["runs"]} == {"mine:Broken", "eager"}


def test_set_goes_to_every_policy_that_has_it(simulate, tmp_path):
    arguments = ["--policy", "topk-greedy", "--policy", "topk-kinship", "--seeds", 1]
    arguments += ["--set", "k=2", "--set", "explore=none", "--format", "json"]
    data = json.loads(simulate("--landscape", "synthetic", *arguments).out)
    assert all(len(run["generations"][0]["top"]) == 2 for run in data["runs"])
    roles = {m["role"] for r in data["runs"] for g in r["generations"] for m in g["merges"]}
    assert roles == {"pair"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--landscape", "synthetik", "--policy", "topk-greedy"], "nearest: synthetic"),
        (["--landscape", "gone.json", "--policy", "topk-greedy"], "no landscape 'gone.json'"),
        (["--landscape", "synthetic:founder=3", "--policy", "topk-greedy"], "nearest: founders"),
        (["--landscape", "synthetic:founders=1", "--policy", "topk-greedy"], "founders is 1"),
        (["--landscape", "synthetic:dims=60", "--policy", "topk-greedy"], "multiple of 8"),
        (["--landscape", "synthetic:founders", "--policy", "topk-greedy"], "name=value"),
        (["--landscape", "synthetic", "--policy", "topk-greed"], "nearest: topk-greedy"),
        (["--landscape", "synthetic", "--policy", "gone.yaml"], "gone.yaml"),
        (["--landscape", "synthetic", "--policy", "no.such:Thing"], "no.such"),
        (
            ["--landscape", "synthetic", "--policy", "topk-greedy", "--set", "early=1"],
            "--set early",
        ),
        (
            ["--landscape", "synthetic", "--policy", "topk-greedy", "--set", "early_stp=1"],
            "nearest: early_stop",
        ),
        (["--landscape", "synthetic", "--policy", "topk-greedy", "--set", "k=1"], "at least 2"),
        (["--landscape", "synthetic", "--policy", "topk-greedy", "--set", "k"], "key=value"),
        (["--landscape", "synthetic", *["--policy", "topk-greedy"] * 2], "there twice"),
        (["--landscape", "synthetic", "--policy", "topk-greedy", "--budget", "0"], "budget"),
        (
            ["--landscape", "synthetic", "--policy", "topk-greedy", "--plot", "x.jpg"],
            ".png or .svg",
        ),
        (
            ["--landscape", "synthetic", "--policy", "topk-greedy", "--plot", "nowhere/x.png"],
            "no folder nowhere",
        ),
        (["--landscape", __file__, "--policy", "topk-greedy"], "neither a table"),
        (["--landscape", "synthetic"], "--policy"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(simulate, arguments, words):
    found = simulate(*arguments)
    assert (found.code, found.out) == (2, "")
    assert words in found.err
    assert found.err.count("\n") == 1


def test_control_c_leaves_no_traceback(tmp_path):
    arguments = ["simulate", "--landscape", "synthetic", "--policy", "topk-greedy"]
    with start([*arguments, "--seeds", "100000"], tmp_path) as process:
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.endswith("kinship-daemon: interrupted\n")


# By several processes


BOTH = ("--policy", "topk-greedy", "--policy", "topk-kinship", "--budget", "4")


@pytest.mark.usefixtures("warm_worker")
def test_runs_and_their_order_are_the_same_however_many_processes_share_them(simulate):
    arguments = (*BOTH, "--landscape", "synthetic", "--seeds", "45", "--format", "json")
    alone = simulate(*arguments)
    assert [run["seed"] for run in json.loads(alone.out)["runs"]][::2] == list(range(45))
    for workers in (2, 3):
        assert simulate(*arguments, "--workers", workers).out == alone.out


@pytest.mark.usefixtures("warm_worker")
def test_an_interrupt_ends_the_processes_at_once():
    def interrupt(_done):
        raise KeyboardInterrupt

    policies = {"greedy": make("topk-greedy", {})}
    before = set(multiprocessing.active_children())  # of other tests, which keep them
    with pytest.raises(KeyboardInterrupt):
        list(evolutions_by(processes(2), policies, "synthetic", range(10_000), 40, interrupt))
    deadline = time.monotonic() + 60  # one that is starting ends a moment later
    while (left := set(multiprocessing.active_children()) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


class Deadly:
    """Takes its process along."""

    def propose(self, _population):
        os._exit(7)


class Unsendable:
    def __init__(self):
        self.propose = lambda _population: None


@pytest.mark.usefixtures("warm_worker")
def test_a_process_that_dies_and_a_policy_that_cannot_travel_are_told(simulate):
    place = ("--landscape", "synthetic", "--workers", "2", "--seeds", "2")
    found = simulate(*place, "--policy", f"{__name__}:Deadly")
    assert (found.code, found.out) == (3, "")
    assert found.err.endswith("seeds 0 to 1: its process died (exit code 7)\n")
    found = simulate(*place, "--policy", f"{__name__}:Unsendable")
    assert found.code == 2
    assert found.err.endswith("; leave out --workers\n")


def test_a_lineage_that_is_none_is_one_line(simulate, tmp_path):
    (tmp_path / "x.db").write_text("not a database, whatever its name says")
    found = simulate("--landscape", tmp_path / "x.db", "--policy", "topk-greedy")
    assert (found.code, found.out, found.err.count("\n")) == (4, "", 1)
    assert "x.db" in found.err


def test_unreadable_names_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="cannot read the table"):
        read_table(tmp_path / "gone.json")
