"""The merge methods against mergekit's definitions on tensors, and how methods are found."""

import math
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

import reference
from kinship_daemon import extensions
from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods import registry
from kinship_daemon.weights.methods.linear import linear
from kinship_daemon.weights.methods.method import Parameter, span_method
from kinship_daemon.weights.methods.slerp import slerp


def dots(*tensors: torch.Tensor) -> torch.Tensor:
    """Inner products of {b, w_1 ..}, with a b that no method may be misled by."""
    rows = torch.stack([torch.full_like(tensors[0], 7.0), *tensors]).double()
    return (rows @ rows.T)[None]


def slerped(t: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    factors = slerp(dots(a, b), {"t": torch.tensor([t], dtype=torch.float64)})[0]
    assert float(factors[0]) == 0
    return factors[1] * a.double() + factors[2] * b.double()


def turned(cos: float, length: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two vectors with this cosine between them."""
    a = torch.zeros(50, dtype=torch.float64)
    b = torch.zeros(50, dtype=torch.float64)
    a[3] = length
    b[3], b[10] = 2 * length * cos, 2 * length * (1 - cos * cos) ** 0.5
    return a, b


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0, -0.5, 1.5])
@pytest.mark.parametrize("cos", [0.0, 0.3, -0.7, 0.9994, 0.99951, 1.0, -0.9994, -0.99951, -1.0])
def test_slerp_is_mergekits(t, cos):
    a, b = turned(cos)
    assert torch.allclose(slerped(t, a, b), reference.slerp(t, a, b), rtol=0, atol=1e-12)


def test_slerp_on_real_looking_tensors():
    noise = torch.Generator().manual_seed(0)
    a = torch.randn(4096, generator=noise)
    for scale in (0.01, 0.1, 1.0):
        b = a + scale * torch.randn(4096, generator=noise)
        exact = reference.slerp(0.3, a, b)
        assert torch.allclose(slerped(0.3, a, b), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-7])
def test_a_tensor_of_no_length_is_not_divided_by_it(length):
    a, b = turned(0.3, length)
    assert torch.allclose(slerped(0.5, a, b), reference.slerp(0.5, a, b), rtol=1e-12, atol=0)
    assert bool(slerped(0.5, a, b).isfinite().all())


def test_slerp_decides_tensor_by_tensor():
    pairs = [turned(0.3), turned(0.99999), turned(-0.2)]
    both = torch.cat([dots(*pair) for pair in pairs])
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    factors = slerp(both, {"t": t})
    for (a, b), row, share in zip(pairs, factors, t.tolist(), strict=True):
        assert torch.allclose(row[1] * a + row[2] * b, reference.slerp(share, a, b))


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_is_the_weighted_sum(normalize):
    tensors = [torch.randn(9, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    weights = [0.2, -1.0, 3.0]
    parameters = {
        "weight": torch.tensor([weights], dtype=torch.float64),
        "normalize": torch.tensor([normalize]),
    }
    factors = linear(dots(*tensors), parameters)[0]
    merged = sum(f * t.double() for f, t in zip(factors[1:], tensors, strict=True))
    assert torch.allclose(merged, reference.linear(weights, tensors, normalize))
    assert float(factors[0]) == 0


def test_weights_that_sum_to_nothing_cannot_be_normalised():
    parameters = {"weight": torch.tensor([[1.0, -1.0]]).double(), "normalize": torch.tensor([True])}
    with pytest.raises(UsageError, match="sum to 0"):
        linear(dots(torch.ones(3), torch.ones(3)), parameters)
    parameters["normalize"] = torch.tensor([False])
    assert linear(dots(torch.ones(3), torch.ones(3)), parameters).tolist() == [[0, 1, -1]]


# Every span method on every case


def settings(name: str, count: int) -> list[dict[str, Any]]:
    """Some settings of a method for so many parents; none where it does not take them."""
    weight = [0.7, 0.2, 1.4][:count]
    mean = {"weight": weight, "normalize_weights": False, "eps": 1e-8, "of_deltas": False}
    arithmetic = {"weight": weight, "lambda": 0.3, "normalize": False}
    turn = {"weight": weight, "of_deltas": False}
    several: dict[str, list[dict[str, Any]]] = {
        "frobenius": [{"k": k, "lambda": 0.8} for k in (2.0, 0.0, -1.0)],
        "karcher": [{"max_iter": 10, "tol": 1e-5}, {"max_iter": 1, "tol": 1e-6}],
        "linear": [{"weight": weight, "normalize": choice} for choice in (True, False)],
        "metagpt": [{"lambda": 1.0}, {"lambda": 0.4}],
        "model_stock": [{}],
        "multislerp": [
            mean,
            mean | {"normalize_weights": True},
            mean | {"of_deltas": True},
            mean | {"of_deltas": True, "normalize_weights": True, "eps": 1e-3},
        ],
        "nan": [{"lambda": 1.0, "delta_norms": False}, {"lambda": 0.4, "delta_norms": True}],
        "task_arithmetic": [arithmetic, arithmetic | {"normalize": True}],
    }
    pairs: dict[str, list[dict[str, Any]]] = {
        "extrapolation": [{"lambda": 0.4}, {"lambda": -2}],
        "nuslerp": [turn, turn | {"of_deltas": True}, turn | {"weight": [1, -1]}],
        "slerp": [{"t": 0.3}],
    }
    return (several | pairs if count == 2 else several).get(name, [])


EACH = [
    pytest.param(name, count, parameters, id=f"{name}-{count}-{index}")
    for name in sorted(reference.SPAN)
    for count in (2, 3)
    for index, parameters in enumerate(settings(name, count))
]


OF_MODELS = {"metagpt", "nan"}  # their weights are those of whole models

found_once = cache(registry.method)


def factors_of(
    name: str, products: torch.Tensor, parameters: Mapping[str, Any]
) -> list[list[float]]:
    """A method's factors for inner products of (T, p+1, p+1); the same settings for all T."""
    tensors = {
        key: torch.tensor(value, dtype=torch.bool if isinstance(value, bool) else torch.float64)
        for key, value in parameters.items()
    }
    merge = found_once(name)
    assert merge.kind == "span"
    found = merge(products, {k: t.expand(len(products), *t.shape) for k, t in tensors.items()})
    assert found.dtype == torch.float64
    assert found.shape == products.shape[:2]
    return found.tolist()


def products_of(models: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.stack([model.double() for model in models])
    return (rows @ rows.T)[None]


def merged(name: str, models: list[torch.Tensor], parameters: Mapping[str, Any]) -> torch.Tensor:
    """The child of {b, w_1 ..} from a method's factors; a plain sum, in float64."""
    (factors,) = factors_of(name, products_of(models), parameters)
    return sum(f * model.double() for f, model in zip(factors, models, strict=True))


def drawn(count: int, scale: float) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(count)
    base = torch.randn(300, generator=noise, dtype=torch.float64)
    deltas = torch.randn(count, 300, generator=noise, dtype=torch.float64)
    return [base, *(base + scale * delta for delta in deltas)]


@pytest.mark.parametrize("scale", [0.02, 1.0])
@pytest.mark.parametrize(("name", "count", "parameters"), EACH)
def test_factors_give_the_definition(name, count, parameters, scale):
    base, *tensors = drawn(count, scale)
    exact = reference.SPAN[name](base, tensors, parameters)
    assert torch.allclose(merged(name, [base, *tensors], parameters), exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "count", "parameters"), [each for each in EACH if each.values[0] not in OF_MODELS]
)
def test_tensors_do_not_touch_each_other(name, count, parameters):
    several = [products_of(drawn(count, scale)) for scale in (0.02, 1.0, 0.0, 50.0)]
    alone = [factors_of(name, one, parameters)[0] for one in several]
    together = factors_of(name, torch.cat(several), parameters)
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), rtol=1e-12, atol=1e-12)


def sparse(*entries: float) -> torch.Tensor:
    """Few entries of few digits, so that float32 norms and angles are exact, or nearly."""
    vector = torch.zeros(12)
    vector[: len(entries)] = torch.tensor(entries)
    return vector


B, U, V = sparse(0, 0, 12), sparse(3, 4), sparse(0, 0, 0, 3, -4)
NOTHING = sparse()
# Base and three parents; methods of two take the first two.
HARD = {
    "zero deltas": [B, B, B, B],
    "one zero delta": [B, B, B + U, B + V],
    "identical parents": [B, B + U, B + U, B + U],
    "parallel deltas": [B, B + U, B + 2 * U, B + 0.5 * U],
    "opposite deltas": [B, B + U, B - U, B + V],
    "opposite parents": [B, U, -U, V],
    "a zero parent": [B, NOTHING, U, V],
    "all zero parents": [B, NOTHING, NOTHING, NOTHING],
    "all zero": [NOTHING] * 4,
    "a zero base": [NOTHING, U, V, U + V],
    "huge": [1e15 * B, 1e15 * (B + U), 1e15 * (B - V), 1e15 * U],
    "tiny": [1e-15 * B, 1e-15 * (B + U), 1e-15 * (B - V), 1e-15 * U],
    "huge beside tiny": [B, 1e15 * U, 1e-15 * V, U],
    "small deltas": [B, B + 2.0**-13 * U, B + 2.0**-13 * (U + V), B + 2.0**-13 * V],
    "a tiny delta": [B, B + 2.0**-20 * U, B + V, B - V],
}


@pytest.mark.parametrize(("name", "count", "parameters"), EACH)
def test_factors_are_finite_and_no_larger_than_needed(name, count, parameters):
    cases = [models[: count + 1] for models in HARD.values()]
    every = factors_of(name, torch.cat([products_of(models) for models in cases]), parameters)
    for case, models, factors in zip(HARD, cases, every, strict=True):
        assert all(map(math.isfinite, factors)), case
        # No factor does more than to make the shortest vector or delta as long as the longest.
        norms = [float(v.norm()) for w in models for v in (w, w - models[0])]
        longest, shortest = max(norms), min((norm for norm in norms if norm), default=0.0)
        assert max(map(abs, factors)) <= 5 * (longest / shortest if shortest else 1), case


# Where we go another way than mergekit, as the methods' docstrings say.
OTHERWISE = {
    # It stops for three; the plain sum goes on.
    ("multislerp", 3): {"zero deltas", "all zero parents", "all zero", "tiny"},
}


OURS = {"extrapolation", "frobenius", "metagpt", "nan"}  # mergekit has no such method


@pytest.mark.parametrize(
    ("name", "count", "parameters"), [each for each in EACH if each.values[0] not in OURS]
)
def test_hard_cases_are_mergekits(name, count, parameters):
    for case, models in HARD.items():
        expected = mergekit_kernel(name, models[: count + 1], parameters)
        if expected is None:
            assert case in OTHERWISE[name, count], case
            continue
        size = max(float(model.norm()) for model in models[: count + 1])
        off = (merged(name, models[: count + 1], parameters) - expected.double()).norm()
        assert float(off) <= 2e-6 * size, case


def mergekit_kernel(
    name: str, models: list[torch.Tensor], parameters: Mapping[str, Any]
) -> torch.Tensor | None:
    """What mergekit's method makes of one tensor in float32; None where it refuses."""
    base_module = pytest.importorskip("mergekit.merge_methods.base")
    from mergekit.merge_methods.registry import get

    given = dict(parameters)
    of_deltas = given.pop("of_deltas", name in ("model_stock", "task_arithmetic"))
    if "max_iter" in given:
        given["max_iter"] = int(given["max_iter"])
    base, *tensors = models
    listed = [(f"w{i}", tensor, name == "slerp" and i == 0) for i, tensor in enumerate(tensors)]
    if of_deltas:
        listed.insert(0, ("b", base, True))
    entries = tuple(
        base_module.TensorEntry(id=key, tensor=tensor.clone(), is_base=is_base)
        for key, tensor, is_base in listed
    )
    metadata = base_module.TensorMetadata(name="w")
    group = base_module.TensorGroup(entries=entries, metadata=metadata)
    try:
        return get(name)([group], parameters=given)[0]
    except ValueError:  # "The weighted sum of the input tensors is zero"
        return None


# mergekit's parameters that do nothing in a span method, or make another kind of it.
LEFT_OUT = {
    "model_stock": {"filter_wise"},
    "nuslerp": {"nuslerp_flatten", "nuslerp_row_wise"},
    "task_arithmetic": {"density", "int8_mask", "rescale"},
}


@pytest.mark.parametrize("name", sorted(set(reference.SPAN) - OURS))
def test_parameters_have_mergekits_names_and_defaults(name):
    pytest.importorskip("mergekit")
    from mergekit.merge_methods.base import ParameterScope
    from mergekit.merge_methods.registry import get

    theirs = {p.name: p for p in get(name).spec.parameters}
    ours = {p.name: p for p in registry.method(name).parameters}
    assert set(theirs) - set(ours) == LEFT_OUT.get(name, set())
    assert set(ours) - set(theirs) <= {"of_deltas"}
    for key in set(ours) & set(theirs):
        assert ours[key].per_model == (theirs[key].scope != ParameterScope.SHARED)
        assert ours[key].default == (None if theirs[key].required else theirs[key].default)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("nuslerp", {"weight": [0.7, 0.2], "of_deltas": True}),
        (
            "multislerp",
            {"weight": [0.7, 0.2], "normalize_weights": True, "eps": 1e-8, "of_deltas": True},
        ),
        ("model_stock", {}),
    ],
)
def test_deltas_that_are_rounding_alone_have_no_direction(name, parameters):
    base = drawn(1, 0.0)[0]
    noise = torch.Generator().manual_seed(0)
    off = 1 + 4e-16 * torch.randn(20, 3, 3, generator=noise, dtype=torch.float64)
    rounded = products_of([base, base, base]) * (off + off.mT) / 2
    exact = factors_of(name, products_of([B, B, B]), parameters)
    for factors in factors_of(name, rounded, parameters):
        assert factors == pytest.approx(exact[0], abs=1e-12)


def test_opposite_parents_stay_finite_whatever_the_rounding():
    base, one, other = drawn(2, 1.0)
    plain = {"weight": [7, 3], "of_deltas": False}
    assert factors_of("nuslerp", products_of([base, one, -one]), plain) == [[0, 0.7, 0.3]]
    child = merged("karcher", [base, one, -one, one], {"max_iter": 10, "tol": 1e-5})
    assert torch.allclose(child, one, rtol=0, atol=1e-12)
    child = merged("karcher", [base, one, -2 * one], {"max_iter": 10, "tol": 1e-5})
    assert torch.allclose(child, 1.5 * one, rtol=0, atol=1e-12)
    balanced = {"weight": [1, 1], "normalize_weights": True, "eps": 1e-8, "of_deltas": False}
    products = products_of([base, other / other.norm(), -other / other.norm() * (1 + 1e-15)])
    assert factors_of("multislerp", products, balanced) == [[0, 0.5, 0.5]]


def test_task_arithmetic_does_not_divide_by_weights_that_sum_to_nothing():
    parameters = {"weight": [1, -1], "lambda": 0.5, "normalize": True}
    assert factors_of("task_arithmetic", products_of([B, U, V]), parameters) == [[1, 0.5, -0.5]]


def test_metagpt_weighs_whole_models():
    small, large = products_of([B, B + U, B]), products_of([B, B + U, B + 3 * V])
    factors = factors_of("metagpt", torch.cat([small, large]), {"lambda": 1.0})
    # Over both tensors the squared lengths are 25 + 25 and 0 + 225.
    assert factors == [pytest.approx([0, 50 / 275, 225 / 275])] * 2
    assert factors_of("metagpt", products_of([B, B, B]), {"lambda": 1.0}) == [[1, 0, 0]]


def test_nan_weighs_whole_models_by_inverse_norms():
    small, large = products_of([B, B + U, B]), products_of([B, B + U, B + 3 * V])
    deltas = {"lambda": 1.0, "delta_norms": True}
    factors = factors_of("nan", torch.cat([small, large]), deltas)
    # Over both tensors the deltas are sqrt(50) and 15 long; two parents have 2 / 2 between them.
    shares = [15 / (15 + 50**0.5), 50**0.5 / (15 + 50**0.5)]
    assert factors == [pytest.approx([0, *shares])] * 2
    three = factors_of("nan", products_of([B, B + U, B + U, B + U]), deltas)
    assert three == [pytest.approx([-0.5, 0.5, 0.5, 0.5])]
    assert factors_of("nan", products_of([B, B + U, B]), deltas) == [[0, 1, 0]]
    assert factors_of("nan", products_of([B, B, B]), deltas) == [[1, 0, 0]]
    weights = {"lambda": 1.0, "delta_norms": False}
    assert factors_of("nan", products_of([B, 3 * U, U]), weights) == [
        [0, pytest.approx(0.25), 0.75]
    ]
    assert factors_of("nan", products_of([0 * B, 0 * B, U]), weights) == [[0, 0, 1]]


@pytest.mark.parametrize("k", [-3.0, -1.0, 0.5, 2.0, 40.0])
def test_frobenius_weighs_by_a_power_of_each_tensors_lengths(k):
    small, large = products_of([B, B + U, B + 2 * U]), products_of([B, B + 3e-3 * V, B])
    settings = {"k": k, "lambda": 1.0}
    first, second = factors_of("frobenius", torch.cat([small, large]), settings)
    assert first == pytest.approx([0, 1 / (1 + 2**k), 2**k / (1 + 2**k)])
    assert second == [0, 1, 0], "who does not differ there has no weight there"
    assert factors_of("frobenius", products_of([B, B, B]), settings) == [[1, 0, 0]]
    mean = {"k": 0.0, "lambda": 1.0}
    assert factors_of("frobenius", large, mean) == [[0, 0.5, 0.5]]


def test_directions_that_cannot_be_normalised_are_refused():
    parameters = {"weight": [1.0, -1.0], "normalize_weights": True, "eps": 1e-8, "of_deltas": False}
    with pytest.raises(UsageError, match=r"multislerp: the weights sum to 0.*normalize_weights"):
        factors_of("multislerp", products_of([B, U, V]), parameters)


@pytest.mark.parametrize("of_deltas", [False, True])
def test_the_multislerp_of_one_is_itself(of_deltas):
    parameters = {"weight": [3.0], "normalize_weights": False, "eps": 0.1, "of_deltas": of_deltas}
    assert factors_of("multislerp", products_of([B, U]), parameters) == [[0, 1]]


def test_the_karcher_mean_of_one_is_itself():
    assert factors_of("karcher", products_of([B, U]), {"max_iter": 10, "tol": 1e-5}) == [[0, 1]]


def test_the_karcher_mean_is_as_near_to_each_of_two_as_to_the_other():
    a, b = turned(0.2)
    child = merged("karcher", [torch.ones_like(a), a, b], {"max_iter": 50, "tol": 1e-7})
    assert float(torch.cosine_similarity(child, a, dim=0)) == pytest.approx(0.6**0.5)
    assert float(torch.cosine_similarity(child, b, dim=0)) == pytest.approx(0.6**0.5)
    assert float(child.norm()) == pytest.approx(1.5)


def test_model_stock_trusts_deltas_that_agree():
    base, one, two = drawn(2, 0.1)
    agreeing = merged("model_stock", [base, one, one], {})
    assert torch.allclose(agreeing, one)
    apart = merged("model_stock", [base, one, two], {})
    assert float((apart - base).norm()) < 0.2 * float((one - base).norm())


# How methods are found


ELEMENTWISE = [
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "emr",
    "ties",
]
MATRIX = [
    "ace",
    "actmat",
    "iso_c",
    "iso_cts",
    "optmerge",
    "regmean",
    "star",
    "subspace_boosting",
    "svc",
    "tsv",
    "wudi",
]


def test_our_methods_come_through_the_entry_points():
    assert registry.method("slerp") is slerp
    assert list(registry.methods()) == sorted([*ELEMENTWISE, *MATRIX, *reference.SPAN])
    assert all("\n" in (found.__doc__ or "") for found in registry.methods().values())


def test_an_unknown_method_names_those_installed_and_the_nearest():
    with pytest.raises(
        UsageError, match=r"no merge method 'slurp'; installed: a.*, linear, .*; did"
    ):
        registry.method("slurp")


@pytest.fixture
def installed(monkeypatch):
    """Pretends that these entry points are all there are."""
    registry.method.cache_clear()
    yield lambda points: monkeypatch.setattr(extensions, "entry_points", lambda **_: points)
    registry.method.cache_clear()


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, registry.GROUP)


def test_two_methods_of_one_name_are_refused(installed):
    ours = "kinship_daemon.weights.methods.linear:linear"
    points = [point("linear", ours), point("linear", "other.package:linear")]
    installed(points)
    with pytest.raises(UsageError, match=f"{ours} .* and other.package:linear .*uninstall one"):
        registry.method("linear")
    registry.method.cache_clear()
    points[1] = point("linear", ours)  # the same package, seen twice on the path
    assert registry.method("linear") is linear


@span_method(Parameter("lambda"), parents=(2, 2))
def extrapolate(dots, parameters):
    """Beyond one model, away from the other."""
    step = parameters["lambda"]
    return torch.stack([torch.zeros_like(step), 1 + step, -step], 1)


def test_a_third_partys_method_is_found(installed):
    points = [point("extrapolate", "test_methods:extrapolate")]
    installed(points)
    found = registry.method("extrapolate")
    factors = found(dots(torch.ones(2), torch.zeros(2)), {"lambda": torch.tensor([0.5])})
    assert factors.tolist() == [[0, 1.5, -0.5]]
