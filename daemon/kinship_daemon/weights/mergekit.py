"""
Recipes as mergekit's YAML, so that a merge of ours can be made with mergekit too.

`base_model` there is not always the models' common ancestor: in slerp it is the first of the two
models, and in linear it only says whose tokenizer and config go along.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kinship_daemon.weights.assembly import weights_over
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.mergekit_yaml import MergekitRecipe, read_yaml
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.recipe import Coefficients, Recipe

__all__ = ["MergekitRecipe", "collapsed_yaml", "read_yaml", "to_yaml"]


def to_yaml(recipe: Recipe, names: Mapping[str, str], base: str, dtype: str) -> str:
    """
    A recipe as it was made.

    Args:
        recipe: Of an installed method.
        names: What to call each parent, such as its repo.
        base: The common ancestor, for the reader.
        dtype: Of the result.
    """
    parents = [names[parent] for parent in recipe.parents]
    of_model: list[dict[str, Any]] = [{} for _ in parents]
    shared = {}
    per_model = {p.name for p in method(recipe.method).parameters if p.per_model}
    for key, setting in recipe.to_json()["parameters"].items():
        if key not in per_model:
            shared[key] = setting
            continue
        settings = setting if isinstance(setting, list) else [setting] * len(parents)
        for own, value in zip(of_model, settings, strict=True):
            own[key] = value
    models = list(zip(parents, of_model, strict=True))
    return _dump(recipe.method, models, shared, base, dtype)


def collapsed_yaml(
    ledger: Ledger,
    coefficients: Coefficients,
    names: Mapping[str, str],
    base: str,
    dtype: str,
) -> str:
    """
    Any span merge as one `linear` merge of its leaves, weighted tensor by tensor.

    Args:
        ledger: Of the leaves.
        coefficients: The merge.
        names: What to call each leaf, by weights identity.
        base: What to call the base; among the models only where its weight is not 0.
        dtype: Of the result.
    """
    columns = weights_over(coefficients).T.tolist()
    called = [base, *(names[row] for row in coefficients.rows)]
    models = [
        (name, {"weight": _weight_setting(ledger.names, column)})
        for name, column in zip(called, columns, strict=True)
        if any(column)
    ]
    # The donor of tokenizer and config comes first.
    models = models[1:] + models[:1] if len(models) > 1 and models[0][0] == base else models
    return _dump("linear", models, {"normalize": False}, base, dtype)


def _dump(
    name: str,
    models: Sequence[tuple[str, Mapping[str, Any]]],
    shared: Mapping[str, Any],
    base: str,
    dtype: str,
) -> str:
    document: dict[str, Any] = {"merge_method": name, "base_model": models[0][0]}
    document["models"] = [
        {"model": model, "parameters": dict(own)} if own else {"model": model}
        for model, own in models
    ]
    if shared:
        document["parameters"] = dict(shared)
    # Summed in float32 and rounded once, as we do; with bfloat16 here, weights are rounded too.
    document |= {"dtype": "float32", "out_dtype": dtype}
    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
    return f"# A merge of descendants of {base}.\n{text}"


def _weight_setting(names: Sequence[str], values: Sequence[float]) -> Any:
    """One number where all tensors agree, else a condition for each that differs from the most."""
    counts = Counter(values)
    common, times = counts.most_common(1)[0]
    if times == len(values):
        return common
    differing = [n for n, v in zip(names, values, strict=True) if times == 1 or v != common]
    settings: list[dict[str, Any]] = [
        {"filter": name, "value": value}
        for name, value in _as_filters(differing, dict(zip(names, values, strict=True)))
    ]
    return settings if times == 1 else [*settings, {"value": common}]


def _as_filters(chosen: Sequence[str], values: Mapping[str, float]) -> list[tuple[str, float]]:
    """
    Names and values in an order in which each name, as a filter, decides for its tensor alone.

    A filter matches every tensor whose name contains it, and the first match wins: tensors whose
    names contain a chosen one are chosen too, and come before it.
    """
    containers = {name: [other for other in values if name in other] for name in chosen}
    listed = {other for others in containers.values() for other in others}
    depth = {name: sum(name in other for other in listed) for name in listed}
    return [(name, values[name]) for name in sorted(listed, key=lambda n: (depth[n], n))]
