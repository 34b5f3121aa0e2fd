"""Compact vectors: what they tell of two models, how surely, and how fast for thousands."""

import time
from itertools import combinations

import numpy as np
import pytest
import torch

import ledgers
import tiny
import varied_models
from kinship_daemon import demo
from kinship_daemon.errors import KinshipError
from kinship_daemon.ranges import FolderRanges
from kinship_daemon.web.sample_map import places
from kinship_daemon.weights.kinship import METRICS, matrix
from kinship_daemon.weights.recipe import leaf
from kinship_daemon.weights.remote import open_remote
from kinship_daemon.weights.sample.estimate import estimate
from kinship_daemon.weights.sample.jackknife import LEVEL, interval
from kinship_daemon.weights.sample.plan import plan
from kinship_daemon.weights.sample.sketch import compare, sketch
from kinship_daemon.weights.sample.take import base_sample, take


def remote(folder):
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    return open_remote(str(folder), FolderRanges(folder), files)


def samples(base, leaves, **settings):
    source = remote(base)
    scheme = plan(source.tensors, **settings)
    own = base_sample(scheme, source)
    return [take(scheme, own, remote(folder)) for folder in leaves]


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    return varied_models.family(tmp_path_factory.mktemp("wild") / "models")


@pytest.fixture(scope="module")
def of_demo():
    names = ("add", "max", "reverse", "sort", "subtract")
    return demo.HUB / demo.BASE, {name: demo.HUB / "demo" / name for name in names}


def covered(family, seeds, **settings):
    """By metric, in how many pairs and seeds the interval holds what the ledger says."""
    base, leaves = family
    ledger = ledgers.of(base, leaves)
    truth = {m: matrix(ledger, [leaf(ledger, name) for name in leaves], m) for m in METRICS}
    held = {metric: [] for metric in METRICS}
    errors = []
    for seed in range(seeds):
        vectors = [sketch(s) for s in samples(base, leaves.values(), seed=seed, **settings)]
        for metric, row in [(m, i) for m in METRICS for i in range(len(leaves) - 1)]:
            found = compare(vectors[row], vectors[row + 1 :], metric)
            low, high = interval(found, metric)
            exact = truth[metric][row, row + 1 :]
            held[metric] += ((low <= exact) & (exact <= high)).tolist()
            if metric == "pcc":
                errors.append(found.error)
    return held, LEVEL * float(torch.cat(errors).median())


def test_intervals_hold_the_exact_kinship_of_strange_models(wild):
    held, half = covered(wild, 14, fraction=0.002)
    for metric in METRICS:
        assert len(held[metric]) >= 200
        assert np.mean(held[metric]) >= 0.9
    assert half < 0.06


@pytest.mark.parametrize("settings", [{"fraction": 0.12, "fewest": 0}, {"fraction": 1.0}])
def test_intervals_hold_the_exact_kinship_of_the_demos_models(of_demo, settings):
    held, half = covered(of_demo, 20, **settings)
    for metric in METRICS:
        assert len(held[metric]) >= 200
        assert np.mean(held[metric]) >= 0.9
    assert half < 0.05


def test_vectors_tell_what_samples_tell_but_for_their_own_noise(wild):
    taken = samples(wild[0], wild[1].values(), fraction=0.05)
    vectors = [sketch(sample) for sample in taken]
    for metric in ("pcc", "cosine"):
        found = estimate(taken, metric)
        for i, j in combinations(range(len(taken)), 2):
            told = float(compare(vectors[i], vectors[j : j + 1], metric).value[0])
            assert told == pytest.approx(float(found.value[i, j]), abs=0.06)


def test_a_vector_takes_16_kb_and_is_the_same_every_time(wild):
    one, two = (samples(wild[0], [wild[1]["drift"]], fraction=0.002)[0] for _ in range(2))
    assert sketch(one) == sketch(two)
    assert 16_000 < len(sketch(one)) < 17_000


def test_twins_are_one(wild):
    for folder in wild[1].values():
        vector = sketch(samples(wild[0], [folder], fraction=0.002)[0])
        for metric, value in (("pcc", 1), ("cosine", 1), ("euclidean", 0)):
            found = compare(vector, [vector], metric)
            assert float(found.value[0]) == value
            assert float(found.error[0]) == 0


def test_models_of_any_strength_can_be_compared(wild):
    """Vectors carry a scale: float16 alone has no scratch for decades."""
    (taken,) = samples(wild[0], [wild[1]["dense"]], fraction=0.002)
    vector = sketch(taken)
    for factor in (1e-12, 1e-3, 1e6, 1e25, 1e-25):
        taken.deltas.mul_(factor)
        found = compare(vector, [sketch(taken)], "cosine")
        taken.deltas.div_(factor)
        assert float(found.value[0]) == pytest.approx(1, abs=1e-6)


def test_a_map_keeps_what_a_plane_can_keep_of_distances(of_demo):
    """The dashboard's; a plane only brings models nearer to each other."""
    base, leaves = of_demo
    taken = samples(base, leaves.values(), fraction=0.2)
    vectors = [sketch(each) for each in taken]
    found, share = places(vectors)
    kin = torch.stack([compare(each, vectors, "cosine").value for each in vectors]).numpy()
    true = np.sqrt(2 * np.clip(1 - kin, 0, None))
    shown = np.linalg.norm(found[:, None] - found[None], axis=-1)
    pairs = np.triu_indices(len(vectors), 1)
    assert (shown[pairs] <= true[pairs] + 0.05).all()
    assert np.corrcoef(shown[pairs], true[pairs])[0, 1] > 0.4
    assert 0.5 < share < 1
    taken[0].deltas.zero_()  # one that does not differ from the base has no direction
    rest, _ = places([*vectors, sketch(taken[0])])
    assert np.isnan(rest[-1]).all()
    assert np.allclose(rest[:-1], found)
    assert np.isnan(places(vectors[:2])[0]).all()


def test_the_mean_of_a_delta_is_known(tmp_path):
    """pcc takes it away; cosine does not."""
    noise = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(1000, 1000, generator=noise)}
    shifts = [0.02 * torch.randn(1000, 1000, generator=noise) + 0.02 for _ in range(2)]
    tiny.bare(tmp_path / "base", base)
    leaves = [
        tiny.bare(tmp_path / str(n), {"w": base["w"] + shift}) for n, shift in enumerate(shifts)
    ]
    one, two = (sketch(s) for s in samples(tmp_path / "base", leaves, fraction=0.2))
    assert float(compare(one, [two], "cosine").value[0]) == pytest.approx(0.5, abs=0.05)
    assert float(compare(one, [two], "pcc").value[0]) == pytest.approx(0, abs=0.05)


def test_a_copy_of_the_base_is_kin_to_nobody(tiny_base, tiny_finetunes):
    none, own = (
        sketch(s) for s in samples(tiny_base, [tiny_base, *tiny_finetunes[:1]], fraction=1)
    )
    assert bool(compare(own, [none], "pcc").value.isnan())
    assert bool(compare(none, [none, own], "cosine").value.isnan().all())


def test_without_vocabulary_vectors_speak_of_the_rest(wild):
    base, leaves = wild
    source = remote(base)
    scheme = plan(source.tensors, fraction=0.05)
    own = base_sample(scheme, source)
    models = [remote(leaves[name]) for name in ("dense", "drift")]
    whole = [take(scheme, own, model) for model in models]
    rest = [take(scheme.without_vocabulary(), own, model) for model in models]
    wanted = compare(sketch(rest[0]), [sketch(rest[1])], "pcc")
    for one, two in ((whole[0], rest[1]), (rest[0], whole[1])):
        found = compare(sketch(one), [sketch(two)], "pcc")
        # Other scales round other digits of the vector away.
        assert float(found.value[0]) == pytest.approx(float(wanted.value[0]), abs=1e-3)
        assert float(found.error[0]) == pytest.approx(float(wanted.error[0]), rel=0.02)
    all_of_it = compare(sketch(whole[0]), [sketch(whole[1])], "pcc")
    assert float(all_of_it.value[0]) != pytest.approx(float(wanted.value[0]), abs=1e-3)


def test_damaged_vectors_and_those_of_other_plans_are_refused(wild):
    one, other = (
        sketch(samples(wild[0], [wild[1]["dense"]], fraction=0.002, seed=seed)[0])
        for seed in (0, 1)
    )
    with pytest.raises(KinshipError, match="different plans"):
        compare(one, [one, other], "pcc")
    with pytest.raises(KinshipError, match="damaged"):
        compare(one, [one[:-1]], "pcc")
    with pytest.raises(KinshipError, match="another version"):
        compare(one, [b"KSK9" + one[4:]], "pcc")


def test_nobody_is_compared_with_nobody(wild):
    (taken,) = samples(wild[0], [wild[1]["dense"]], fraction=0.002)
    assert compare(sketch(taken), [], "pcc").value.tolist() == []


def test_a_newcomer_is_compared_with_10_000_at_once(wild):
    vectors = [sketch(sample) for sample in samples(wild[0], wild[1].values(), fraction=0.002)]
    population = [bytes(bytearray(vectors[i % len(vectors)])) for i in range(10_000)]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = compare(vectors[0], population, "pcc")
        seconds.append(time.perf_counter() - start)
    assert found.value.shape == found.error.shape == (10_000,)
    assert torch.equal(found.value[:6], compare(vectors[0], vectors, "pcc").value)
    assert min(seconds) < 2
