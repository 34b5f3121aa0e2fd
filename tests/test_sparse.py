"""Thinning out: exactly so many elements by magnitude, the right share by chance, in any tensor."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinship_daemon.weights.methods import blocks, sparse
from kinship_daemon.weights.methods.sparse import keep_by_rank, keep_largest, keep_random

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.0000001, 3.4028235e38, 1e-38])


def by_sorting(values: list[float], count: int, skip: int = 0) -> list[float]:
    """Ranked by magnitude, and among equals by place."""
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    kept = set(order[skip : skip + count])
    return [value if i in kept else 0.0 for i, value in enumerate(values)]


@pytest.fixture(autouse=True, params=[3, 1 << 18], ids=["guesses off", "guesses right"])
def small_blocks(monkeypatch, request):
    """So that a small tensor has many, and threads have something to share; of a sample, too."""
    monkeypatch.setattr(sparse, "_SAMPLED", request.param)
    monkeypatch.setitem(blocks._BLOCK, "cpu", 5)
    monkeypatch.setattr(sparse, "_COUNTED", 7)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_exactly_the_largest_are_kept(data):
    values = data.draw(st.lists(FLOATS | FEW, max_size=40))
    skip = data.draw(st.integers(0, len(values)))
    count = data.draw(st.integers(0, len(values) - skip))
    delta = torch.tensor(values)
    expected = by_sorting(delta.tolist(), count, skip)
    keep_largest(delta, count, skip=skip)
    assert delta.tolist() == expected


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_neither_threads_nor_shape_change_what_is_kept(threads):
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).mul_(4).round_()
    expected = by_sorting(values.tolist(), 17, 6)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        delta = values.clone().view(5, 10)
        keep_largest(delta, 17, skip=6)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert delta.flatten().tolist() == expected


def test_of_equal_magnitudes_the_first_are_kept():
    delta = torch.tensor([1.0, -1.0] * 20)
    keep_largest(delta, 13)
    assert delta.tolist() == [1.0, -1.0] * 6 + [1.0] + [0.0] * 27


@pytest.mark.parametrize("size", [0, 1, 40])
def test_all_or_none_can_be_kept(size):
    delta = torch.linspace(0, 1, size)
    keep_largest(delta, size)
    assert torch.equal(delta, torch.linspace(0, 1, size))
    keep_largest(delta, 0)
    assert not bool(delta.any())


def test_magnitudes_at_the_ends_of_float32s_range_are_told_apart():
    least = 2.0**-149
    values = [least, 2 * least, 3 * least, torch.finfo(torch.float32).max, 0.0, -least]
    delta = torch.tensor(values)
    keep_largest(delta, 3)
    assert delta.tolist() == torch.tensor([0.0, *values[1:4], 0.0, 0.0]).tolist()


def test_a_large_tensor_is_thinned_in_large_blocks(monkeypatch):
    monkeypatch.undo()
    noise = torch.Generator().manual_seed(0)
    values = torch.randn(3_000_001, generator=noise).bfloat16().float()  # full of equals
    delta = values.clone()
    keep_largest(delta, 1_000_000)
    order = values.abs().sort(descending=True, stable=True).indices
    expected = torch.zeros_like(values)
    expected[order[:1_000_000]] = values[order[:1_000_000]]
    assert torch.equal(delta, expected)


# By chance.


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9])
def test_chance_keeps_the_share_asked_for(density):
    size = 400_000
    delta = torch.ones(size)
    keep_random(delta, density, torch.Generator().manual_seed(3))
    deviation = math.sqrt(density * (1 - density) * size)
    assert abs(float(delta.sum()) - density * size) <= 4 * deviation
    assert set(delta.unique().tolist()) <= {0.0, 1.0}


def test_chance_is_the_seeds_alone():
    def kept(seed, size):
        delta = torch.ones(size)
        keep_random(delta, 0.5, torch.Generator().manual_seed(seed))
        return delta

    assert torch.equal(kept(1, 5000), kept(1, 5000))
    assert not torch.equal(kept(1, 5000), kept(2, 5000))


def test_larger_elements_of_a_row_are_kept_more_often():
    rows, columns, density, epsilon = 40_000, 5, 0.4, 0.2
    noise = torch.Generator().manual_seed(0)
    # Rows of very different scale: ranks are within a row.
    scale = torch.logspace(-20, 20, rows)[:, None]
    delta = torch.stack([torch.randperm(columns, generator=noise) for _ in range(rows)]).float() + 1
    sign = torch.randint(0, 2, delta.shape, generator=noise) * 2 - 1
    ranks = delta.clone()
    delta = delta * scale * sign
    keep_by_rank(delta, density, epsilon, torch.Generator().manual_seed(1))
    shares = [float((delta[ranks == rank] != 0).float().mean()) for rank in range(1, columns + 1)]
    assert shares == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6], abs=4 * 0.5 / math.sqrt(rows))


def test_without_spread_ranks_do_not_matter():
    delta = torch.arange(1, 100_001).float()
    keep_by_rank(delta, 0.3, 0.0, torch.Generator().manual_seed(1))
    kept = (delta != 0).float()
    assert float(kept[:50_000].mean()) == pytest.approx(0.3, abs=0.01)
    assert float(kept[50_000:].mean()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (3, 4, 5), (0,), (0, 3), (3, 0)])
def test_any_shape_can_be_thinned_by_rank(shape):
    delta = torch.ones(shape)
    keep_by_rank(delta, 0.5, 0.1, torch.Generator().manual_seed(0))
    assert delta.shape == shape
    assert set(delta.flatten().tolist()) <= {0.0, 1.0}


def test_an_element_alone_in_its_row_is_kept_with_the_density():
    delta = torch.ones(100_000, 1)
    keep_by_rank(delta, 0.5, 0.3, torch.Generator().manual_seed(0))
    assert float(delta.mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.gpu
def test_a_gpu_keeps_the_same_elements(monkeypatch):
    monkeypatch.undo()
    values = torch.randn(1000, 3000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    for thin in (
        lambda delta: keep_largest(delta, 1_234_567, skip=1234),
        lambda delta: keep_random(delta, 0.3, torch.Generator().manual_seed(1)),
        lambda delta: keep_by_rank(delta, 0.3, 0.1, torch.Generator().manual_seed(1)),
    ):
        here, there = values.clone(), values.cuda()
        thin(here)
        thin(there)
        assert torch.equal(here, there.cpu())
