"""
Recipes as mergekit's YAML, so that a merge of ours can be made with mergekit too.

mergekit calculates in the YAML's `dtype` and rounds to it in between; float32 here, and `out_dtype`
for the result, come nearest to our one rounding.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.assembly import weights_over
from kinship_daemon.weights.ledger import Ledger
from kinship_daemon.weights.mergekit.roles import ON_DELTAS, Role, lacks, role_of
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.parameters import conditions
from kinship_daemon.weights.recipe import Coefficients, Recipe

__all__ = ["collapsed_yaml", "several_yaml", "to_yaml"]

# Characters by which the few ends of names are told that may begin with another name.
_BEGIN = 4

_Models = Sequence[tuple[str, Mapping[str, Any]]]


def to_yaml(recipe: Recipe, names: Mapping[str, str], base: str, dtype: str) -> str:
    """
    A recipe as it was made.

    Extrapolation, which mergekit lacks, is written as `linear`, with a remark that says so. What
    else it lacks, and methods of others, are written under their own name, ours with a remark.
    Without `base_model` (nuslerp and multislerp of full weights) mergekit does not say whose
    tokenizer goes along.

    Args:
        recipe: Of an installed method.
        names: What to call each parent, such as its repo.
        base: What to call the common ancestor.
        dtype: Of the result.

    Raises:
        UsageError: mergekit has no way to say it.
    """
    if recipe.method == "extrapolation":
        return _extrapolation(recipe, names, base, dtype)
    parents = [names[parent] for parent in recipe.parents]
    settings = recipe.to_json()["parameters"]
    of_model: list[dict[str, Any]] = [{} for _ in parents]
    shared = {}
    per_model = {p.name for p in method(recipe.method).parameters if p.per_model}
    base_model = _base_model(recipe.method, parents[0], base, settings.pop(ON_DELTAS, False))
    for key, setting in settings.items():
        if key not in per_model:
            shared[key] = setting
            continue
        each = setting if isinstance(setting, list) else [setting] * len(parents)
        for own, value in zip(of_model, each, strict=True):
            own[key] = value
    models = list(zip(parents, of_model, strict=True))
    text = _dump(recipe.method, models, shared, base_model, base, dtype)
    if not lacks(recipe.method):
        return text
    return f"# mergekit has no {recipe.method}: this is for `kinship-daemon merge` alone.\n{text}"


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
    return _dump("linear", models, {"normalize": False}, models[0][0], base, dtype)


def several_yaml(parts: Mapping[str, str], last: str) -> str:
    """
    A merge of merges as one YAML of several documents, for `mergekit-multi` and for us.

    Args:
        parts: The YAML of each merge that others use, by the name that these use.
        last: The YAML of what is wanted in the end.
    """
    named = [f"name: {_scalar(name)}\n{text}" for name, text in parts.items()]
    return "---\n".join([*named, last])


def _base_model(name: str, first: str, base: str, on_deltas: object) -> str | None:
    role = role_of(name)
    if role in (Role.FIRST, Role.PARENT):
        return first
    if role is Role.ANCESTOR:
        return base
    if not isinstance(on_deltas, bool):
        raise UsageError(f"{name}: mergekit has {ON_DELTAS} for all tensors or for none")
    return base if on_deltas else None


def _extrapolation(recipe: Recipe, names: Mapping[str, str], base: str, dtype: str) -> str:
    step = recipe.to_json()["parameters"]["lambda"]
    first, second = (names[parent] for parent in recipe.parents)
    models = [
        (first, {"weight": _mapped(step, lambda value: 1 + value)}),
        (second, {"weight": _mapped(step, lambda value: -value)}),
    ]
    text = _dump("linear", models, {"normalize": False}, first, base, dtype)
    remark = "mergekit has no extrapolation: the weights of linear are 1 + lambda and -lambda."
    return f"# {remark}\n{text}"


def _mapped(setting: Any, change: Callable[[float], float]) -> Any:
    """The same setting with other values: a straight line through a gradient stays one."""
    if isinstance(setting, int | float):
        return change(setting)
    if isinstance(setting, list) and not any(isinstance(item, dict) for item in setting):
        return [change(item) for item in setting]
    return [
        {**condition, "value": _mapped(condition["value"], change)}
        for condition in conditions(setting)
    ]


def _dump(
    name: str,
    models: _Models,
    shared: Mapping[str, Any],
    base_model: str | None,
    base: str,
    dtype: str,
) -> str:
    document: dict[str, Any] = {"merge_method": name}
    if base_model is not None:
        document["base_model"] = base_model
    document["models"] = [
        {"model": model, "parameters": dict(own)} if own else {"model": model}
        for model, own in models
    ]
    if shared:
        document["parameters"] = dict(shared)
    document |= {"dtype": "float32", "out_dtype": dtype}
    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
    return f"# A merge of descendants of {base}.\n{text}"


def _scalar(text: str) -> str:
    dumped: str = yaml.safe_dump(text, width=1000)
    return dumped.removesuffix("...\n").strip()


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
    containing = _containing(list(values))
    listed = {other for name in chosen for other in containing[name]}
    depth = {name: len(listed & containing[name]) for name in listed}
    return [(name, values[name]) for name in sorted(listed, key=lambda n: (depth[n], n))]


def _containing(names: Sequence[str]) -> dict[str, set[str]]:
    """By name, those that it is part of, itself among them; of tens of thousands in a second."""
    few = min(_BEGIN, *map(len, names))
    begins = {name[:few] for name in names}
    # A name that is part of another begins one of its ends.
    ends = sorted(
        (name[at:], name)
        for name in names
        for at in range(len(name))
        if name[at : at + few] in begins
    )
    found = {}
    for name in names:
        first = last = bisect_left(ends, (name,))
        while last < len(ends) and ends[last][0].startswith(name):
            last += 1
        found[name] = {whole for _, whole in ends[first:last]}
    return found
