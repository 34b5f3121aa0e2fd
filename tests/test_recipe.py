"""Recipes: their identity, their parameters, and that collapsing them is merging step by step."""

import json
import shutil

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ledgers
import reference
import tiny
from kinship_daemon.errors import UsageError
from kinship_daemon.weights import gram
from kinship_daemon.weights import recipe as recipe_module
from kinship_daemon.weights.recipe import Recipe, base_itself, check, combine, leaf, resolve

HALF = Recipe("slerp", ("x", "y"), {"t": 0.5})


# Identity and JSON


def test_the_identity_is_that_of_method_parameters_and_parents_weights():
    identity = HALF.identity(["sha256:1", "sha256:2"])
    assert identity.startswith("recipe:")
    renamed = Recipe("slerp", ("p", "q"), {"t": 0.5})
    assert renamed.identity(["sha256:1", "sha256:2"]) == identity
    others = [
        HALF.identity(["sha256:2", "sha256:1"]),
        Recipe("slerp", ("x", "y"), {"t": 0.25}).identity(["sha256:1", "sha256:2"]),
        Recipe("linear", ("x", "y"), {"t": 0.5}).identity(["sha256:1", "sha256:2"]),
    ]
    assert len({identity, *others}) == 4


def test_one_and_one_point_nought_are_the_same_recipe():
    one = Recipe("linear", ("x",), {"weight": [1], "normalize": True})
    other = Recipe("linear", ("x",), {"normalize": True, "weight": (1.0,)})
    assert one.identity(["w"]) == other.identity(["w"])
    number = Recipe("linear", ("x",), {"weight": [1], "normalize": 1})
    assert number.identity(["w"]) != one.identity(["w"])


def test_json_there_and_back():
    settings = {"t": [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.5}]}
    recipe = Recipe("slerp", ("x", "y"), settings)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.identity(["1", "2"]) == recipe.identity(["1", "2"])


@pytest.mark.parametrize(
    "value", [{}, {"method": "slerp", "parents": "xy", "parameters": {}}, {"method": 1}]
)
def test_what_is_no_recipe_is_refused(value):
    with pytest.raises(UsageError, match="not a recipe"):
        Recipe.from_json(value)


# Collapse


def exact_ledger(base: reference.Weights, leaves: dict[str, reference.Weights]) -> gram.Ledger:
    """A ledger in full float64, so that nothing but the algebra is tested."""
    grams = []
    for name in sorted(base):
        b = base[name].reshape(-1)
        deltas = [weights[name].reshape(-1) - b for weights in leaves.values()]
        rows = torch.stack([torch.ones_like(b), b, *deltas])
        grams.append(rows @ rows.T)
    sizes = tuple(base[name].numel() for name in sorted(base))
    return gram.Ledger("base", tuple(leaves), tuple(sorted(base)), sizes, torch.stack(grams))


def made(coefficients, base: reference.Weights, leaves: dict) -> reference.Weights:
    """Weights from coefficients: w = base * b + sum deltas * (w_i - b)."""
    result = {}
    for index, name in enumerate(sorted(base)):
        result[name] = coefficients.base[index] * base[name]
        for place, row in enumerate(coefficients.rows):
            delta = leaves[row][name] - base[name]
            result[name] = result[name] + coefficients.deltas[index, place] * delta
    return result


NAMES = ("model.embed", "model.layers.0.mlp", "model.layers.1.mlp", "model.layers.2.attn")


def family(seed: int, scale: float) -> tuple[reference.Weights, dict[str, reference.Weights]]:
    noise = torch.Generator().manual_seed(seed)
    base = {n: torch.randn(40, generator=noise, dtype=torch.float64) for n in NAMES}
    leaves = {
        f"leaf{i}": {
            n: t + scale * torch.randn(40, generator=noise, dtype=torch.float64)
            for n, t in base.items()
        }
        for i in range(4)
    }
    return base, leaves


def merge_by_hand(recipe: Recipe, parents: list[reference.Weights]) -> reference.Weights:
    """Step by step on whole tensors; a `t` of three values is a gradient over the three layers."""
    result = {}
    for name in NAMES:
        tensors = [parent[name] for parent in parents]
        if recipe.method == "linear":
            weights, normalize = recipe.parameters["weight"], recipe.parameters["normalize"]
            result[name] = reference.linear(weights, tensors, normalize)
            continue
        t = recipe.parameters["t"]
        if isinstance(t, list):
            t = t[NAMES.index(name) - 1 if "layers" in name else 0]
        result[name] = reference.slerp(t, *tensors)
    return result


share = st.floats(0, 1).map(lambda x: round(x, 3))
slerps = st.fixed_dictionaries({"t": share | st.lists(share, min_size=3, max_size=3)})
linears = st.fixed_dictionaries(
    {"weight": st.lists(st.floats(0.1, 2), min_size=2, max_size=2), "normalize": st.booleans()}
)
# Method, parameters, and which two of the models so far (modulo their number) to merge.
steps = st.tuples(
    st.tuples(st.just("slerp"), slerps) | st.tuples(st.just("linear"), linears),
    st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
trees = st.lists(steps, min_size=1, max_size=6)


def near_threshold(first: reference.Weights, second: reference.Weights) -> bool:
    """Where a last bit decides between slerp's two branches, the two ways may differ."""
    cosines = [float(torch.cosine_similarity(first[n], second[n], dim=0)) for n in NAMES]
    return any(abs(abs(cos) - 0.9995) < 1e-9 for cos in cosines)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 0.1, 1.0]), trees)
def test_a_collapsed_tree_is_the_tree_merged_step_by_step(seed, scale, tree):
    base, leaves = family(seed, scale)
    ledger = exact_ledger(base, leaves)
    algebra = [base_itself(ledger), *(leaf(ledger, name) for name in leaves)]
    hand = [base, *leaves.values()]
    for (method, parameters), chosen in tree:
        i, j = (choice % len(hand) for choice in chosen)
        assume(i != j and not near_threshold(hand[i], hand[j]))
        recipe = Recipe(method, ("x", "y"), parameters)
        algebra.append(combine(ledger, recipe, [algebra[i], algebra[j]]))
        hand.append(merge_by_hand(recipe, [hand[i], hand[j]]))
    collapsed = made(algebra[-1], base, leaves)
    for name in NAMES:
        size = float(hand[-1][name].abs().max()) + 1
        assert torch.allclose(collapsed[name], hand[-1][name], rtol=0, atol=1e-9 * size)


@pytest.fixture(scope="module")
def real(tiny_base, tiny_finetunes):
    return ledgers.of(tiny_base, {folder.name: folder for folder in tiny_finetunes})


def test_the_measured_ledger_merges_as_well_as_its_products(real, tiny_base, tiny_finetunes):
    base = {n: t.double() for n, t in tiny.tensors(tiny_base).items()}
    leaves = {f.name: {n: t.double() for n, t in tiny.tensors(f).items()} for f in tiny_finetunes}
    child = combine(real, HALF, [leaf(real, "a"), leaf(real, "b")])
    weights = made(child, base, leaves)
    for name in base:
        exact = reference.slerp(0.5, leaves["a"][name], leaves["b"][name])
        assert torch.allclose(weights[name], exact, rtol=1e-6, atol=1e-6)


def test_slerp_keeps_the_part_along_the_base(real):
    child = combine(real, HALF, [leaf(real, "a"), leaf(real, "b")])
    turned = child.base != 1
    assert bool(turned.any())
    assert torch.allclose(child.base, child.deltas.sum(1))


def test_a_linear_tree_has_no_part_along_the_base_and_forgets_cancelled_leaves(real):
    a, b, c = (leaf(real, name) for name in "abc")
    mixed = combine(real, Recipe("linear", ("a", "b"), {"weight": [1, 3]}), [a, b])
    back = Recipe("linear", ("m", "b", "c"), {"weight": [4, -3, 1], "normalize": True})
    child = combine(real, back, [mixed, b, c])
    assert child.rows == ("a", "c")
    assert torch.allclose(child.base, torch.ones_like(child.base), rtol=0, atol=1e-15)
    assert torch.allclose(child.deltas, torch.full_like(child.deltas, 0.5))


def test_collapsing_reads_no_weights(tmp_path, tiny_base, tiny_finetunes):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    child = shutil.copytree(tiny_finetunes[0], tmp_path / "a")
    other = shutil.copytree(tiny_finetunes[2], tmp_path / "c")
    ledger = ledgers.of(base, {"a": child, "c": other})
    for folder in (base, child, other):
        shutil.rmtree(folder)
    assert combine(ledger, HALF, [leaf(ledger, "a"), leaf(ledger, "c")]).rows == ("a", "c")


def test_a_merge_depends_on_its_leaves_alone(real, tiny_base, tiny_finetunes):
    other = ledgers.of(tiny_base, {f.name: f for f in (tiny_finetunes[1], tiny_finetunes[0])})
    one, two = (combine(x, HALF, [leaf(x, "b"), leaf(x, "a")]) for x in (real, other))
    assert one.rows == two.rows == ("a", "b")
    assert torch.equal(one.base, two.base)
    assert torch.equal(one.deltas, two.deltas)


def test_the_base_can_be_a_parent(real):
    recipe = Recipe("linear", ("base", "a"), {"weight": 1})
    child = combine(real, recipe, [leaf(real, "base"), leaf(real, "a")])
    assert child.rows == ("a",)
    assert torch.allclose(child.deltas, torch.full_like(child.deltas, 0.5))


# Parameters


def shares(names: list[str], setting) -> list[float]:
    """The `t` that each tensor gets, seen in slerp's lerp of two nearly equal models."""
    base = {name: torch.ones(3, dtype=torch.float64) for name in names}
    leaves = {
        key: {name: t + 1e-4 * torch.tensor(shift).double() for name, t in base.items()}
        for key, shift in (("x", [1, 0, 0]), ("y", [0, 1, 0]))
    }
    ledger = exact_ledger(base, leaves)
    recipe = Recipe("slerp", ("x", "y"), {"t": setting})
    child = combine(ledger, recipe, [leaf(ledger, "x"), leaf(ledger, "y")])
    found = child.deltas[:, child.rows.index("y")] if "y" in child.rows else torch.zeros(len(names))
    order = sorted(names)
    return [round(float(found[order.index(name)]), 9) for name in names]


LAYERS = ["embed", *(f"model.layers.{i}.mlp.w" for i in range(5)), "norm"]


def test_a_gradient_runs_over_the_layers():
    assert shares(LAYERS, [0.1, 0.5, 0.3]) == [0.1, 0.1, 0.3, 0.5, 0.4, 0.3, 0.1]
    assert shares(LAYERS, [0.7]) == [0.7] * 7


def test_layers_are_numbers_not_text():
    names = [f"model.layers.{i}.w" for i in range(11)]
    assert shares(names, [0.0, 1.0]) == [i / 10 for i in range(11)]


def test_a_whole_number_may_be_larger_than_those_of_64_bits():
    for setting in (10**29, [{"value": 10**29}]):
        _, found = resolve(Recipe("extrapolation", ("x", "y"), {"lambda": setting}), ["w"])
        assert found["lambda"].tolist() == [1e29]


def test_the_only_layer_takes_the_gradients_end():
    assert shares(["embed", "h.0.w"], [0.1, 0.9]) == [0.1, 0.9]


def test_the_first_matching_condition_decides():
    names = ["a.mlp.w", "a.attn.w", "a.attn.mlp"]
    conditions = [
        {"filter": "attn", "value": 0.1},
        {"filter": "mlp", "value": 0.2},
        {"filter": "*", "value": 0.3},
    ]
    assert shares(names, conditions) == [0.2, 0.1, 0.1]
    assert shares(names, [{"filter": "w", "value": 0.4}, {"value": 0.5}]) == [0.4, 0.4, 0.5]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("slerp", ("x", "y"), {}), "slerp needs the parameter 't'"),
        (Recipe("slerp", ("x", "y"), {"T": 1}), "no parameter 'T'"),
        (Recipe("linear", ("x",), {"weigth": 1}), "did you mean 'weight'"),
        (Recipe("slerp", ("x",), {"t": 1}), "slerp takes 2 parents, not 1"),
        (Recipe("linear", (), {"weight": []}), "linear takes 1 to any number parents, not 0"),
        (Recipe("linear", ("x", "y"), {"weight": [1, 2, 3]}), "weight has 3 values for 2 parents"),
        (Recipe("slerp", ("x", "y"), {"t": "half"}), "expected a number"),
        (Recipe("slerp", ("x", "y"), {"t": []}), "expected a number"),
        (Recipe("slerp", ("x", "y"), {"t": float("nan")}), "expected a number"),
        (Recipe("slerp", ("x", "y"), {"t": 10**400}), "expected a number"),
        (Recipe("slerp", ("x", "y"), {"t": [{"filter": "mlp", "value": 1}]}), "no condition"),
        (Recipe("slerp", ("x", "y"), {"t": [{"filters": "mlp", "value": 1}]}), "a condition is"),
        (Recipe("slerp", ("x", "y"), {"t": [{"filter": 3, "value": 1}]}), "a filter is part"),
        (Recipe("slurp", ("x", "y"), {"t": 1}), "no merge method 'slurp'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_beforehand(recipe, message):
    with pytest.raises(UsageError, match=message):
        check(recipe, ("embed", "layers.0.mlp"))


def test_a_leaf_must_have_a_row(real):
    with pytest.raises(UsageError, match="no row of the weights sha256:no"):
        leaf(real, "sha256:no")


def test_parents_are_counted(real):
    with pytest.raises(UsageError, match="2 parents was given 1"):
        combine(real, HALF, [leaf(real, "a")])


def test_one_recipe_leaves_no_trace_in_the_next():
    """Settings are remembered: 1, true, and a list of choices must not be taken for each other."""
    assert shares(LAYERS, [0, 1]) == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 0.0]
    assert shares(LAYERS, [False, True]) == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert shares(LAYERS, [0.0, 1.0]) == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 0.0]
    assert shares(LAYERS[:4], [0, 1]) == [0.0, 0.0, 0.5, 1.0]
    assert shares(LAYERS, True) == shares(LAYERS, 1) == [1.0] * 7


def test_a_method_may_overwrite_its_parameters(real):
    gradient = Recipe("linear", ("a", "b"), {"weight": [[0.2, 0.4], 1], "normalize": [True, False]})
    parents = [leaf(real, "a"), leaf(real, "b")]
    first = combine(real, gradient, parents)
    for values in recipe_module.resolve(gradient, real.names)[1].values():
        values.zero_()
    again = combine(real, gradient, parents)
    assert torch.equal(first.deltas, again.deltas)
    assert torch.equal(first.base, again.base)
