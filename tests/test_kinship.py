"""Kinship of leaves and of merges, against the definition on whole weights in float64."""

import pytest
import torch

import ledgers
import reference
import tiny
from kinship_daemon.weights import materialise
from kinship_daemon.weights.kinship import METRICS, by_tensor, matrix, mean_pairwise
from kinship_daemon.weights.recipe import Recipe, base_itself, combine, leaf

# Sums of float32 products, see weights/inner.py.
LEDGER = 1e-6


@pytest.fixture(scope="module")
def family(tiny_base, tiny_finetunes):
    return tiny_base, {folder.name: folder for folder in tiny_finetunes}


@pytest.fixture(scope="module")
def ledger(family):
    return ledgers.of(*family)


@pytest.fixture(scope="module")
def slerp_child(ledger):
    """A slerp of a merge and a leaf."""
    a, b, c = (leaf(ledger, name) for name in "abc")
    inner = combine(ledger, Recipe("linear", ("a", "b"), {"weight": [0.7, 0.3]}), [a, b])
    return combine(ledger, Recipe("slerp", ("m", "c"), {"t": 0.4}), [inner, c])


@pytest.mark.parametrize("metric", METRICS)
def test_leaves(metric, family, ledger):
    base, leaves = family
    weights = [tiny.tensors(folder) for folder in leaves.values()]
    measured = matrix(ledger, [leaf(ledger, name) for name in leaves], metric)
    for i, first in enumerate(weights):
        for j, second in enumerate(weights[:i]):
            exact = reference.kinship(metric, first, second, tiny.tensors(base))
            assert float(measured[i, j]) == pytest.approx(exact, abs=LEDGER, rel=LEDGER)
    assert torch.equal(measured, measured.T)
    assert bool((measured.diagonal() == (0 if metric == "euclidean" else 1)).all())


@pytest.mark.parametrize("metric", METRICS)
def test_by_tensor(metric, family, ledger):
    base, leaves = family
    measured = by_tensor(ledger, [leaf(ledger, name) for name in leaves], metric)
    assert measured.shape == (len(ledger.names), 3, 3)
    first, second = (tiny.tensors(leaves[name]) for name in "ac")
    for index, name in enumerate(ledger.names):
        one = [{name: weights[name]} for weights in (first, second, tiny.tensors(base))]
        exact = reference.kinship(metric, *one)
        assert float(measured[index, 0, 2]) == pytest.approx(exact, abs=3e-6, rel=3e-6)


def test_the_sign_is_kept(tmp_path):
    base = {"w": torch.zeros(1000)}
    up = {"w": torch.linspace(-1, 2, 1000)}
    tiny.bare(tmp_path / "base", base)
    tiny.bare(tmp_path / "up", up)
    tiny.bare(tmp_path / "down", {"w": -up["w"]})
    ledger = ledgers.of(tmp_path / "base", {n: tmp_path / n for n in ("up", "down")})
    rows = [leaf(ledger, name) for name in ("up", "down")]
    assert float(matrix(ledger, rows, "cosine")[0, 1]) == pytest.approx(-1)
    assert float(matrix(ledger, rows, "pcc")[0, 1]) == pytest.approx(-1)


def test_a_shift_of_every_weight_changes_cosine_but_not_pcc(tmp_path):
    noise = torch.Generator().manual_seed(0)
    one, two = (torch.randn(5000, generator=noise) for _ in range(2))
    tiny.bare(tmp_path / "base", {"w": torch.zeros(5000)})
    tiny.bare(tmp_path / "one", {"w": one + 2})
    tiny.bare(tmp_path / "two", {"w": two + 2})
    ledger = ledgers.of(tmp_path / "base", {n: tmp_path / n for n in ("one", "two")})
    rows = [leaf(ledger, name) for name in ("one", "two")]
    correlation = float(torch.corrcoef(torch.stack([one, two]).double())[0, 1])
    assert float(matrix(ledger, rows, "pcc")[0, 1]) == pytest.approx(correlation, abs=3e-6)
    assert float(matrix(ledger, rows, "cosine")[0, 1]) > 0.7


def test_undefined_kinships_are_nan_and_spare_the_others(tmp_path):
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(3000, generator=noise).mul(16).round() / 16
    tiny.bare(tmp_path / "base", {"w": base})
    deltas = {"same": torch.zeros(3000), "shifted": torch.full((3000,), 0.3)}
    deltas |= {n: torch.randn(3000, generator=noise) for n in ("x", "y")}
    for name, delta in deltas.items():
        tiny.bare(tmp_path / name, {"w": base + delta})
    ledger = ledgers.of(tmp_path / "base", {name: tmp_path / name for name in deltas})
    rows = [*(leaf(ledger, name) for name in deltas), base_itself(ledger)]
    defined = {
        "cosine": [False, True, True, True, False],
        "pcc": [False, False, True, True, False],
        "euclidean": [True] * 5,
    }
    for metric in METRICS:
        known = torch.tensor(defined[metric])
        found = matrix(ledger, rows, metric).isfinite()
        assert torch.equal(found, known[:, None] & known[None, :]), metric
        assert torch.equal(by_tensor(ledger, rows, metric)[0].isfinite(), found)


@pytest.mark.parametrize("metric", METRICS)
def test_an_unborn_childs_kinship_is_that_of_its_weights(
    metric, tmp_path, family, ledger, slerp_child
):
    base, leaves = family
    # In float32 the child is written with one rounding far below the ledger's own.
    assembly = materialise.assemble(ledger, slerp_child, base, leaves, "child", donor=leaves["a"])
    materialise.write(assembly, tmp_path / "child", dtype=torch.float32)
    weights = [tiny.tensors(tmp_path / "child"), *(tiny.tensors(f) for f in leaves.values())]
    predicted = matrix(ledger, [slerp_child, *(leaf(ledger, n) for n in leaves)], metric)
    for j in range(1, 4):
        exact = reference.kinship(metric, weights[0], weights[j], tiny.tensors(base))
        assert float(predicted[0, j]) == pytest.approx(exact, abs=3e-6, rel=3e-6)


def test_a_published_child_measures_slightly_lower(tmp_path, family, ledger, slerp_child):
    """
    Rounding to bf16 adds noise r to the child's delta d: a weight w moves by up to 2^-9 |w|, evenly
    within that, so |r|^2 is about (2^-8 |w|)^2 / 12 at most and the cosine shrinks by
    1 / sqrt(1 + |r|^2 / |d|^2). Here |w| is 10 |d|: at most 0.1 %.
    """
    base, leaves = family
    assembly = materialise.assemble(ledger, slerp_child, base, leaves, "child", donor=leaves["a"])
    materialise.write(assembly, tmp_path / "child")
    child = tiny.tensors(tmp_path / "child")
    assert child["lm_head.weight"].dtype == torch.bfloat16
    delta = reference.flat(child) - reference.flat(tiny.tensors(base))
    noise = (2**-8 * float(reference.flat(child).norm())) ** 2 / 12
    tolerance = 1 - (1 + noise / float(delta @ delta)) ** -0.5
    assert tolerance < 1e-3
    rows = [slerp_child, *(leaf(ledger, name) for name in leaves)]
    for metric in ("pcc", "cosine"):
        predicted = matrix(ledger, rows, metric)
        for j, name in enumerate(leaves, start=1):
            read = reference.kinship(metric, child, tiny.tensors(leaves[name]), tiny.tensors(base))
            # The noise of this very rounding is not quite orthogonal to the deltas.
            assert read == pytest.approx(float(predicted[0, j]), abs=2 * tolerance)
    known = ledgers.of(base, {**leaves, "child": tmp_path / "child"})
    again = matrix(known, [leaf(known, "child"), leaf(known, "c")], "pcc")[0, 1]
    unborn = matrix(ledger, rows, "pcc")[0, 3]
    assert float(again) == pytest.approx(float(unborn), abs=2 * tolerance)


@pytest.mark.parametrize("metric", METRICS)
def test_a_kinship_depends_on_its_two_models_alone(metric, family, ledger, slerp_child):
    base, leaves = family
    shuffled = ledgers.of(base, {name: leaves[name] for name in "cab"})
    few = ledgers.of(base, {name: leaves[name] for name in "ab"})
    a, b = leaf(ledger, "a"), leaf(ledger, "b")
    value = matrix(ledger, [a, b], metric)[0, 1]
    everyone = [slerp_child, b, leaf(ledger, "c"), a, base_itself(ledger)]
    assert float(matrix(ledger, everyone, metric)[3, 1]) == float(value)
    assert float(matrix(few, [b, a], metric)[0, 1]) == float(value)
    with_child = float(matrix(ledger, everyone, metric)[0, 3])
    assert float(matrix(shuffled, [a, slerp_child], metric)[0, 1]) == with_child


def test_the_mean_is_over_pairs():
    values = torch.tensor([[1.0, 0.2, 0.4], [0.2, 1.0, 0.9], [0.4, 0.9, 1.0]])
    assert mean_pairwise(values) == pytest.approx(0.5)
    assert mean_pairwise(values[:1, :1]) != mean_pairwise(values[:1, :1])  # NaN
