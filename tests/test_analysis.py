"""Correlations and stages of a lineage whose gains are known."""

import json

import numpy as np
import pytest
from scipy import stats

import command
import small_lineage
import warm_workers
from kinship_daemon.analysis import FEWEST, METRICS, Merge, analyse, correlations
from kinship_storage.records import Generation

# Parent scores, child score and kinship of ten merges: the more alike, the smaller the gain.
KINSHIPS = [-0.1, 0.0, 0.1, 0.2, 0.35, 0.5, 0.6, 0.75, 0.9, 0.95]
GAINS = [0.060, 0.055, 0.040, 0.045, 0.030, 0.020, 0.025, 0.010, 0.004, -0.001]


def lineage_of(path, merges):
    """Founders of score 0.5 in pairs, and a merge of each pair; five generations of two."""
    lineage = small_lineage.open_lineage(path)
    lineage.put("settings", {"selection": "fp1", "validation": "fp2"})
    for number, (kinship, gain) in enumerate(merges):
        pair = (f"demo/a{number}", f"demo/b{number}")
        for name in pair:
            lineage.add_model(small_lineage.finetune(name.removeprefix("demo/")))
        lineage.add_scores(
            [small_lineage.score(f"sha256:{n[5:]}", 0.5, stderr=0.002) for n in pair]
        )
        generation = 1 + number // 2
        child = small_lineage.merge(f"m{number}", pair, generation, status="admitted")
        lineage.add_model(child)
        lineage.add_scores([small_lineage.score(child.weights, 0.5 + gain, stderr=0.002)])
        lineage.add_kinships("pcc", [(f"sha256:a{number}", f"sha256:b{number}", kinship)])
        if number % 2 == 0:
            decision = {"merges": [], "top": list(pair), "top_mean_kinship": kinship}
            lineage.add_generation(
                Generation(generation, generation, "topk-kinship", {}, 0, decision), {"members": []}
            )
    return lineage


@pytest.fixture
def found(tmp_path):
    with lineage_of(tmp_path / "lineage.db", list(zip(KINSHIPS, GAINS, strict=True))) as lineage:
        yield analyse(lineage)


def test_a_gain_is_over_the_mean_of_the_parents(found):
    assert [round(merge.gain, 6) for merge in found.merges] == GAINS
    assert [merge.kinship["pcc"] for merge in found.merges] == KINSHIPS
    assert all(merge.kinship["cosine"] is None for merge in found.merges)


def test_correlations_are_pearsons_with_fishers_interval(found):
    gain, absolute = found.correlations
    assert (gain.metric, gain.of, gain.n) == ("pcc", "gain", 10)
    expected = stats.pearsonr(KINSHIPS, GAINS)
    assert gain.r == pytest.approx(expected.statistic)
    assert gain.p == pytest.approx(expected.pvalue)
    assert -1 < gain.low < gain.r < gain.high < 0
    assert absolute.of == "absolute gain"
    assert absolute.r == pytest.approx(stats.pearsonr(KINSHIPS, [abs(g) for g in GAINS])[0])


def test_no_second_row_where_every_merge_gains(tmp_path):
    gains = [gain + 0.01 for gain in GAINS]
    with lineage_of(tmp_path / "l.db", list(zip(KINSHIPS, gains, strict=True))) as lineage:
        assert [each.of for each in analyse(lineage).correlations] == ["gain"]


def test_what_time_alone_explains_is_not_kinships(tmp_path):
    """Gains fall and kinships rise over the generations; within them they rise together."""
    kinships = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    gains = [0.050, 0.052, 0.040, 0.042, 0.030, 0.032, 0.020, 0.022, 0.010, 0.012]
    with lineage_of(tmp_path / "l.db", list(zip(kinships, gains, strict=True))) as lineage:
        (found,) = analyse(lineage).correlations
    assert found.r < -0.95
    assert found.within == pytest.approx(1)
    assert found.partial == pytest.approx(found.r)  # all parents score the same


def test_what_good_parents_leave_to_gain_is_not_kinships():
    rng = np.random.default_rng(1)
    parents = rng.normal(size=400)
    kinships, gains = (sign * parents + 0.3 * rng.normal(size=400) for sign in (1, -1))
    merges = [
        Merge(f"m{i}", i // 10, p - g, p, g, dict.fromkeys(METRICS, k))
        for i, (p, k, g) in enumerate(zip(parents, kinships, gains, strict=True))
    ]
    found = correlations(merges)[0]
    assert found.r < -0.85
    assert abs(found.partial) < 0.1


def test_a_rise_has_the_error_of_paired_answers(tmp_path):
    """Both models fail the same hard documents, so little is left to luck."""
    rng = np.random.default_rng(2)
    hard = rng.random(400) < 0.4
    answers = {"add": 1.0 * hard, "sort": np.zeros(400), "m1": np.where(hard, 1.0, 0.0)}
    answers["m1"][np.flatnonzero(~hard)[:12]] = 1.0
    with small_lineage.open_lineage(tmp_path / "l.db") as lineage:
        lineage.put("settings", {"selection": "fp1"})
        pair = ("demo/add", "demo/sort")
        for name in ("add", "sort"):
            lineage.add_model(small_lineage.finetune(name))
        lineage.add_model(small_lineage.merge("m1", pair, status="admitted"))
        for name, values in answers.items():
            weights = "recipe:m1" if name == "m1" else f"sha256:{name}"
            lineage.add_scores([small_lineage.score(weights, *values.tolist(), stderr=0.025)])
        (rise,) = analyse(lineage).rises
    differences = answers["m1"] - answers["add"]
    assert (rise.generation, rise.gain) == (1, pytest.approx(0.03))
    assert rise.stderr == pytest.approx(differences.std(ddof=1) / 20)
    assert rise.stderr < 0.01


def test_learning_ends_where_the_best_no_longer_rises_by_its_noise(tmp_path):
    rising = [0.01, 0.01, 0.02, 0.02, 0.03, 0.03, 0.031, 0.03, 0.0305, 0.031]
    with lineage_of(tmp_path / "l.db", list(zip(KINSHIPS, rising, strict=True))) as lineage:
        learning, saturation = analyse(lineage).stages
    assert (learning.name, learning.generations) == ("learning", (1, 2, 3))
    assert (saturation.name, saturation.generations) == ("saturation", (4, 5))
    assert (learning.merges, saturation.merges) == (6, 4)
    assert learning.kinship == pytest.approx(sum(KINSHIPS[:6]) / 6)
    assert saturation.top_kinship == pytest.approx((0.6 + 0.9) / 2)


def test_the_top_is_that_of_the_generation_before_a_decision_or_a_stop(tmp_path):
    with lineage_of(tmp_path / "lineage.db", list(zip(KINSHIPS, GAINS, strict=True))) as lineage:
        before = analyse(lineage).top_kinships
        for number, (generation, kinship) in enumerate(((None, 0.99), (6, 0.97)), start=6):
            decision = {"merges": [], "top": ["m1"], "top_mean_kinship": kinship}
            lineage.add_generation(
                Generation(number, generation, "topk-kinship", {}, 0, decision), {"members": []}
            )
            # After generation 5 the policy stopped, and went on once there was somebody new.
            assert analyse(lineage).top_kinships == {**before, 5: kinship}


def test_too_few_merges_conclude_nothing(tmp_path):
    few = list(zip(KINSHIPS, GAINS, strict=True))[: FEWEST - 1]
    with lineage_of(tmp_path / "lineage.db", few) as lineage:
        found = analyse(lineage)
    assert found.correlations == ()
    assert "too few to conclude" in found.too_few


def test_a_lineage_without_merges_is_looked_at_in_peace(tmp_path):
    with lineage_of(tmp_path / "lineage.db", []) as lineage:
        found = analyse(lineage)
    assert found.merges == found.stages == ()


def test_the_command_says_writes_and_draws_it(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with lineage_of(home / "lineage.db", list(zip(KINSHIPS, GAINS, strict=True))):
        pass
    arguments = ["analyze", "--home", home, "--json", tmp_path / "a.json", "--plot"]
    first = command.run([*arguments, tmp_path / "a.svg"], tmp_path)
    assert first.code == 0, first.err
    assert "pcc       with gain" in first.out
    assert "saturation" in first.out
    facts = json.loads((tmp_path / "a.json").read_text())
    assert len(facts["merges"]) == 10
    drawn = (tmp_path / "a.svg").read_bytes()
    assert b"Kinship and gain of 10 merges" in drawn
    warm_workers.run([*arguments, tmp_path / "b.svg"], tmp_path)
    assert (tmp_path / "b.svg").read_bytes() == drawn
    wrong = warm_workers.run([*arguments, tmp_path / "a.gif"], tmp_path)
    assert wrong.code == 2
    assert ".png or .svg" in wrong.err
