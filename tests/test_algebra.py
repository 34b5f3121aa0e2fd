"""The algebra of merging: a tree of span merges, collapsed, is the tree merged step by step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

import reference
from kinship_daemon.weights import gram
from kinship_daemon.weights.recipe import Coefficients, Recipe, combine, leaf

NAMES = ("model.embed", "model.layers.0.mlp", "model.layers.1.attn", "model.norm")
SIZES = (24, 40, 40, 5)
LEAVES = ("base", "w", "x", "y", "z")


@dataclass(frozen=True)
class Merge:
    """A node of the tree; its parents are nodes or names of leaves."""

    method: str
    parameters: Mapping[str, Any]
    parents: "tuple[Merge | str, ...]"

    def __post_init__(self) -> None:
        assert 1 <= depth(self) <= 4


def depth(node: Merge | str) -> int:
    return 0 if isinstance(node, str) else 1 + max(map(depth, node.parents))


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda x: round(x, 2))


def weights(count: int) -> st.SearchStrategy[list[float]]:
    return st.lists(numbers(0.1, 2), min_size=count, max_size=count)


def of_two() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.one_of(
        st.tuples(st.just("slerp"), st.fixed_dictionaries({"t": numbers(-0.2, 1.2)})),
        st.tuples(st.just("extrapolation"), st.fixed_dictionaries({"lambda": numbers(-1, 1)})),
        st.tuples(
            st.just("nuslerp"),
            st.fixed_dictionaries({"weight": weights(2), "of_deltas": st.booleans()}),
        ),
    )


def of_many(count: int) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    weight, choice = weights(count), st.booleans()
    spread = st.lists(numbers(-1, 1), min_size=count, max_size=count)
    arithmetic = {"weight": spread, "lambda": numbers(-1, 1.5), "normalize": st.just(False)}
    mean = {"weight": weight, "normalize_weights": choice, "eps": st.just(1e-8)}
    steps = {"max_iter": st.integers(0, 12), "tol": st.sampled_from([1e-5, 1e-4])}
    return st.one_of(
        st.tuples(
            st.just("linear"), st.fixed_dictionaries({"weight": weight, "normalize": choice})
        ),
        st.tuples(st.just("task_arithmetic"), st.fixed_dictionaries(arithmetic)),
        st.tuples(st.just("multislerp"), st.fixed_dictionaries(mean | {"of_deltas": choice})),
        st.tuples(st.just("karcher"), st.fixed_dictionaries(steps)),
        st.tuples(st.just("model_stock"), st.just({})),
    )


@st.composite
def trees(draw: st.DrawFn, deepest: int = 4) -> Merge:
    count = draw(st.integers(2, 3))
    chosen = st.one_of(of_two(), of_many(2)) if count == 2 else of_many(count)
    method, parameters = draw(chosen)
    leaves = st.sampled_from(LEAVES)
    parent = leaves if deepest == 1 else st.one_of(leaves, trees(deepest - 1))
    return Merge(method, parameters, tuple(draw(parent) for _ in range(count)))


def family(seed: int, scale: float) -> dict[str, reference.Weights]:
    """Five models whose deltas are `scale` of the base; `z` left one tensor as it was."""
    noise = torch.Generator().manual_seed(seed)

    def drawn(spread: float) -> reference.Weights:
        sizes = zip(NAMES, SIZES, strict=True)
        return {n: spread * torch.randn(s, generator=noise, dtype=torch.float64) for n, s in sizes}

    base = drawn(1.0)
    deltas = {name: drawn(scale) for name in LEAVES[1:]}
    deltas["z"]["model.norm"].zero_()
    return {"base": base} | {
        name: {n: base[n] + delta[n] for n in NAMES} for name, delta in deltas.items()
    }


def ledger_of(models: Mapping[str, reference.Weights]) -> gram.Ledger:
    """In full float64, so that nothing but the algebra is tested."""
    base, grams = models["base"], []
    for name in NAMES:
        deltas = [models[row][name] - base[name] for row in LEAVES[1:]]
        rows = torch.stack([torch.ones_like(base[name]), base[name], *deltas])
        grams.append(rows @ rows.T)
    return gram.Ledger("base", LEAVES[1:], NAMES, SIZES, torch.stack(grams))


def collapsed(ledger: gram.Ledger, node: Merge | str) -> Coefficients:
    if isinstance(node, str):
        return leaf(ledger, node)
    names = tuple(f"parent{i}" for i in range(len(node.parents)))
    parents = [collapsed(ledger, parent) for parent in node.parents]
    return combine(ledger, Recipe(node.method, names, node.parameters), parents)


def stepwise(models: Mapping[str, reference.Weights], node: Merge | str) -> list[reference.Weights]:
    """The weights of all nodes below, and of the node itself at the end."""
    if isinstance(node, str):
        return [models[node]]
    below = [stepwise(models, parent) for parent in node.parents]
    method = reference.SPAN[node.method]
    child = {
        name: method(models["base"][name], [made[-1][name] for made in below], node.parameters)
        for name in NAMES
    }
    return [weights for made in below for weights in made] + [child]


def made(coefficients: Coefficients, models: Mapping[str, reference.Weights]) -> reference.Weights:
    """The weights that coefficients stand for."""
    result = {}
    for index, name in enumerate(NAMES):
        base = models["base"][name]
        result[name] = coefficients.base[index] * base
        for place, row in enumerate(coefficients.rows):
            result[name] = result[name] + coefficients.deltas[index, place] * (
                models[row][name] - base
            )
    return result


def difference(one: reference.Weights, other: reference.Weights) -> float:
    """The largest, over the tensors, of |one - other| / |other|."""
    return max(float((one[n] - other[n]).norm() / other[n].norm().clamp_min(1e-12)) for n in NAMES)


def nudged(models: Mapping[str, reference.Weights]) -> dict[str, reference.Weights]:
    """The same models with every delta off by some 1e-12 of itself."""
    noise, base = torch.Generator().manual_seed(0), models["base"]
    result = {"base": base}
    for row in LEAVES[1:]:
        result[row] = {}
        for name, size in zip(NAMES, SIZES, strict=True):
            off = 1 + 1e-12 * torch.randn(size, generator=noise, dtype=torch.float64)
            result[row][name] = base[name] + off * (models[row][name] - base[name])
    return result


def measurable(base: reference.Weights, parents: list[reference.Weights]) -> bool:
    """
    Whether no parent's delta is both there and below 1e-3 of its weights.

    A method gets inner products of full weights, rounded at 1e-16 of |w|²: a delta of a share r of
    the weights is known to 1e-16/r², and at 1e-3 that is all of the tolerance. (A delta that is
    rounding alone counts as none there, while step by step it has a direction.)
    """
    shares = [float((w[n] - base[n]).norm() / base[n].norm()) for w in parents for n in NAMES]
    return not any(0 < share < 1e-3 for share in shares)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(st.integers(0, 10_000), st.sampled_from([0.03, 0.3, 1.0]), trees())
def test_a_collapsed_tree_is_the_tree_merged_step_by_step(seed, scale, tree):
    models = family(seed, scale)
    *parents, exact = stepwise(models, tree)
    assume(measurable(models["base"], parents))
    # Where a last bit decides between two branches, or two directions all but cancel, the two ways
    # may differ. Such a tree shows it by itself, when merged step by step from nearly the same.
    assume(difference(stepwise(nudged(models), tree)[-1], exact) < 1e-11)
    event(f"depth {depth(tree)}")
    event(tree.method)
    assert difference(made(collapsed(ledger_of(models), tree), models), exact) < 1e-9
