"""
Reads mergekit's YAML: `linear` or `slerp` of whole models.

The format is documented at https://github.com/arcee-ai/mergekit (README, "Merge Configuration").
Settings are looked up from the nearest: of the model (for parameters that are per model), of the
slice, of the whole; where the conditions of one level decide nothing, the next level does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.methods.method import Parameter
from kinship_daemon.weights.methods.registry import method
from kinship_daemon.weights.parameters import check_setting, conditions, layer_count
from kinship_daemon.weights.recipe import Recipe

__all__ = ["MergekitRecipe", "read_yaml"]

_METHODS = ("linear", "slerp")
_KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"
)  # fmt: skip
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class MergekitRecipe:
    """
    What a YAML says.

    Attributes:
        recipe: Its parents are the models' names as they stand there.
        base: A model to take differences from: its `base_model`, or else its first model.
        dtype: Of the result, as torch names it; None to keep the models' own.
        layers: Layers that its slices cover; None where it has none.
    """

    recipe: Recipe
    base: str
    dtype: str | None
    layers: int | None = None

    def check(self, names: Sequence[str]) -> None:
        """
        Check that the slices cover a model of these tensors.

        Raises:
            UsageError: They do not; stacking parts of models is not supported.
        """
        has = layer_count(names)
        if self.layers not in (None, has):
            raise UsageError(
                f"slices: layer_range covers {self.layers} of the model's {has} layers; "
                f"only whole models are merged: [0, {has}]"
            )


def read_yaml(text: str) -> MergekitRecipe:
    """
    Read mergekit's YAML: `linear` or `slerp` of whole models.

    Raises:
        UsageError: It is no such recipe, or asks for what is not supported.
    """
    recipe = _parse(text)
    name = recipe.get("merge_method")
    if name not in _METHODS:
        raise UsageError(f"merge_method {name!r} is not supported; {' and '.join(_METHODS)} are")
    inputs, shared, layers = _inputs(recipe)
    base = _reference("base_model", recipe["base_model"]) if "base_model" in recipe else None
    arrange = _slerp_order if name == "slerp" else _linear_order
    ordered = arrange(inputs, base)
    parameters = _parameters(name, ordered, shared)
    dtype = recipe.get("out_dtype", recipe.get("dtype"))
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(f"dtype {dtype!r} is not supported; {', '.join(_DTYPES)} are")
    parents = tuple(model for model, _ in ordered)
    return MergekitRecipe(Recipe(name, parents, parameters), base or parents[0], dtype, layers)


def _parse(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UsageError("not a merge recipe: expected merge_method, models and parameters")
    for key in value:
        if key not in _KEYS:
            nearest = get_close_matches(str(key), _KEYS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f" ({', '.join(_KEYS)} are)"
            raise UsageError(f"{key!r} is not supported in a merge recipe{hint}")
    return value


_Levels = list[Mapping[str, Any]]
_Inputs = list[tuple[str, Mapping[str, Any]]]


def _inputs(recipe: Mapping[str, Any]) -> tuple[_Inputs, _Levels, int | None]:
    """The models with their own parameters, the levels of shared ones, and the layers sliced."""
    whole = _mapping("parameters", recipe.get("parameters"))
    if ("models" in recipe) == ("slices" in recipe):
        raise UsageError("a merge recipe has either models or slices")
    if "models" in recipe:
        return _models("models", recipe["models"], ("model", "parameters")), [whole], None
    slices = recipe["slices"]
    if not isinstance(slices, list) or len(slices) != 1:
        raise UsageError("slices: only one slice, of all layers, is supported")
    part = _mapping("slices", slices[0])
    if set(part) - {"sources", "parameters"}:
        raise UsageError("slices: a slice has sources and parameters, nothing else is supported")
    sources = part.get("sources")
    inputs = _models("sources", sources, ("model", "parameters", "layer_range"))
    ranges = {str(_mapping("sources", source).get("layer_range")) for source in sources or ()}
    layers = sources[0].get("layer_range") if sources else None
    match layers:
        case [0, int(end)] if len(ranges) == 1 and end > 0:
            return inputs, [_mapping("parameters", part.get("parameters")), whole], end
    raise UsageError(f"slices: layer_range is [0, all layers] for every source, not {layers}")


def _models(where: str, entries: Any, keys: Sequence[str]) -> _Inputs:
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{where}: expected a list of models")
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if set(_mapping(where, entry)) - {*keys}:
            raise UsageError(f"{where}: an entry has {', '.join(keys)}, not {sorted(entry)}")
        name = _reference(where, entry.get("model"))
        if name in found:
            raise UsageError(f"{where}: {name} is there twice")
        found[name] = _mapping("parameters", entry.get("parameters"))
    return list(found.items())


def _reference(where: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: expected the name of a model, not {value!r}")
    if "+" in value:
        raise UsageError(f"{where}: {value}: adapters are not supported; merge it into its base")
    return value


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a mapping, not {value!r}")
    return value


def _slerp_order(inputs: _Inputs, base: str | None) -> _Inputs:
    """Mergekit interpolates from `base_model` to the other."""
    if base is None:
        raise UsageError("slerp needs base_model: the model where t = 0")
    models = {base: {}, **dict(inputs)}
    if len(models) != 2:
        raise UsageError(f"slerp takes base_model and one other, not {', '.join(models)}")
    return list(models.items())


def _linear_order(inputs: _Inputs, base: str | None) -> _Inputs:
    """Mergekit adds `base_model` to the models, with the weight of the shared parameters."""
    models = dict(inputs)
    if base is not None:
        models.setdefault(base, {})
    return list(models.items())


def _parameters(name: str, inputs: _Inputs, shared: _Levels) -> dict[str, Any]:
    declared = method(name).parameters
    known = {parameter.name: parameter for parameter in declared}
    for level in (*(own for _, own in inputs), *shared):
        for key in level:
            if key not in known:
                raise UsageError(f"{name} has no parameter {key!r}; it has {', '.join(known)}")
    for model, own in inputs:
        for key in own:
            if not known[key].per_model:
                raise UsageError(f"{key} is not set per model; move it from {model} to parameters")
    found = {}
    for parameter in declared:
        setting: Any
        if parameter.per_model:
            setting = [_setting(parameter, [own, *shared], model) for model, own in inputs]
        else:
            setting = _setting(parameter, shared, "the recipe")
        if setting is not None:
            found[parameter.name] = setting
    return found


def _setting(parameter: Parameter, levels: _Levels, whose: str) -> Any:
    """All levels as one setting; None where none says anything and there is a default."""
    chain = [
        condition
        for level in levels
        if parameter.name in level
        for condition in conditions(_numbers(level[parameter.name]))
    ]
    if not chain:
        if parameter.default is None:
            raise UsageError(f"{whose} needs the parameter {parameter.name!r} (0 leaves it out)")
        return None
    check_setting(parameter.name, chain)
    decided = list(_until_decided(chain))
    return decided[0]["value"] if set(decided[0]) == {"value"} else decided


def _until_decided(chain: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for condition in chain:
        yield condition
        if condition.get("filter") in (None, "*"):
            return


def _numbers(setting: Any) -> Any:
    """YAML reads 1e-3 as text, which mergekit takes for the number it looks like."""
    if isinstance(setting, dict):
        return {k: v if k == "filter" else _numbers(v) for k, v in setting.items()}
    if isinstance(setting, list):
        return [_numbers(item) for item in setting]
    if isinstance(setting, str):
        try:
            return float(setting)
        except ValueError:
            return setting
    return setting
