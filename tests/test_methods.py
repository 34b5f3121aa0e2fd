"""The merge methods against mergekit's definitions on tensors, and how methods are found."""

from importlib.metadata import EntryPoint

import pytest
import torch

import reference
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


def test_our_methods_come_through_the_entry_points():
    assert registry.method("slerp") is slerp
    assert list(registry.methods()) == ["linear", "slerp"]
    assert all("\n" in (found.__doc__ or "") for found in registry.methods().values())


def test_an_unknown_method_names_those_installed_and_the_nearest():
    with pytest.raises(UsageError, match="no merge method 'slurp'; installed: linear, slerp; did"):
        registry.method("slurp")


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, registry.GROUP)


def test_two_methods_of_one_name_are_refused(monkeypatch):
    ours = "kinship_daemon.weights.methods.linear:linear"
    points = [point("linear", ours), point("linear", "other.package:linear")]
    monkeypatch.setattr(registry, "entry_points", lambda **_: points)
    with pytest.raises(UsageError, match=f"{ours} .* and other.package:linear .*uninstall one"):
        registry.method("linear")
    points[1] = point("linear", ours)  # the same package, seen twice on the path
    assert registry.method("linear") is linear


@span_method(Parameter("lambda"), parents=(2, 2))
def extrapolate(dots, parameters):
    """Beyond one model, away from the other."""
    step = parameters["lambda"]
    return torch.stack([torch.zeros_like(step), 1 + step, -step], 1)


def test_a_third_partys_method_is_found(monkeypatch):
    points = [point("extrapolate", "test_methods:extrapolate")]
    monkeypatch.setattr(registry, "entry_points", lambda **_: points)
    found = registry.method("extrapolate")
    factors = found(dots(torch.ones(2), torch.zeros(2)), {"lambda": torch.tensor([0.5])})
    assert factors.tolist() == [[0, 1.5, -0.5]]
