"""
Values of a merge parameter per tensor, from the forms that mergekit's YAML allows.

A setting is a number or bool for all tensors; a list of numbers, a gradient over the layers; or
conditions, a list of {filter, value} of which the first whose filter is part of the tensor's name
decides (no filter matches all; the value may be a gradient). Tensors outside the layers take a
gradient's first value, as in mergekit.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kinship_daemon.errors import UsageError

__all__ = ["check_setting", "conditions", "layer_count", "layer_depths", "layer_of", "per_tensor"]

_LAYER = re.compile(r"\.(\d+)\.")


def layer_count(names: Sequence[str]) -> int:
    """
    Layers of a model of these tensors.

    The layer is the first number in a name, as in `model.layers.3.mlp.up_proj.weight`.
    """
    return 1 + max((layer for layer in map(layer_of, names) if layer is not None), default=-1)


def layer_depths(names: Sequence[str]) -> tuple[float, ...]:
    """
    How deep in the stack each tensor's layer lies: 0 for the first, 1 for the last.

    The one layer of a one-layer model lies at 1, and a tensor of no layer at 0.
    """
    last = layer_count(names) - 1
    layers = [layer_of(name) for name in names]
    return tuple(0.0 if n is None else n / last if last else 1.0 for n in layers)


def layer_of(tensor: str) -> int | None:
    """The first number in a tensor's name, 3 in `model.layers.3.mlp.up_proj.weight`, or None."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None


def conditions(setting: object) -> list[Mapping[str, Any]]:
    """Any setting in its longest form, a list of conditions."""
    if isinstance(setting, Mapping):
        return [setting]
    if isinstance(setting, list | tuple) and setting and isinstance(setting[0], Mapping):
        return list(setting)
    return [{"value": setting}]


def check_setting(name: str, setting: object) -> None:
    """
    Check the form of one parameter's setting.

    Raises:
        UsageError: It is none of the forms, or a number is not finite.
    """
    for condition in conditions(setting):
        if not isinstance(condition, Mapping) or not {"value"} <= {*condition} <= {
            "value",
            "filter",
        }:
            raise UsageError(f"{name}: a condition is {{filter, value}}, not {condition!r}")
        if not isinstance(condition.get("filter") or "", str):
            raise UsageError(f"{name}: a filter is part of a tensor's name, not {condition!r}")
        value = condition["value"]
        values = value if isinstance(value, list | tuple) else [value]
        if not values or not all(_is_number(value) for value in values):
            raise UsageError(f"{name}: expected a number or a list of numbers, not {value!r}")


def per_tensor(name: str, setting: object, names: Sequence[str], *, boolean: bool) -> Tensor:
    """
    The setting's value for each tensor.

    `name` is the parameter's, for messages; `names` are all tensors of the model, since gradients
    run over its layers.

    Returns:
        (tensors,) float64, or bool where `boolean`.

    Raises:
        UsageError: The setting is malformed, or decides nothing for some tensor.
    """
    check_setting(name, setting)
    chain = conditions(setting)
    values = []
    for tensor, depth in zip(names, layer_depths(names), strict=True):
        decided = next((c["value"] for c in chain if _matches(c.get("filter"), tensor)), None)
        if decided is None:
            raise UsageError(f"{name}: no condition covers {tensor}; end with one without filter")
        values.append(_at_depth(decided, depth))
    if boolean:
        return torch.tensor([bool(value) for value in values])
    return torch.tensor(values, dtype=torch.float64)


def _is_number(value: object) -> bool:
    # No math.isfinite, which fails on integers beyond any float.
    return isinstance(value, bool | int | float) and abs(value) <= sys.float_info.max


def _matches(condition: str | None, tensor: str) -> bool:
    return condition is None or condition == "*" or condition in tensor


def _at_depth(value: float | Sequence[float], depth: float) -> float:
    if not isinstance(value, Sequence):
        return float(value)
    place = depth * (len(value) - 1)
    low = int(place)
    if any(isinstance(v, bool) for v in value):
        return float(value[low])  # a choice has no values in between
    high = min(low + 1, len(value) - 1)
    share = place - low
    return float((1 - share) * value[low] + share * value[high])
