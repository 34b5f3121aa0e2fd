"""
Reads mergekit's YAML: one of our methods, on whole models.

What changes no weight is dropped; what would, and is not ours, is Unsupported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from kinship_daemon.errors import UsageError
from kinship_daemon.weights.mergekit.documents import Unsupported, parse
from kinship_daemon.weights.mergekit.roles import ON_DELTAS, Role, role_of
from kinship_daemon.weights.mergekit.settings import Inputs, Levels, is_unknown, parameters_of
from kinship_daemon.weights.methods.registry import GROUP, method
from kinship_daemon.weights.parameters import layer_count
from kinship_daemon.weights.recipe import Recipe, check

__all__ = ["MergekitRecipe", "read_yaml"]

_KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer",
)  # fmt: skip
_MERGEKITS = ("chat_template", "modules")
# What an entry of some list may have.
_PARTS = ("model", "parameters", "layer_range", "sources")
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class MergekitRecipe:
    """
    What a YAML says.

    Attributes:
        recipe: Its parents are the models' names as they stand there, `base+adapter` among them.
        base: A model to take differences from: its `base_model`, or else its first model, or what
            the adapters are for. For methods that work on differences, the common ancestor, and
            no parent.
        donor: The model whose tokenizer and config go along: that of `tokenizer`, or `base_model`,
            or the base.
        dtype: Of the result, as torch names it; None to keep the models' own. mergekit's `dtype`
            also rounds what it calculates with; we calculate in float32 and round once.
        layers: Layers that its slices cover; None where it has none.
        tokenizer: `union`, `base` or a model's name; None where nothing is said.
        ignored: Keys that it has and that say nothing to mergekit, nor to us.
    """

    recipe: Recipe
    base: str
    donor: str
    dtype: str | None
    layers: int | None = None
    tokenizer: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """All that it names, the base first, each once; adapters without what they are for."""
        named = (self.base, *self.recipe.parents, self.donor)
        return tuple(dict.fromkeys(name.rpartition("+")[2] for name in named))

    def check(self, names: Sequence[str]) -> None:
        """
        Check that the slices cover a model of these tensors, and the parameters each of them.

        Raises:
            Unsupported: The slices do not; stacking parts of models is not ours.
            UsageError: A parameter is undecided for some tensor.
        """
        has = layer_count(names)
        if self.layers not in (None, has):
            raise Unsupported(
                f"slices: layer_range covers {self.layers} of the model's {has} layers; "
                f"only whole models are merged: [0, {has}]"
            )
        check(self.recipe, names, texts=True)


def read_yaml(text: str) -> MergekitRecipe:
    """
    Read mergekit's YAML of one merge.

    Raises:
        UsageError: It is no such recipe; an Unsupported, where mergekit may know what is meant.
    """
    # A merge's name, which is for other merges, and empty keys say nothing about this one.
    document = {k: v for k, v in parse(text).items() if k != "name" and v is not None}
    name = document.get("merge_method")
    if not isinstance(name, str) or name not in _ours():
        raise Unsupported(_unknown(name))
    ignored = _ignored_keys(document, name)
    inputs, shared, layers = _inputs(document, ignored)
    base = _reference("base_model", document["base_model"]) if "base_model" in document else None
    ordered = _arranged(name, inputs, base, listed="models" in document)
    parents = tuple(model for model, _ in ordered)
    parameters, others = parameters_of(name, ordered, inputs, shared)
    left_out = tuple(dict.fromkeys((*ignored, *others)))
    if role_of(name) is Role.ORIGIN and base is not None:
        parameters[ON_DELTAS] = True
    recipe = Recipe(name, parents, parameters)
    check(recipe, (), texts=True)  # all that can be told without the models
    foundation = _foundation(name, parents, base)
    tokenizer = _tokenizer(document)
    donor = base if base is not None and "+" not in base else foundation
    if tokenizer not in (None, "base", "union"):
        donor = tokenizer
    return MergekitRecipe(recipe, foundation, donor, _dtype(document), layers, tokenizer, left_out)


def _ignored_keys(document: Mapping[str, Any], name: str) -> list[str]:
    """What mergekit reads over; what stands at the wrong place would be missed, and is refused."""
    ignored = []
    for key in document:
        if key in _MERGEKITS:
            raise Unsupported(f"{key!r} is not supported in a merge recipe")
        if key in {parameter.name for parameter in method(name).parameters} | {"layer_range"}:
            raise UsageError(f"{key!r} is not for the top of a recipe: it belongs under parameters")
        if is_unknown("a merge recipe", key, _KEYS):
            ignored.append(str(key))
    return ignored


def _unknown(name: object) -> str:
    ours = _ours()
    nearest = get_close_matches(str(name), ours, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"merge_method {name!r} is not one of ours ({', '.join(ours)}){hint}"


def _ours() -> list[str]:
    return sorted({point.name for point in entry_points(group=GROUP)})


def _dtype(document: Mapping[str, Any]) -> str | None:
    dtype: str | None = document.get("out_dtype", document.get("dtype"))
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(f"dtype {dtype!r} is not supported; {', '.join(_DTYPES)} are")
    return dtype


def _tokenizer(document: Mapping[str, Any]) -> str | None:
    if "tokenizer" not in document:
        source = document.get("tokenizer_source")
        return None if source is None else _whole("tokenizer_source", source)
    if "tokenizer_source" in document:
        raise UsageError("a merge recipe has either tokenizer or tokenizer_source")
    settings = _mapping("tokenizer", document["tokenizer"])
    for key in settings:
        if key in ("tokens", "pad_to_multiple_of"):
            raise Unsupported(f"tokenizer: {key!r} is not supported")
        if key != "source":
            raise UsageError(f"tokenizer: has a source, not {key!r}")
    return _whole("tokenizer", settings.get("source", "union"))


def _inputs(document: Mapping[str, Any], ignored: list[str]) -> tuple[Inputs, Levels, int | None]:
    """The models with their own parameters, the levels of shared ones, and the layers sliced."""
    whole = _mapping("parameters", document.get("parameters"))
    if ("models" in document) == ("slices" in document):
        raise UsageError("a merge recipe has either models or slices")
    if "models" in document:
        return (
            _models("models", document["models"], ("model", "parameters"), ignored),
            [whole],
            None,
        )
    slices = document["slices"]
    if not isinstance(slices, list) or len(slices) != 1:
        raise Unsupported("slices: only one slice, of all layers, is supported")
    part = _mapping("slices", slices[0])
    if set(part) - {"sources", "parameters"}:
        raise Unsupported("slices: a slice has sources and parameters, nothing else is supported")
    sources = part.get("sources")
    inputs = _models("sources", sources, ("model", "parameters", "layer_range"), ignored)
    ranges = {str(_mapping("sources", source).get("layer_range")) for source in sources or ()}
    layers = sources[0].get("layer_range") if sources else None
    match layers:
        case [0, int(end)] if len(ranges) == 1 and end > 0:
            return inputs, [_mapping("parameters", part.get("parameters")), whole], end
    raise Unsupported(f"slices: layer_range is [0, all layers] for every source, not {layers}")


def _models(where: str, entries: Any, keys: Sequence[str], ignored: list[str]) -> Inputs:
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{where}: expected a list of models")
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        for key in _mapping(where, entry):
            if key in _PARTS and key not in keys:
                # mergekit reads over it, but it was meant to change the result.
                raise UsageError(f"{where}: an entry has {', '.join(keys)}, not {key!r}")
            if is_unknown(f"{where}: an entry", key, keys):
                ignored.append(str(key))
        name = _reference(where, entry.get("model"))
        if name in found:
            raise UsageError(f"{where}: {name} is there twice")
        found[name] = _mapping("parameters", entry.get("parameters"))
    return list(found.items())


def _reference(where: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: expected the name of a model, not {value!r}")
    if "+" in value and (value.count("+") > 1 or not all(value.split("+"))):
        raise UsageError(f"{where}: {value}: expected the base and one adapter, as in base+adapter")
    return value


def _whole(where: str, value: object) -> str:
    name = _reference(where, value)
    if "+" in name:
        raise UsageError(f"{where}: {name}: name the model whose tokenizer it is, not an adapter")
    return name


def _foundation(name: str, parents: Sequence[str], base: str | None) -> str:
    """What differences are taken from: with adapters, what they are for."""
    found = dict.fromkeys(m.partition("+")[0] for m in (*parents, base or "") if "+" in m)
    if not found:
        return base or parents[0]
    first, *others = found
    if others:
        raise Unsupported(f"{name}: adapters of {first} and of {others[0]} are not supported")
    differs = role_of(name) in (Role.ANCESTOR, Role.ORIGIN) and base not in (None, first)
    if differs:
        raise Unsupported(f"{name}: an adapter of {first}, while base_model is {base}")
    return first


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a mapping, not {value!r}")
    return value


def _arranged(name: str, inputs: Inputs, base: str | None, *, listed: bool) -> Inputs:
    """
    The parents in our method's order.

    mergekit adds `base_model` to a list of models that lacks it, but not to a slice's sources.
    """
    models = dict(inputs)
    match role_of(name):
        case Role.FIRST:
            if base is None:
                raise UsageError(f"{name} needs base_model: the model where t = 0")
            models = {base: {}, **models}
            if len(models) != 2:
                shown = ", ".join(models)
                raise UsageError(f"{name} takes base_model and one other, not {shown}")
        case Role.PARENT:
            if base is not None and listed:
                models.setdefault(base, {})
        case Role.ANCESTOR if base is None:
            raise UsageError(f"{name} needs base_model: the model to take differences from")
        case Role.ANCESTOR | Role.ORIGIN:
            models.pop(base or "", None)
            if not models:
                raise UsageError(f"{name} needs a model beside base_model")
    return list(models.items())
