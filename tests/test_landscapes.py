"""Landscapes: made-up models, a lineage's record, and the demo's real models."""

import json
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

import warm_workers
from command import call, environment
from kinship_daemon.cli.simulate import _seeds
from kinship_daemon.landscapes import open_landscape
from kinship_policies.policy import Fact
from kinship_policies.simulate.algebra import merged
from kinship_policies.simulate.landscape import Merge
from kinship_policies.simulate.synthetic import Parameters, Synthetic
from kinship_storage.errors import UsageError
from small_lineage import fill, merge, open_lineage, score

NOTHING: frozenset[Fact] = frozenset()
BLOCKS = Parameters(layers=3, dims=6).blocks


# Synthetic: the algebra


@pytest.fixture
def deltas():
    """Two deltas of 6 blocks (3 layers) of 2 numbers, and the base beside them."""
    rng = np.random.default_rng(0)
    base = np.zeros((6, 2))
    base[:, 1] = 10.0
    found = rng.normal(0, 1, (2, 6, 2))
    found[:, :, 1] = 0.0
    return found, base


def made(deltas, method, **parameters):
    found, base = deltas
    return merged(method, parameters, found, base, BLOCKS)


def test_linear_is_the_weighted_mean(deltas):
    (a, b), _ = deltas
    assert made(deltas, "linear", weight=[1, 3]) == pytest.approx(0.25 * a + 0.75 * b)
    assert made(deltas, "linear", weight=0.2) == pytest.approx((a + b) / 2)


def test_unnormalised_weights_leave_a_part_along_the_base(deltas):
    (a, b), base = deltas
    child = made(deltas, "linear", weight=[0.5, 0.25], normalize=False)
    assert child == pytest.approx(0.5 * a + 0.25 * b - 0.25 * base)


def test_task_arithmetic_and_extrapolation(deltas):
    (a, b), _ = deltas
    child = made(deltas, "task_arithmetic", weight=[0.5, 2], **{"lambda": 0.3})
    assert child == pytest.approx(0.3 * (0.5 * a + 2 * b))
    assert made(deltas, "extrapolation", **{"lambda": 0.5}) == pytest.approx(1.5 * a - 0.5 * b)


def test_slerp_turns_full_weights_and_keeps_their_length(deltas):
    (a, b), base = deltas
    child = made(deltas, "slerp", t=0.3) + base
    for block, (x, y) in enumerate(zip(a + base, b + base, strict=True)):
        angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        if np.cos(angle) > 0.9995:
            assert child[block] == pytest.approx(0.7 * x + 0.3 * y)
            continue
        turned = np.arccos(child[block] @ x / np.linalg.norm(child[block]) / np.linalg.norm(x))
        assert turned == pytest.approx(0.3 * angle, rel=0.05)
        expected = (np.sin(0.7 * angle) * x + np.sin(0.3 * angle) * y) / np.sin(angle)
        assert child[block] == pytest.approx(expected)


def test_the_daemons_own_slerp_and_linear_agree(deltas):
    import torch

    from kinship_daemon.weights.methods.registry import method

    (a, b), base = deltas
    weights = torch.from_numpy(np.stack([base, a + base, b + base], 1))
    dots = weights @ weights.transpose(1, 2)
    t = torch.full((6,), 0.4, dtype=torch.float64)
    factors = method("slerp")(dots, {"t": t})
    expected = (factors[:, None, :] @ weights)[:, 0].numpy() - base
    assert made(deltas, "slerp", t=0.4) == pytest.approx(expected, abs=1e-12)


def test_gradients_and_filters_go_by_layer_and_part(deltas):
    (a, b), _ = deltas
    child = made(deltas, "linear", weight=[[1, 0], [0, 1]])
    for layer, share in enumerate((1.0, 0.5, 0.0)):
        here = slice(2 * layer, 2 * layer + 2)
        assert child[here] == pytest.approx(share * a[here] + (1 - share) * b[here])
    first = [{"filter": "self_attn", "value": 1.0}, {"value": 0.0}]
    child = made(deltas, "linear", weight=[first, 1.0], normalize=False)
    assert child[0::2] == pytest.approx((a + b)[0::2] + deltas[1][0::2])
    assert child[1::2] == pytest.approx(b[1::2])


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("slurp", {"t": 0.5}, "nearest: slerp"),
        ("slerp", {}, "needs the parameter 't'"),
        ("slerp", {"T": 0.5}, "no parameter 'T'; it has t"),
        ("slerp", {"t": "half"}, "t is 'half'"),
        ("slerp", {"t": float("nan")}, "must be a number"),
        ("linear", {"weight": [1, 2, 3]}, "3 values for 2 parents"),
        ("linear", {"weight": [1, -1]}, "sum to 0"),
        ("slerp", {"t": [{"filter": "nowhere", "value": 1}]}, "t is None"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(deltas, method, parameters, words):
    with pytest.raises(UsageError, match=words.replace("[", r"\[")):
        made(deltas, method, **parameters)


# Synthetic: the world


def test_worlds_are_seeded_and_the_same_for_every_policy():
    one, other, third = (Synthetic().world(s, NOTHING) for s in (1, 1, 2))
    assert one.founders == other.founders
    assert one.founders != third.founders
    child = Merge("m", ("founder-1", "founder-2"))
    other.merge(Merge("first", ("founder-3", "founder-4")))  # what else was made is no matter
    assert one.merge(child) == other.merge(child)


def test_founders_are_spread_as_real_ones():
    kinships, scores = [], []
    for seed in range(100):
        world = Synthetic().world(seed, NOTHING)
        kin = world.kinship([m.name for m in world.founders])
        kinships += kin[np.triu_indices(6, 1)].tolist()
        scores += [m.score for m in world.founders]
    low, middle, high = np.quantile(kinships, [0.02, 0.5, 0.98])
    assert -0.25 < low < 0.0
    assert 0.05 < middle < 0.3
    assert 0.35 < high < 0.75
    assert 0.4 < np.mean(scores) < 0.7
    assert 0 < min(scores) <= max(scores) < 1


def test_kinships_and_lengths_are_those_of_the_deltas():
    world = Synthetic().world(0, NOTHING)
    a, b = (m.name for m in world.founders[:2])
    child = world.merge(Merge("m", (a, b), "task_arithmetic", {"weight": 0.5}))
    kin = world.kinship([a, b, "m"])
    x, y = world.founders[0].length, world.founders[1].length
    square = (x * x + y * y + 2 * kin[0, 1] * x * y) / 4
    assert child.length == pytest.approx(square**0.5)
    assert kin[0, 2] == pytest.approx((x + kin[0, 1] * y) / 2 / child.length)
    assert np.diag(kin).tolist() == [1, 1, 1]


def test_measured_scores_are_binomial_about_the_true_ones():
    parameters = Parameters(noise_documents=100, tasks=1)
    errors = []
    for seed in range(400):
        world = Synthetic(parameters).world(seed, NOTHING)
        p = world.true("founder-1")
        errors.append((world.founders[0].score - p) / np.sqrt(p * (1 - p) / 100))
    assert abs(np.mean(errors)) < 4 / np.sqrt(400)
    assert np.std(errors) == pytest.approx(1.0, abs=0.15)


def test_relatives_err_on_the_same_documents():
    world = Synthetic().world(0, frozenset({"samples"}))
    a, b, c = world.founders[:3]
    near = world.merge(Merge("near", (a.name, b.name), "slerp", {"t": 0.05}))

    def agree(one, other):
        pairs = zip(one.samples["task-1"], other.samples["task-1"], strict=True)
        return np.mean([x == y for x, y in pairs])

    assert agree(a, near) > 0.95
    assert agree(a, c) < 0.85


def test_a_score_falls_with_distance_and_merging_can_gain():
    gains = []
    for seed in range(50):
        world = Synthetic().world(seed, NOTHING)
        a, b = sorted(world.founders, key=lambda m: -world.true(m.name))[:2]
        world.merge(Merge("m", (a.name, b.name)))
        gains.append(world.true("m") - world.true(a.name))
    assert 0 < np.mean(np.array(gains) > 0) < 1  # neither always nor never
    assert np.mean(gains) > 0


def test_more_than_the_first_members_fit():
    world = Synthetic(Parameters(founders=70)).world(0, NOTHING)
    kin = world.kinship([m.name for m in world.founders])
    assert kin.shape == (70, 70)
    assert np.isfinite(kin).all()
    assert kin == pytest.approx(kin.T)


def test_rugged_worlds_have_bumps_of_that_height():
    flat, rough = (
        np.array(
            [
                NormalDist().inv_cdf(
                    Synthetic(Parameters(rugged=r)).world(s, NOTHING).true("founder-1")
                )
                for s in range(60)
            ]
        )
        for r in (0.0, 1.0)
    )
    assert np.std(rough - flat) > 0.1


# A lineage


@pytest.fixture
def lineage(tmp_path):
    path = tmp_path / "lineage.db"
    with open_lineage(path) as opened:
        fill(opened)
        linear = {
            "method": "linear",
            "parents": ["m1", "demo/add"],
            "parameters": {"weight": [3, 1]},
        }
        opened.add_model(
            replace(merge("m2", ("m1", "demo/add"), 2, recipe=linear), status="admitted")
        )
        opened.add_scores([score("recipe:m2", 1, 1, 1, 0)])
        opened.add_kinships("pcc", [("recipe:m1", "sha256:add", 0.8)])
        opened.add_scores([score("sha256:bad", 0, 0)])
    return path


def world_of(path, uses=NOTHING):
    with open_landscape(str(path)) as landscape:
        return landscape.world(0, uses)


def test_a_lineages_record_answers_and_what_it_lacks_is_unknown(lineage):
    world = world_of(lineage)
    assert [(m.name, m.score) for m in world.founders] == [("demo/add", 0.75), ("demo/sort", 0.5)]
    swapped = world.merge(Merge("x", ("demo/sort", "demo/add")))
    assert (swapped.name, swapped.score, swapped.tasks) == ("m1", 1.0, {"add": 1.0})
    kin = world.kinship(["demo/add", "demo/sort", "m1"])
    assert (kin[0, 1], kin[0, 2]) == (0.25, 0.8)
    assert np.isnan(kin[1, 2])
    known = Merge("x", ("m1", "demo/add"), "linear", {"weight": [3.0, 1]})
    assert world.merge(known).name == "m2"
    for unknown in (
        replace(known, parents=("demo/add", "m1")),
        replace(known, parameters={"weight": [1, 3]}),
        Merge("x", ("m1", "demo/add")),
        Merge("x", ("demo/sort", "demo/add"), "slerp", {"t": 0.4}),
    ):
        assert world.merge(unknown) is None


def test_a_lineages_samples_are_there_for_who_uses_them(lineage):
    assert world_of(lineage).founders[0].samples == {}
    founder = world_of(lineage, frozenset({"samples"})).founders[0]
    assert founder.samples == {"add": (1.0, 0.0, 1.0, 1.0)}


def test_a_home_is_a_landscape_and_is_not_written_to(lineage, monkeypatch, capfd):
    before = lineage.read_bytes()
    arguments = ["simulate", "--landscape", lineage.parent, "--policy", "topk-greedy"]
    found = call([*arguments, "--format", "json"], monkeypatch, capfd)
    (run,) = json.loads(found.out)["runs"]
    assert (run["best_model"], run["unknown"]) == ("m1", 2)
    assert lineage.read_bytes() == before


def test_a_lineage_without_scores_is_refused(tmp_path):
    with open_lineage(tmp_path / "lineage.db"):
        pass
    with pytest.raises(UsageError, match="no admitted fine-tune has a selection score"):
        world_of(tmp_path / "lineage.db")


# The demo


@pytest.mark.slow
def test_the_demo_is_really_merged_and_a_second_run_is_read_from_the_cache(tmp_path):
    arguments = ["simulate", "--landscape", "demo:founders=2", "--policy", "topk-greedy"]
    arguments += ["--seeds", 1, "--budget", 1, "--format", "json"]
    first = warm_workers.run(arguments, tmp_path)
    assert first.code == 0, first.err
    (made,) = json.loads(first.out)["runs"]
    (child,) = made["generations"][0]["merges"]
    assert 0 < child["score"] < 1
    assert 0 < made["best_true"] < 1
    cache = tmp_path / ".cache" / "kinship-daemon" / "demo-landscape"
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    (cache / "evaluate.log").unlink()  # an evaluator that is started writes it
    again = warm_workers.run(arguments, tmp_path)
    assert again.out == first.out
    assert not (cache / "evaluate.log").exists()
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()}.items() <= kept.items()


def test_no_more_seeds_than_worlds_are_tried_where_nobody_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with open_landscape("demo:founders=6") as landscape:
        assert _seeds(landscape, None) == landscape.most_seeds == 1


def test_the_demos_worlds_are_as_many_as_its_sets_of_founders(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", environment(tmp_path)["HOME"])
    arguments = ["simulate", "--landscape", "demo", "--policy", "topk-greedy", "--seeds", "16"]
    found = call(arguments, monkeypatch, capfd)
    assert (found.code, "15 different worlds" in found.err) == (2, True)
    for wrong, words in (
        ("demo:founders=9", "from 2 to 6"),
        ("demo:people=2", "known: founders, control"),
        ("demo:control=yes", "control is True; it must be one of none, random, rotated"),
    ):
        found = call(
            ["simulate", "--landscape", wrong, "--policy", "topk-greedy"], monkeypatch, capfd
        )
        assert (found.code, words in found.err) == (2, True)


def test_a_flat_and_rugged_world_is_near_the_papers_table():
    """Founders' standard deviation, and how often a pair is measured below its parents' mean."""

    def facts(**settings):
        landscape, spreads, losses = Synthetic(Parameters(founders=3, **settings)), [], []
        for seed in range(40):
            world = landscape.world(seed, NOTHING)
            scores = [model.score for model in world.founders]
            spreads.append(np.var(scores, ddof=1))
            for i, j in ((0, 1), (0, 2), (1, 2)):
                pair = (world.founders[i].name, world.founders[j].name)
                child = world.merge(Merge(f"{i}-{j}", pair))
                losses.append(child.score < (scores[i] + scores[j]) / 2)
        return np.sqrt(np.mean(spreads)), np.mean(losses)

    spread, losses = facts(slope=0.05, rugged=0.15)
    assert spread == pytest.approx(0.022, abs=0.005)
    assert losses == pytest.approx(0.4, abs=0.12)
    spread, losses = facts()
    assert spread > 0.07
    assert losses < 0.02
    title = Synthetic(Parameters(slope=0.05, rugged=0.15)).title
    assert title.endswith(", slope 0.05, rugged 0.15")


def test_controls_have_lengths_and_kinships_but_no_skill():
    worlds = {
        control: Synthetic(Parameters(control=control)).world(3, NOTHING)
        for control in ("none", "random", "rotated")
    }
    lengths = {c: [model.length for model in world.founders] for c, world in worlds.items()}
    names = [model.name for model in worlds["none"].founders]
    kinships = {control: world.kinship(names) for control, world in worlds.items()}
    best = {control: max(map(world.true, names)) for control, world in worlds.items()}
    for control in ("random", "rotated"):
        assert lengths[control] == pytest.approx(lengths["none"])
        assert best[control] < best["none"] - 0.03
    assert kinships["rotated"] == pytest.approx(kinships["none"])
    assert (
        np.abs(kinships["random"] - np.eye(6)).mean() < np.abs(kinships["none"] - np.eye(6)).mean()
    )


def test_controls_of_real_models_have_their_lengths_and_rotated_ones_their_kinships(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inner = {}
    for control in ("none", "random", "rotated"):
        with open_landscape(f"demo:founders=6,control={control}") as landscape:
            inner[control] = landscape.ledger.gram[:, 2:, 2:].sum(0).numpy()
            order = np.argsort([landscape.folders[row].name for row in landscape.ledger.rows])
        inner[control] = inner[control][np.ix_(order, order)]
    lengths = {control: np.sqrt(np.diagonal(values)) for control, values in inner.items()}
    # Rounded to bfloat16, as fine-tunes are.
    assert lengths["random"] == pytest.approx(lengths["none"], rel=0.01)
    scale = np.outer(lengths["none"], lengths["none"])
    assert inner["rotated"] / scale == pytest.approx(inner["none"] / scale, abs=0.01)
    apart = ~np.eye(6, dtype=bool)
    assert np.abs((inner["random"] / scale)[apart]).max() < 0.02
    assert (inner["none"] / scale)[apart].max() > 0.1
