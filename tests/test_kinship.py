"""Kinship of leaves and of merges, against the definition on whole weights in float64."""

import pytest
import torch

import ledgers
import reference
import tiny
from kinship_daemon.weights import kinship, materialise
from kinship_daemon.weights.kinship import (
    KINDS,
    METRICS,
    by_kind,
    by_layer,
    by_tensor,
    grouped,
    kind_of,
    matrix,
    mean_pairwise,
)
from kinship_daemon.weights.parameters import layer_of
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
    assert float(matrix(ledger, everyone, metric)[3, 1]) == pytest.approx(float(value), rel=1e-12)
    assert float(matrix(few, [b, a], metric)[0, 1]) == pytest.approx(float(value), rel=1e-12)
    with_child = float(matrix(ledger, everyone, metric)[0, 3])
    again = float(matrix(shuffled, [a, slerp_child], metric)[0, 1])
    assert again == pytest.approx(with_child, rel=1e-12)


def test_the_mean_is_over_pairs():
    values = torch.tensor([[1.0, 0.2, 0.4], [0.2, 1.0, 0.9], [0.4, 0.9, 1.0]])
    assert mean_pairwise(values) == pytest.approx(0.5)
    assert mean_pairwise(values[:1, :1]) != mean_pairwise(values[:1, :1])  # NaN


# Layers and kinds of module


@pytest.fixture(scope="module")
def generations(family, ledger):
    """Leaves, a slerp, a linear merge with a slerp as parent: coefficients and whole weights."""
    base, leaves = family
    weights = {name: doubles(folder) for name, folder in leaves.items()}
    rows = {name: leaf(ledger, name) for name in leaves}
    steps = [
        ("slerp", ("a", "b"), {"t": 0.3}, lambda x, y: reference.slerp(0.3, x, y)),
        (
            "linear",
            ("slerp", "c"),
            {"weight": [0.8, 0.5], "normalize": False},
            lambda x, y: reference.linear([0.8, 0.5], [x, y], normalize=False),
        ),
    ]
    for method, parents, parameters, by_hand in steps:
        recipe = Recipe(method, parents, parameters)
        rows[method] = combine(ledger, recipe, [rows[parent] for parent in parents])
        first, second = (weights[parent] for parent in parents)
        weights[method] = {name: by_hand(first[name], second[name]) for name in first}
    return list(rows.values()), list(weights.values()), doubles(base)


def doubles(folder):
    return {name: tensor.double() for name, tensor in tiny.tensors(folder).items()}


def truth(metric, generations, names):
    """Kinship of every two by definition, on these tensors of the really merged weights."""
    _, models, base = generations
    part = [{name: weights[name] for name in names} for weights in (*models, base)]
    pairs = [[reference.kinship(metric, x, y, part[-1]) for y in part[:-1]] for x in part[:-1]]
    return torch.tensor(pairs, dtype=torch.float64)


def close(found, exact):
    return torch.allclose(found, exact, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_leaves_and_merges_over_all_parameters(metric, ledger, generations):
    found = matrix(ledger, generations[0], metric)
    assert torch.equal(found, found.T)
    assert bool((found.diagonal() == (0 if metric == "euclidean" else 1)).all())
    off = ~torch.eye(len(found), dtype=torch.bool)
    assert close(found[off], truth(metric, generations, ledger.names)[off])


@pytest.mark.parametrize("metric", METRICS)
def test_by_layer(metric, ledger, generations):
    found = by_layer(ledger, generations[0], metric)
    assert list(found) == [0, 1, None]
    for layer, values in found.items():
        if layer is None:
            names = [name for name in ledger.names if ".layers." not in name]
        else:
            names = [name for name in ledger.names if f".layers.{layer}." in name]
        assert close(values, truth(metric, generations, names)), layer


@pytest.mark.parametrize("metric", METRICS)
def test_by_kind(metric, ledger, generations):
    found = by_kind(ledger, generations[0], metric)
    assert list(found) == ["attention", "mlp", "embeddings", "norms"]
    words = {"attention": "self_attn", "mlp": "mlp", "norms": "norm"}
    words |= {"embeddings": ("embed_tokens", "lm_head")}
    for kind, values in found.items():
        wanted = (words[kind],) if isinstance(words[kind], str) else words[kind]
        names = [name for name in ledger.names if any(word in name for word in wanted)]
        assert close(values, truth(metric, generations, names)), kind
        mean = torch.tensor([mean_pairwise(values)], dtype=torch.float64)
        assert close(
            mean, torch.tensor([mean_pairwise(truth(metric, generations, names))]).double()
        )


def test_squared_distances_add_up_over_any_groups(ledger, generations):
    whole = matrix(ledger, generations[0], "euclidean").square()
    odd = grouped(ledger, generations[0], "euclidean", [i % 2 for i in range(len(ledger.names))])
    assert list(odd) == [0, 1]
    for parts in (odd, by_layer(ledger, generations[0], "euclidean")):
        total = torch.stack([values.square() for values in parts.values()]).sum(0)
        assert torch.allclose(total, whole, rtol=1e-10)


@pytest.mark.parametrize(
    ("tensor", "layer", "kind"),
    [
        ("model.layers.10.self_attn.q_proj.weight", 10, "attention"),
        ("model.layers.2.self_attn.k_proj.bias", 2, "attention"),
        ("model.layers.0.self_attn.q_norm.weight", 0, "norms"),
        ("model.layers.0.mlp.gate_proj.weight", 0, "mlp"),
        ("model.layers.3.pre_feedforward_layernorm.weight", 3, "norms"),
        ("model.layers.3.post_attention_layernorm.weight", 3, "norms"),
        ("model.norm.weight", None, "norms"),
        ("model.embed_tokens.weight", None, "embeddings"),
        ("lm_head.weight", None, "embeddings"),
        ("model.rotary.scale", None, "other"),
    ],
)
def test_layer_and_kind_follow_from_the_name(tensor, layer, kind):
    assert layer_of(tensor) == layer
    assert kind_of(tensor) == kind
    assert kind in KINDS


def test_layers_come_in_the_order_of_numbers(tmp_path):
    noise = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.weight" for i in range(12)]
    base = {name: torch.zeros(50) for name in names}
    tiny.bare(tmp_path / "base", base)
    tiny.bare(tmp_path / "x", {n: torch.randn(50, generator=noise) for n in names})
    ledger = ledgers.of(tmp_path / "base", {"x": tmp_path / "x"})
    assert list(by_layer(ledger, [leaf(ledger, "x")], "cosine")) == list(range(12))


# Many models


def test_twins_are_at_distance_nought_and_kinship_one(ledger, slerp_child):
    same = matrix(ledger, [slerp_child] * 300, "euclidean")
    assert bool((same == 0).all())
    kin = matrix(ledger, [slerp_child] * 300, "pcc")
    assert float((kin - 1).abs().max()) < 1e-12


@pytest.mark.parametrize("metric", METRICS)
def test_many_models_in_pieces_are_the_same_as_few_at_once(
    metric, ledger, generations, monkeypatch
):
    rows = generations[0]
    many = rows * 40  # beyond one block of the product
    whole, again = matrix(ledger, many, metric), matrix(ledger, many, metric)
    assert torch.equal(whole, again)
    assert torch.equal(whole, whole.T)
    few = matrix(ledger, rows, metric)
    assert torch.allclose(whole[-5:, :5], few, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(kinship, "_ROOM", 4 * len(many) * 3)  # three tensors at a time
    chunked = matrix(ledger, many, metric)
    assert torch.allclose(chunked, whole, rtol=1e-12, atol=1e-12)
    layers = by_layer(ledger, many, metric)
    monkeypatch.undo()
    for layer, values in by_layer(ledger, many, metric).items():
        assert torch.allclose(layers[layer], values, rtol=1e-12, atol=1e-12)
